"""The effects that the core of an agent's socket returns to its shell, with their commands and streams."""

from typing import NamedTuple

import msgspec

from agent_api.commands.orders import Order
from agent_api.events.filters import Filters
from agent_api.socket.frames import AgentProgressFrame, AskOverviewFrame, FrameToAgent
from protocol.frames import AuthFrame


class OrderInFlight(msgspec.Struct, eq=False):
    """A command that has no response yet. `size` is that of its frame, in bytes."""

    ident: str
    order: Order
    size: int
    started: float
    wants_progress: bool


class Stream(msgspec.Struct, eq=False):
    """A subscription of an agent: messages that pass `filters`, an overview, or else clients."""

    ident: str
    filters: Filters | None = None
    since: str | None = None
    overview: AskOverviewFrame | None = None

    @property
    def tells_clients(self) -> bool:
        """Whether the agent is told which clients there are, change by change."""
        return self.filters is None and self.overview is None


class SendToAgent(NamedTuple):
    """Send a frame to the agent."""

    frame: FrameToAgent


class OfferToAgent(NamedTuple):
    """Send a frame that the agent can do without, unless so much is unread that this would cost it the socket."""

    frame: AgentProgressFrame


class StartOrder(NamedTuple):
    """Execute a command, and report the outcome by `answered` or `failed`."""

    command: OrderInFlight


class StopOrder(NamedTuple):
    """Cancel a command that was started; its outcome is not wanted any more."""

    command: OrderInFlight


class OpenStream(NamedTuple):
    """Begin a stream for an agent, and report its end by `ended`."""

    stream: Stream


class LeaveStream(NamedTuple):
    """Tell it no more."""

    stream: Stream


class VerifyToken(NamedTuple):
    """Verify a fresh token, and report by `refreshed` or `refused`."""

    frame: AuthFrame


class PingAgent(NamedTuple):
    """Send a WebSocket ping, and call `heard` when its pong comes."""


class CloseAgent(NamedTuple):
    """Close the socket."""

    code: int
    reason: str


AgentEffect = (
    SendToAgent
    | OfferToAgent
    | StartOrder
    | StopOrder
    | OpenStream
    | LeaveStream
    | VerifyToken
    | PingAgent
    | CloseAgent
)
