"""Every exception whimbrel raises, in one tree.

Errors branch by who must act. Each has a stable ``code`` for programs, a text for people, and a
``hint`` that says what to do next. Attributes carry the data; no error ever carries message
content, a key, a token or a password.

    WhimbrelError
    ├── UsageError            the caller: fix the call
    │   ├── InvalidArgument       a value is out of range, or of the wrong type
    │   ├── InvalidUrl            the server address cannot be used
    │   ├── InsecureUrl           plain http off the loopback
    │   ├── ClientClosed          the client was closed before or during the call
    │   └── KeyReused             the same key was used for other content
    ├── StoreError            this machine: its disk, its key
    │   ├── StoreUnavailable      cannot be opened (missing folder, read-only, not a store)
    │   ├── StoreInUse            another process has it, in a way that cannot be shared
    │   ├── StoreKeyError         no key, or the wrong one
    │   ├── StoreFull             the disk is full
    │   ├── StoreCorrupt          the file is damaged
    │   ├── NotAStore             the file is something else; left alone
    │   └── StoreTooNew           written by a newer version
    ├── QueueFull             the outbox is at its limit; nothing was taken
    ├── EventsLost            a live stream was read too slowly; the store has everything
    ├── LinkError             the way to the server: wait, or look at the network
    │   ├── NotConnected          the call needs an answer and there is no link
    │   ├── ServerUnreachable     no connection could be made
    │   ├── BreakerOpen           the service failed too often; calls wait
    │   └── ProtocolError         what came cannot be understood
    ├── RemoteError           the server said no
    │   ├── Unauthorized          sign in again
    │   ├── NotFound              no such conversation or message (or none of yours)
    │   ├── Forbidden             not allowed
    │   ├── Conflict              it exists already, with other content
    │   ├── RateLimited           too fast; ``retry_after_s``
    │   ├── TooLarge              over a limit of the server
    │   ├── InvalidRequest        refused as invalid
    │   └── ServerFailed          the server's own failure; try again
    ├── DeliveryFailed        this message will not be delivered as it is
    └── DeliveryPending       not delivered within the time asked; it stays queued
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
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
    "remote_error",
]


class WhimbrelError(Exception):
    """Anything whimbrel raises on purpose; ``code`` is stable, ``hint`` says what to do."""

    code: ClassVar[str] = "error"
    default_hint: ClassVar[str] = ""

    def __init__(self, text: str = "", *, hint: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.hint = hint or self.default_hint

    def __str__(self) -> str:
        return self.text or self.code.replace("_", " ")


class UsageError(WhimbrelError):
    """The call itself is wrong; nothing was done."""

    code = "usage"


class InvalidArgument(UsageError, ValueError):
    """A value is out of range or of the wrong type; nothing was done."""

    code = "invalid_argument"


class InvalidUrl(InvalidArgument):
    """The server address cannot be used."""

    code = "invalid_url"
    default_hint = "use http://host:port or https://host:port"


class InsecureUrl(InvalidUrl):
    """Plain http was asked for off the loopback."""

    code = "insecure_url"
    default_hint = "use https://, or say insecure=True (--insecure) if you accept that others can read it"


class ClientClosed(UsageError):
    """The client was closed before or during the call."""

    code = "client_closed"
    default_hint = "open a new Client; what was queued is still in its store"


class KeyReused(UsageError):
    """The same key was used before for other content; nothing was queued."""

    code = "key_reused"
    default_hint = "a key names one message for ever: choose another key, or send the same content"


class StoreError(WhimbrelError):
    """The local store could not do it; nothing of the call was kept."""

    code = "store"


class StoreUnavailable(StoreError):
    """The store cannot be opened or written."""

    code = "store_unavailable"
    default_hint = "check that the folder exists and may be written"


class StoreInUse(StoreError):
    """Another process has this store, or a consumer's name in it, in a way that cannot be shared."""

    code = "store_in_use"
    default_hint = "close the other program, or use a store of its own for this one"


class StoreKeyError(StoreError):
    """The store's key is missing or wrong; the file was left as it is."""

    code = "store_key"
    default_hint = "give the passphrase this store was made with, or unlock the system key store"


class StoreFull(StoreError):
    """The disk is full; nothing of the call was kept."""

    code = "store_full"
    default_hint = "free some space on the disk of the store, then try again"


