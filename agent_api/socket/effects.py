"""What the core of an agent's socket has its shell do, and the commands and streams that this is about."""

from typing import NamedTuple

import msgspec

from agent_api.commands.bodies import Order
from agent_api.events.filters import Filters
from agent_api.socket.frames import ProgressFrame, ServerFrame
from protocol.frames import AuthFrame


class InFlight(msgspec.Struct, eq=False):
    """A command that has no response yet. `size` is that of its frame, in bytes."""

    ident: str
    order: Order
    size: int
    started: float
    wants_progress: bool


class Stream(msgspec.Struct, eq=False):
    """What an agent is told until it wants that no more: messages that pass `filters`, or else capabilities."""

    ident: str
    filters: Filters | None = None
    since: str | None = None


class Send(NamedTuple):
    """Send a frame to the agent."""

    frame: ServerFrame


class Mention(NamedTuple):
    """Send a frame that the agent can do without, unless so much is unread that this would cost it the socket."""

    frame: ProgressFrame


class Start(NamedTuple):
    """Have a command executed, and report what comes of it by `answered` or `failed`."""

    command: InFlight


class Stop(NamedTuple):
    """Cancel a command that was started; what comes of it is not wanted any more."""

    command: InFlight


class Open(NamedTuple):
    """Begin to tell an agent something, and report by `ended` where that comes to an end."""

    stream: Stream


class Leave(NamedTuple):
    """Tell it no more."""

    stream: Stream


class Verify(NamedTuple):
    """Verify a fresh token, and report by `refreshed` or `refused`."""

    frame: AuthFrame


class Ping(NamedTuple):
    """Send a WebSocket ping, and call `heard` when its pong comes."""


class Close(NamedTuple):
    """Close the socket."""

    code: int
    reason: str


Effect = Send | Mention | Start | Stop | Open | Leave | Verify | Ping | Close
