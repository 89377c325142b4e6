"""Frames of the agents' WebSocket. Text frames, one JSON object each; `type` decides.

Ids are the agent's own choice. Unknown fields in an agent's frame are refused, because a misspelt one would widen its
meaning. Agents must ignore unknown fields of ours, so that we may be newer.
"""

import contextlib
from typing import Annotated, Any, TypeAlias

import msgspec

from agent_api.clients.overview import OverviewQuery
from agent_api.commands.orders import CommandBody
from agent_api.events.filters import MAX_NAMES, MAX_TEXT_CHARS
from agent_api.events.messages import Message
from protocol import codec
from protocol.errors import BridgeError, ErrorBody, InvalidFrame, InvalidRequest
from protocol.frames import MAX_FRAME_ID_CHARS, AckFrame, AuthFrame, PingFrame, PongFrame
from protocol.ids import check_printable

_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_TEXT_CHARS)]

# --- from the agent ---


class AgentCommandFrame(CommandBody, frozen=True, tag="command", kw_only=True):
    """A command, as `POST /api/command` takes it, and the id by which the answer is known.

    Without `progress` the agent is not told how far the command has come.
    """

    id: str
    progress: bool = True


class AgentCancelFrame(msgspec.Struct, frozen=True, tag="cancel", forbid_unknown_fields=True):
    """The answer to this command is not wanted any more."""

    id: str


class SubscribeFrame(
    msgspec.Struct, frozen=True, tag="subscribe", rename="camel", kw_only=True, forbid_unknown_fields=True
):
    """Subscribe to events by name, in which `*` stands for any text, and with `clients` to changes of clients.

    `client_id`, `user` and `app` narrow both; `since` is a position to begin after, instead of now.
    """

    id: str
    events: Annotated[list[_Text], msgspec.Meta(max_length=MAX_NAMES)] = []
    clients: bool = False
    client_id: str | None = None
    user: _Text | None = None
    app: _Text | None = None
    since: Annotated[str, msgspec.Meta(max_length=MAX_TEXT_CHARS)] | None = None


class AskCapabilitiesFrame(msgspec.Struct, frozen=True, tag="capabilities", forbid_unknown_fields=True):
    """Subscribe to the clients and their capabilities: the present ones, then every change."""

    id: str


class UnsubscribeFrame(msgspec.Struct, frozen=True, tag="unsubscribe", forbid_unknown_fields=True):
    """End the subscription of this id."""

    id: str


class AgentAuthFrame(AuthFrame, frozen=True, tag="auth", forbid_unknown_fields=True):
    """A fresh token, as applications send one."""


class AgentPingFrame(PingFrame, frozen=True, tag="ping", forbid_unknown_fields=True):
    """A sign of life, as applications send one."""


AgentFrame: TypeAlias = (
    AgentCommandFrame
    | AgentCancelFrame
    | SubscribeFrame
    | AskCapabilitiesFrame
    | UnsubscribeFrame
    | AgentAuthFrame
    | AgentPingFrame
)

# --- from agents of other dialects ---


class AskOverviewFrame(msgspec.Struct, frozen=True):
    """Ask for an overview of capabilities, once, or with `follow` after each change."""

    id: str
    wanted: OverviewQuery = OverviewQuery()
    follow: bool = False


class SignOfLifeFrame(msgspec.Struct, frozen=True):
    """The agent is there, and wants nothing."""


class LeaveFrame(msgspec.Struct, frozen=True):
    """The agent is about to go."""


AgentSaid: TypeAlias = AgentFrame | AskOverviewFrame | SignOfLifeFrame | LeaveFrame

# --- to the agent ---


class AgentProgressFrame(msgspec.Struct, frozen=True, tag="progress", rename="camel", omit_defaults=True, kw_only=True):
    """A command's progress at a client. `seq` counts from 1 for each client; a missing number was lost."""

    id: str
    client_id: str
    seq: int
    progress: float
    total: float | None = None
    message: str | None = None
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class AgentResponseFrame(msgspec.Struct, frozen=True, tag="response", rename="camel", omit_defaults=True, kw_only=True):
    """The one answer to an accepted command; `results` and `complete` if several clients were asked.

    `duration_ms` is counted at the gateway, or here if no single gateway answered; `replayed` says that the command
    was executed before, under the same idempotency key.
    """

    id: str
    request_id: str
    status: str
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: ErrorBody | None = None
    results: dict[str, msgspec.Raw] | msgspec.UnsetType = msgspec.UNSET
    complete: bool | msgspec.UnsetType = msgspec.UNSET
    client_id: str | None = None
    duration_ms: int
    replayed: bool = False


