"""The seam between the frames of an agent's WebSocket and our own: one dialect object a connection, sans-I/O.

All dialects have the same session behind them, with its bounds, shares, tokens and audit.
"""

from collections.abc import Iterable
from typing import Protocol

from agent_api.socket import frames
from agent_api.socket.frames import AgentSaid, OverviewFrame, ToldToAgent


class AgentDialect(Protocol):
    """The translator of one connection. All bytes are the payloads of text frames."""

    def opening(self) -> Iterable[AgentSaid]:
        """Return the frames that agents of this dialect send implicitly when they connect."""

    def decode(self, data: bytes, *, text: bool) -> AgentSaid:
        """Decode a message. Raises `InvalidFrame` with a sentence that names the field."""

    def identify(self, data: bytes) -> str | None:
        """Return the id of a refused message for its `error` frame, or None if it has no valid one. Raises nothing."""

    def encode(self, frame: ToldToAgent) -> bytes | None:
        """Return the bytes of a frame to the agent; None if the dialect has no word for it."""


class NativeAgents:
    """Our own frames as they are. Holds no state, so that all connections share one."""

    def opening(self) -> tuple[()]:
        """Return nothing: agents ask."""
        return ()

    def decode(self, data: bytes, *, text: bool) -> AgentSaid:
        """Return the frame."""
        return frames.decode(data, text=text)

    def identify(self, data: bytes) -> str | None:
        """Return the frame's id."""
        return frames.identify(data)

    def encode(self, frame: ToldToAgent) -> bytes | None:
        """Return the frame; None for an overview, which nobody can ask for here."""
        return None if isinstance(frame, OverviewFrame) else frames.encode(frame)
