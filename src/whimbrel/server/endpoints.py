"""The endpoints for signing in, conversations, members, messages and receipts; streams are in ``streams``.

Whatever changes something goes through the hub's batches, like the frames of a WebSocket, so that
members are told and order holds. Whatever only reads asks the ledger.
"""

from __future__ import annotations

import secrets

import msgspec
from starlette.responses import Response

from whimbrel import errors
from whimbrel import protocol as p
from whimbrel.server import outcomes as o
from whimbrel.server.accounts import Tokens
from whimbrel.server.bodies import (
    Buffered,
    Conversations,
    Health,
    Login,
    Members,
    Messages,
    NewConversation,
    NewMember,
    NewMessage,
    Receipts,
    RefreshToken,
    Session,
)
from whimbrel.server.http import Call, Query, Route, json
from whimbrel.server.ledger import (
    Ahead,
    Append,
    Committed,
    ConversationSet,
    Outcome,
    ReceiptSet,
    Refused,
    SetReceipt,
    WasVoided,
)
from whimbrel.server.problem import problem
from whimbrel.server.settle import NUMBER_MAX

LIMIT = 50


# --- signing in --------------------------------------------------------------------------------


async def health(call: Call) -> Response:
    """Whether the server answers."""
    return json(Health())


async def login(call: Call) -> Response:
    """Sign a device in; ends the session the device had."""
    body: Login = call.body
    client = call.request.client
    address = client.host if client is not None else ""
    return json(_session(await call.service.login(body.username, body.password, body.device, address)))


async def refresh(call: Call) -> Response:
    """Give fresh tokens; the one offered stays good until its successor was used."""
    return json(_session(await call.service.refresh(call.body.refresh_token)))


async def logout(call: Call) -> Response:
    """End the session of a refresh token, which is proof enough."""
    await call.service.logout(call.body.refresh_token)
    return Response(status_code=204)


def _session(tokens: Tokens) -> Session:
    return Session(
        user=tokens.user,
        device=tokens.device,
        access_token=tokens.access,
        expires_in=tokens.access_expires_in_s,
        refresh_token=tokens.refresh,
    )


# --- conversations and members -----------------------------------------------------------------


async def list_conversations(call: Call) -> Response:
    """The conversations of which the user is a member."""
    return json(Conversations(conversations=tuple(call.service.ledger.conversations(call.identity.user))))


async def create_conversation(call: Call) -> Response:
    """Create a conversation; the creator is a member."""
    body: NewConversation = call.body
    request = p.Call(
        id="",
        op="create",
        # Without an id the caller cannot repeat the call, so nothing need be derived from it.
        conversation=body.id or secrets.token_hex(13),
        title=body.title,
        members=body.members,
    )
    return await _change(call, request, 201)


async def get_conversation(call: Call) -> Response:
    """One conversation."""
    return json(_conversation(call))


async def list_members(call: Call) -> Response:
    """Its present members."""
    return json(Members(members=_conversation(call).members))


async def add_member(call: Call) -> Response:
    """Add a member, who sees what comes from then on."""
    request = p.Call(id="", op="add", conversation=call.path("conversation"), user=call.body.user)
    return await _change(call, request, 200)


async def remove_member(call: Call) -> Response:
    """Remove a member, or leave."""
    request = p.Call(id="", op="remove", conversation=call.path("conversation"), user=call.path("user"))
    return await _change(call, request, 200)


def _conversation(call: Call) -> p.ConversationInfo:
    """Give the conversation if the caller is a member. Raises ``NotFound``."""
    # As little work for who is no member as for what does not exist, however many members there are.
    head = call.service.ledger.head(call.identity.user, call.path("conversation"), 0)
    if head is None:
        raise errors.NotFound("no such conversation")
    return p.ConversationInfo(
        id=head.conversation,
        title=head.title or "",
        epoch=head.epoch,
        seq=head.seq,
        floor=head.floor,
        members=head.members or (),
    )


async def _change(call: Call, request: p.Call, status: int) -> Response:
    if wait_s := call.service.gateway.charge(call.identity.user):
        return problem("rate_limited", "too fast", retry_after_s=wait_s)
    known = await call.service.known_users({*request.members, request.user} - {""})
    operation = o.operation_of(request, call.identity, lambda names: known & set(names))
    if isinstance(operation, Refused):
        return _refused(operation)
    outcome = await call.service.gateway.carry_out(operation)
    if isinstance(outcome, ConversationSet):
        return json(outcome.info, status)
    return _refused(outcome)


def _refused(outcome: Outcome) -> Response:
    assert isinstance(outcome, Refused), "nothing else is left"
    if outcome.code == "not_found":
        return problem("not_found", "no such conversation or user")
    return problem(outcome.code, outcome.text)


# --- messages and receipts ---------------------------------------------------------------------


async def buffer_message(call: Call) -> Response:
    """Send a message: settled, once, when this answers. Asking again gives the same answer."""
    body: NewMessage = call.body
    user = call.identity.user
    wait_s = call.service.gateway.charge(user)
    if wait_s:
        return problem("rate_limited", "too fast", final=False, retry_after_s=wait_s)
    send = p.Send(conversation=call.path("conversation"), **msgspec.structs.asdict(body))
    outcome = await call.service.gateway.carry_out(Append(user=user, device=call.identity.device, send=send))
    if isinstance(outcome, Committed):
        event = outcome.event
        return json(
            Buffered(
                id=event.id,
                server_id=event.id,
                conversation=event.conversation,
                stream=send.stream,
                n=send.n,
                epoch=event.epoch,
                seq=event.seq,
                at=event.at,
            )
        )
    if isinstance(outcome, Ahead):
        return problem("out_of_order", "an earlier number is missing", expected=outcome.expected, final=False)
    if isinstance(outcome, WasVoided):
        return problem(outcome.code or "voided", outcome.text or outcome.reason, final=True)
    assert isinstance(outcome, Refused), "a send settles no other way"
    return problem(outcome.code, outcome.text, final=False)