class SubscribedFrame(msgspec.Struct, frozen=True, tag="ack"):
    """A subscription has begun, with the messages after `position`."""

    id: str
    position: str


class AgentEventFrame(msgspec.Struct, frozen=True, tag="event"):
    """An application's event; `data` is the message as it stands on NATS."""

    id: str
    position: str
    data: msgspec.Raw


class ClientFrame(msgspec.Struct, frozen=True, tag="client"):
    """A client has connected, changed or gone; `data` is the message as it stands on NATS."""

    id: str
    position: str
    data: msgspec.Raw


class GapFrame(msgspec.Struct, frozen=True, tag="gap"):
    """Some messages may have been missed; the subscription goes on after `position`."""

    id: str
    position: str
    reason: str
    message: str


class PositionFrame(msgspec.Struct, frozen=True, tag="position"):
    """Nothing has come for this subscription, but it may now be resumed from here."""

    id: str
    position: str


class CapabilitiesFrame(msgspec.Struct, frozen=True, tag="capabilities"):
    """Clients that have come, changed or gone since the last frame; `added` and `updated` are records.

    With `complete`, the agent's picture is whole; without, more frames follow at once. `revision` counts the frames
    from 1.
    """

    id: str
    revision: int
    complete: bool
    added: list[msgspec.Raw]
    updated: list[msgspec.Raw]
    removed: list[str]


class AgentErrorFrame(msgspec.Struct, frozen=True, tag="error", omit_defaults=True):
    """A frame of the agent's was refused and nothing was done for it, or a subscription has ended."""

    code: str
    message: str
    retryable: bool
    id: str | None = None
    details: Any = None


StreamFrame: TypeAlias = AgentEventFrame | ClientFrame | GapFrame | PositionFrame | CapabilitiesFrame
FrameToAgent: TypeAlias = (
    AgentProgressFrame | AgentResponseFrame | StreamFrame | SubscribedFrame | AckFrame | AgentErrorFrame | PongFrame
)


# --- to agents of other dialects ---


class OverviewFrame(msgspec.Struct, frozen=True):
    """An overview of capabilities. If there are more clients, the next page begins behind `after`."""

    id: str
    functions: list[msgspec.Raw]
    components: list[msgspec.Raw]
    after: str | None


ToldToAgent: TypeAlias = FrameToAgent | OverviewFrame  # the dialects' output


class _IdentifiedAgentFrame(msgspec.Struct):
    id: str | None = None


_decoder: msgspec.json.Decoder[AgentFrame] = msgspec.json.Decoder(AgentFrame)
_id_decoder = msgspec.json.Decoder(_IdentifiedAgentFrame)


def decode(data: bytes, *, text: bool) -> AgentFrame:
    """Decode an agent's frame. Raises `InvalidFrame` with a sentence that names the field."""
    if not text:
        raise InvalidFrame("binary frames are not understood: send JSON in text frames")
    frame = codec.decode(_decoder, data, InvalidFrame)
    ident = getattr(frame, "id", None)
    if ident is not None:
        _check_id(ident)
    return frame


def identify(data: bytes) -> str | None:
    """Return the id of a refused frame for its sender; None if it has no good one."""
    with contextlib.suppress(InvalidFrame):
        ident = codec.decode(_id_decoder, data, InvalidFrame).id
        return None if ident is None else _check_id(ident)
    return None


def encode(frame: FrameToAgent) -> bytes:
    """Return the bytes of a text frame."""
    return codec.encode(frame)


def told(message: Message, ident: str) -> bytes:
    """Return the `event` or `client` frame of a message; all but the id is written once for all subscriptions."""
    return b'{"type":"%b","id":%b,%b' % (message.kind.encode(), codec.encode(ident), message.written(_rest_of))


def refusal(error: BridgeError, ident: str | None) -> AgentErrorFrame:
    """Return the error frame for an agent's frame."""
    return AgentErrorFrame(error.code.value, error.message, error.meaning.retryable, ident, error.details)


def _rest_of(message: Message) -> bytes:
    return b'"position":"%b","data":%b}' % (str(message.position).encode(), message.data)


def _check_id(ident: str) -> str:
    try:
        return check_printable(ident, "`id`", MAX_FRAME_ID_CHARS)
    except InvalidRequest as exc:
        raise InvalidFrame(exc.message) from exc