class StoreCorrupt(StoreError):
    """The store's file is damaged."""

    code = "store_corrupt"
    default_hint = "keep the file, and open a new store; what the server has will be fetched again"


class NotAStore(StoreError):
    """The file is evidently none of whimbrel's; it was left as it is."""

    code = "not_a_store"
    default_hint = "give another path for the store"


class StoreTooNew(StoreError):
    """The store was written by a newer version of whimbrel."""

    code = "store_too_new"
    default_hint = "upgrade whimbrel"


class QueueFull(WhimbrelError):
    """The outbox is at its limit; this message was not taken, all others are kept."""

    code = "queue_full"
    default_hint = "wait until some messages are delivered, or raise the limit"


class EventsLost(WhimbrelError):
    """This stream was read too slowly and has a hole now; the store has everything."""

    code = "events_lost"
    default_hint = "read the messages again and open a new stream; events(consumer=...) misses nothing"


class LinkError(WhimbrelError):
    """There is no usable way to the server now."""

    code = "link"


class NotConnected(LinkError):
    """The call needs an answer of the server and there was no link in time."""

    code = "not_connected"
    default_hint = "try again when connected; messages can be sent at any time"


class ServerUnreachable(LinkError):
    """No connection to the server could be made."""

    code = "server_unreachable"
    default_hint = "check the address, and that the server runs"


class BreakerOpen(LinkError):
    """The service failed too often; calls that need an answer are refused for a while."""

    code = "breaker_open"
    default_hint = "try again in a while; messages still queue"


class ProtocolError(LinkError):
    """What the other side sent cannot be understood."""

    code = "protocol"
    default_hint = "check that client and server are of versions that fit"


class RemoteError(WhimbrelError):
    """The server refused; ``retry_after_s`` is set when it said when to come back."""

    code = "remote"

    def __init__(self, text: str = "", *, hint: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(text, hint=hint)
        self.retry_after_s = retry_after_s


class Unauthorized(RemoteError):
    """The credentials are wrong or no longer good."""

    code = "unauthorized"
    default_hint = "sign in again"


class NotFound(RemoteError):
    """It does not exist, or not for this user: the server does not say which."""

    code = "not_found"
    default_hint = "check the id; you may have left the conversation"


class Forbidden(RemoteError):
    """This user may not do that."""

    code = "forbidden"


class Conflict(RemoteError):
    """It exists already with other content."""

    code = "conflict"


class RateLimited(RemoteError):
    """Too fast; ``retry_after_s`` says when to go on."""

    code = "rate_limited"
    default_hint = "slow down; queued messages go out by themselves"


class TooLarge(RemoteError):
    """Over one of the server's size limits."""

    code = "too_large"


class InvalidRequest(RemoteError):
    """The server found it invalid."""

    code = "invalid"


class ServerFailed(RemoteError):
    """The server's own failure; the same call may succeed later."""

    code = "unavailable"
    default_hint = "try again in a while"


class DeliveryFailed(WhimbrelError):
    """The message was cancelled, expired or refused for good; ``reason`` says which."""

    code = "delivery_failed"

    def __init__(self, text: str = "", *, hint: str = "", message_id: str = "", reason: str = "") -> None:
        super().__init__(text, hint=hint)
        self.message_id = message_id
        self.reason = reason


class DeliveryPending(WhimbrelError, TimeoutError):
    """Not delivered within the time asked; the message stays queued and will go out by itself."""

    code = "delivery_pending"
    default_hint = "nothing to do: it goes out when the link is back"

    def __init__(self, text: str = "", *, hint: str = "", pending: int = 1) -> None:
        super().__init__(text, hint=hint)
        self.pending = pending


_REMOTE: dict[str, type[RemoteError]] = {
    # The server says which of the two it is; the caller does the same about both.
    "internal": ServerFailed,
} | {
    kind.code: kind
    for kind in (
        Unauthorized,
        NotFound,
        Forbidden,
        Conflict,
        RateLimited,
        TooLarge,
        InvalidRequest,
        ServerFailed,
    )
}


def remote_error(code: str, text: str, retry_after_s: float | None = None) -> RemoteError:
    """Build the exception for an error ``code`` of the server; an unknown code gives ``RemoteError``."""
    return _REMOTE.get(code, RemoteError)(text, retry_after_s=retry_after_s)
