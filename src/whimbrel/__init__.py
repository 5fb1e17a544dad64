"""Messaging for bad networks: once ``send()`` returns, the message arrives, exactly once and in order.

    async with Client("https://chat.example.org", "me.db", Credentials("ann", password)) as client:
        conversation = await client.create_conversation("bob")
        message = await conversation.send("hello")  # on disk from here on
        await message.delivered()  # in the server's permanent store

The names here are the public API. Each is loaded when it is first used, so that importing the
package costs nothing. ``_HOMES`` says where each lives; the block for type checkers says the same,
and a test holds the two together.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from whimbrel.client.client import Client as Client
    from whimbrel.client.client import ClosingReport as ClosingReport
    from whimbrel.client.consumer import ConsumedEvent as ConsumedEvent
    from whimbrel.client.consumer import ConsumerStream as ConsumerStream
    from whimbrel.client.conversation import ConversationHandle as ConversationHandle
    from whimbrel.client.credentials import Credentials as Credentials
    from whimbrel.client.events import EventStream as EventStream
    from whimbrel.client.handles import SentMessage as SentMessage
    from whimbrel.core.contract import Settings as Settings
    from whimbrel.errors import BreakerOpen as BreakerOpen
    from whimbrel.errors import ClientClosed as ClientClosed
    from whimbrel.errors import Conflict as Conflict
    from whimbrel.errors import DeliveryFailed as DeliveryFailed
    from whimbrel.errors import DeliveryPending as DeliveryPending
    from whimbrel.errors import EventsLost as EventsLost
    from whimbrel.errors import Forbidden as Forbidden
    from whimbrel.errors import InsecureUrl as InsecureUrl
    from whimbrel.errors import InvalidArgument as InvalidArgument
    from whimbrel.errors import InvalidRequest as InvalidRequest
    from whimbrel.errors import InvalidUrl as InvalidUrl
    from whimbrel.errors import KeyReused as KeyReused
    from whimbrel.errors import LinkError as LinkError
    from whimbrel.errors import NotAStore as NotAStore
    from whimbrel.errors import NotConnected as NotConnected
    from whimbrel.errors import NotFound as NotFound
    from whimbrel.errors import ProtocolError as ProtocolError
    from whimbrel.errors import QueueFull as QueueFull
    from whimbrel.errors import RateLimited as RateLimited
    from whimbrel.errors import RemoteError as RemoteError
    from whimbrel.errors import ServerFailed as ServerFailed
    from whimbrel.errors import ServerUnreachable as ServerUnreachable
    from whimbrel.errors import StoreCorrupt as StoreCorrupt
    from whimbrel.errors import StoreError as StoreError
    from whimbrel.errors import StoreFull as StoreFull
    from whimbrel.errors import StoreInUse as StoreInUse
    from whimbrel.errors import StoreKeyError as StoreKeyError
    from whimbrel.errors import StoreTooNew as StoreTooNew
    from whimbrel.errors import StoreUnavailable as StoreUnavailable
    from whimbrel.errors import TooLarge as TooLarge
    from whimbrel.errors import Unauthorized as Unauthorized
    from whimbrel.errors import UsageError as UsageError
    from whimbrel.errors import WhimbrelError as WhimbrelError
    from whimbrel.model import Attempt as Attempt
    from whimbrel.model import AuthChanged as AuthChanged
    from whimbrel.model import ConnectionChanged as ConnectionChanged
    from whimbrel.model import ConnectionState as ConnectionState
    from whimbrel.model import Content as Content
    from whimbrel.model import Conversation as Conversation
    from whimbrel.model import ConversationChanged as ConversationChanged
    from whimbrel.model import Event as Event
    from whimbrel.model import Explanation as Explanation
    from whimbrel.model import FailureReason as FailureReason
    from whimbrel.model import LostMessage as LostMessage
    from whimbrel.model import Message as Message
    from whimbrel.model import MessageChanged as MessageChanged
    from whimbrel.model import MessageReceived as MessageReceived
    from whimbrel.model import MessageState as MessageState
    from whimbrel.model import PermanentFailure as PermanentFailure
    from whimbrel.model import Quality as Quality
    from whimbrel.model import Receipt as Receipt
    from whimbrel.model import ReceiptChanged as ReceiptChanged
    from whimbrel.model import Role as Role
    from whimbrel.model import SendState as SendState
    from whimbrel.model import SendStatus as SendStatus
    from whimbrel.model import StoreRebuilt as StoreRebuilt
    from whimbrel.model import TypingChanged as TypingChanged
    from whimbrel.model import message_id as message_id

_HOMES = {
    "whimbrel.client.client": (
        "Client",
        "ClosingReport",
    ),
    "whimbrel.client.consumer": (
        "ConsumedEvent",
        "ConsumerStream",
    ),
    "whimbrel.client.conversation": ("ConversationHandle",),
    "whimbrel.client.credentials": ("Credentials",),
    "whimbrel.client.events": ("EventStream",),
    "whimbrel.client.handles": ("SentMessage",),
    "whimbrel.core.contract": ("Settings",),
    "whimbrel.errors": (
        "BreakerOpen",
        "ClientClosed",
        "Conflict",
        "DeliveryFailed",
        "DeliveryPending",
        "EventsLost",
        "Forbidden",
        "InsecureUrl",
        "InvalidArgument",
        "InvalidRequest",
        "InvalidUrl",
        "KeyReused",
        "LinkError",
        "NotAStore",
        "NotConnected",
        "NotFound",
        "ProtocolError",
        "QueueFull",
        "RateLimited",
        "RemoteError",
        "ServerFailed",
        "ServerUnreachable",
        "StoreCorrupt",
        "StoreError",
        "StoreFull",
        "StoreInUse",
        "StoreKeyError",
        "StoreTooNew",
        "StoreUnavailable",
        "TooLarge",
        "Unauthorized",
        "UsageError",
        "WhimbrelError",
    ),
    "whimbrel.model": (
        "Attempt",
        "AuthChanged",
        "ConnectionChanged",
        "ConnectionState",
        "Content",
        "Conversation",
        "ConversationChanged",
        "Event",
        "Explanation",
        "FailureReason",
        "LostMessage",
        "Message",
        "MessageChanged",
        "MessageReceived",
        "MessageState",
        "PermanentFailure",
        "Quality",
        "Receipt",
        "ReceiptChanged",
        "Role",
        "SendState",
        "SendStatus",
        "StoreRebuilt",
        "TypingChanged",
        "message_id",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_HOME_OF]  # noqa: PLE0604 - built from the table, so that there is one


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