async def get_messages(call: Call) -> Response:
    """Entries of the log, in order."""
    user, conversation = call.identity.user, call.path("conversation")
    ledger = call.service.ledger
    limit = call.number("limit", LIMIT, 1, p.PAGE_MAX)
    downwards = "before" in call.request.query_params
    before = call.number("before", 0, 1, NUMBER_MAX + 1) if downwards else None
    page = ledger.page(user, conversation, since=_since(call), before=before, limit=limit)
    if page is None:
        raise errors.NotFound("no such conversation")
    if page.events:
        cursor = page.events[0].seq if downwards else page.events[-1].seq
    else:
        cursor = before if before is not None else max(page.since, page.floor)
    return json(
        Messages(
            conversation=page.conversation,
            epoch=page.epoch,
            messages=page.events,
            cursor=cursor,
            head=page.head,
            floor=page.floor,
        )
    )


def _since(call: Call) -> int:
    text = call.request.query_params.get("since", "")
    if not text or (text.isascii() and text.isdecimal()):
        return call.number("since", 0, 0, NUMBER_MAX) if text else 0
    seq = call.service.ledger.find(call.identity.user, call.path("conversation"), text)
    if seq is None:
        raise errors.NotFound("no such conversation or message")
    return seq


async def post_receipts(call: Call) -> Response:
    """Say how far this user has received and read; gives the merged state."""
    body: Receipts = call.body
    if not (0 <= body.received <= NUMBER_MAX and 0 <= body.read <= NUMBER_MAX):
        raise errors.InvalidRequest("received and read are positions in the log")
    outcome = await call.service.gateway.carry_out(
        SetReceipt(
            user=call.identity.user,
            conversation=call.path("conversation"),
            received=body.received,
            read=body.read,
        )
    )
    if isinstance(outcome, ReceiptSet):
        return json(Receipts(received=outcome.received, read=outcome.read))
    return _refused(outcome)


_CONVERSATION = "/api/conversations/{conversation}"

ROUTES = (
    Route(
        method="GET",
        path="/api/health",
        name="health",
        handler=health,
        answer=Health,
        public=True,
    ),
    Route(
        method="POST",
        path="/api/auth/login",
        name="login",
        handler=login,
        body=Login,
        answer=Session,
        problems=(400, 401, 409, 413, 429, 503),
        public=True,
    ),
    Route(
        method="POST",
        path="/api/auth/refresh",
        name="refresh",
        handler=refresh,
        body=RefreshToken,
        answer=Session,
        problems=(400, 401, 413, 503),
        public=True,
    ),
    Route(
        method="POST",
        path="/api/auth/logout",
        name="logout",
        handler=logout,
        body=RefreshToken,
        status=204,
        problems=(400, 413, 503),
        public=True,
    ),
    Route(
        method="GET",
        path="/api/conversations",
        name="list_conversations",
        handler=list_conversations,
        answer=Conversations,
        problems=(401, 503),
    ),
    Route(
        method="POST",
        path="/api/conversations",
        name="create_conversation",
        handler=create_conversation,
        body=NewConversation,
        body_bytes_max=256 * 1024,
        answer=p.ConversationInfo,
        status=201,
        problems=(400, 401, 404, 409, 413, 429, 503),
    ),
    Route(
        method="GET",
        path=_CONVERSATION,
        name="get_conversation",
        handler=get_conversation,
        answer=p.ConversationInfo,
        problems=(401, 404, 503),
    ),
    Route(
        method="GET",
        path=_CONVERSATION + "/members",
        name="list_members",
        handler=list_members,
        answer=Members,
        problems=(401, 404, 503),
    ),
    Route(
        method="POST",
        path=_CONVERSATION + "/members",
        name="add_member",
        handler=add_member,
        body=NewMember,
        answer=p.ConversationInfo,
        problems=(400, 401, 404, 413, 429, 503),
    ),
    Route(
        method="DELETE",
        path=_CONVERSATION + "/members/{user}",
        name="remove_member",
        handler=remove_member,
        answer=p.ConversationInfo,
        problems=(401, 404, 429, 503),
    ),
    Route(
        method="POST",
        path=_CONVERSATION + "/messages/buffered",
        name="buffer_message",
        handler=buffer_message,
        body=NewMessage,
        body_bytes_max=p.FRAME_BYTES_MAX,
        answer=Buffered,
        problems=(400, 401, 404, 409, 413, 429, 503),
    ),
    Route(
        method="GET",
        path=_CONVERSATION + "/messages",
        name="get_messages",
        handler=get_messages,
        answer=Messages,
        query=(
            Query(name="since", about="entries after this seq, or after the message with this id"),
            Query(name="before", about="the newest entries below this seq", kind="integer"),
            Query(name="limit", about="1 to 100, 50 if not given", kind="integer"),
        ),
        problems=(400, 401, 404, 503),
    ),
    Route(
        method="POST",
        path=_CONVERSATION + "/receipts",
        name="post_receipts",
        handler=post_receipts,
        body=Receipts,
        answer=Receipts,
        problems=(400, 401, 404, 413, 503),
    ),
)
