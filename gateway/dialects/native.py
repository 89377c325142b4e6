"""The native dialect: frames are JSON objects in text frames, and so are our messages; hardly anything to translate.

A message that cannot be read may be the first of another form, which is spoken on the same paths.
"""

from collections.abc import Callable
from typing import Literal

import msgspec

from gateway.dialects.dialect import Clock, Dialect, DialectKind, Said, Switch
from gateway.dialects.json_frames import JsonFrames, component_ids, decoder
from gateway.dialects.published_sdk import PublishedSdk, begins_published_sdk
from protocol import codec
from protocol.errors import InvalidFrame
from protocol.frames import AgentIdentity, CapabilityFrame, CommandFrame, ServerFrame, check_frame
from protocol.runtime.websocket.handshake import SUBPROTOCOL


class Native(JsonFrames):
    """Holds no state, so that all connections share one."""

    def decode(self, data: bytes, *, text: bool) -> tuple[Said]:
        """Return the one frame of a message. Raises `InvalidFrame` or `PayloadTooLarge`, naming the field."""
        if not text:
            raise InvalidFrame("binary frames are not understood: send JSON in text frames")
        try:
            return (check_frame(codec.decode(decoder, data, InvalidFrame)),)
        except InvalidFrame:
            if begins_published_sdk(data):
                return (Switch(PublishedSdk, data),)
            raise

    @property
    def documented(self) -> Callable[[CapabilityFrame, Clock], Dialect]:
        """The form of the original project's protocol document."""
        return Documented


class _DocumentedCommand(msgspec.Struct, frozen=True, tag="command", rename="camel", omit_defaults=True):
    """A command in both forms: `id` and `requestId` are the same, `timestamp` is in milliseconds since 1970."""

    id: str
    timestamp: int
    command: Literal["call", "action"]
    target: str
    parameters: msgspec.Raw
    request_id: str
    timeout_ms: int
    agent: AgentIdentity
    action: str | None = None


class Documented(Native):
    """The dialect of one connection, whose client answers a command by its `id`; all else is native."""

    def __init__(self, frame: CapabilityFrame, clock: Clock) -> None:
        self._components = component_ids(frame)
        self._clock = clock

    def decode(self, data: bytes, *, text: bool) -> tuple[Said]:
        """Return the one frame of a message, and note which components there are."""
        (said,) = super().decode(data, text=text)
        if isinstance(said, CapabilityFrame):
            self._components = component_ids(said)
        return (said,)

    def encode(self, frame: ServerFrame) -> bytes | None:
        """Return the bytes of a text frame."""
        if not isinstance(frame, CommandFrame):
            return codec.encode(frame)
        return codec.encode(
            _DocumentedCommand(
                frame.request_id,
                round(self._clock() * 1000),
                "action" if frame.target in self._components else "call",
                frame.target,
                frame.parameters,
                frame.request_id,
                frame.timeout_ms,
                frame.agent,
                frame.action,
            )
        )


_shared = Native()
NATIVE = DialectKind("native", "/ws", lambda: _shared, SUBPROTOCOL, frozenset({"/", "/agent-bridge"}), resumes=True)
