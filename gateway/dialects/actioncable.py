"""The dialect of Rails' ActionCable: frames are the messages of a subscription to `AgentBridgeChannel`.

Subprotocol `actioncable-v1-json`, as Rails 7 and 8 speak it. A client subscribes once, and hears `connection` then. Its
identifier is told back byte for byte, because that is how its library finds the subscription. The library never
answers pings, and takes a connection without them for lost, so that they are a heartbeat here and the WebSocket's own
pings find dead peers.
"""

from collections.abc import Sequence

import msgspec

from gateway.dialects.dialect import DialectKind, Farewell, MessageIds, Reply, Said, may_return
from gateway.dialects.json_frames import ids_of, read_frame
from protocol import PROTOCOL_VERSION, codec
from protocol.errors import CloseCode, InvalidFrame
from protocol.frames import (
    CapabilityFrame,
    ConnectionFrame,
    ConnectionLimits,
    ProgressFrame,
    ResponseFrame,
    ServerFrame,
)

CHANNEL = "AgentBridgeChannel"
SUBPROTOCOL = "actioncable-v1-json"
MAX_IDENTIFIER_BYTES = 1024  # it stands in every message to the client
_REASONS = {
    CloseCode.GOING_AWAY: "server_restart",
    CloseCode.RESTARTING: "server_restart",
    CloseCode.NO_CREDENTIALS: "unauthorized",
    CloseCode.REFUSED: "unauthorized",
}


class _CableCommand(msgspec.Struct):
    """A message of a client's library; `identifier` and `data` are JSON in a text."""

    command: str
    identifier: msgspec.Raw
    data: str = ""


class _Channel(msgspec.Struct):
    """The channel in an identifier; other parameters are the application's own."""

    channel: str = ""


class _CableWelcome(msgspec.Struct, tag="welcome"):
    """The connection is let in."""


class _CableDisconnect(msgspec.Struct, tag="disconnect"):
    """The connection is about to be closed; `reconnect` says whether the library opens another."""

    reason: str
    reconnect: bool


class _CablePing(msgspec.Struct, tag="ping"):
    """A sign of life; `message` is the time in seconds since 1970."""

    message: int


_message_decoder = msgspec.json.Decoder(_CableCommand)
_channel_decoder = msgspec.json.Decoder(_Channel)
_text_decoder = msgspec.json.Decoder(str)
_WELCOME = codec.encode(_CableWelcome())


class Pings:
    """The heartbeat of all connections: clients reconnect that hear nothing for six seconds."""

    seconds = 3.0

    def beat(self, at: float) -> bytes:
        """Return a ping."""
        return codec.encode(_CablePing(int(at)))


_pings = Pings()


class ActionCable:
    """The dialect of one connection.

    After `unsubscribe` the client offers nothing, and may still answer the commands that it has.
    """

    entry = None
    heartbeat = _pings
    queue = None
    documented = None

    def __init__(self) -> None:
        self._connection = b""
        self._identifier = b""  # of the subscription, the last one if there is none any more
        self._is_subscribed = False

    def opening(self, client_id: str, limits: ConnectionLimits) -> tuple[bytes]:
        """Return `welcome`; `connection` follows when the client has subscribed."""
        self._connection = codec.encode(ConnectionFrame(client_id, PROTOCOL_VERSION, limits))
        return (_WELCOME,)

    def decode(self, data: bytes, *, text: bool) -> Sequence[Said]:
        """Return the frame in a command of the library, or the answer to it.

        Raises `InvalidFrame` or `PayloadTooLarge`, naming the field.
        """
        if not text:
            raise InvalidFrame("binary messages are not understood: send JSON in text frames")
        message = _read(data)
        identifier = codec.raw_bytes(message.identifier)
        match message.command:
            case "message":
                return (self._frame(identifier, message.data),)
            case "subscribe":
                return self._subscribe(identifier)
            case "unsubscribe":
                return self._unsubscribe(identifier)
            case _:
                raise InvalidFrame("`command`: one of subscribe, unsubscribe, message is expected")

    def identify(self, data: bytes) -> MessageIds:
        """Return the ids of a refused frame within a message."""
        try:
            message = _read(data)
        except InvalidFrame:
            return MessageIds()
        return ids_of(message.data.encode()) if message.command == "message" else MessageIds()

    def encode(self, frame: ServerFrame) -> bytes | None:
        """Return a message to the subscription; None as long as there has been none."""
        return self._to_subscription(codec.encode(frame)) if self._identifier else None

    def ping(self) -> None:
        """Leave it to the WebSocket: this library answers no ping of its own protocol."""

    def close(self, code: int, reason: str) -> Farewell:
        """Tell the library whether to open another connection, which it does not do by the close code."""
        goodbye = _CableDisconnect(_REASONS.get(code, "remote"), may_return(code))
        return Farewell((codec.encode(goodbye),), code, reason)

    def _frame(self, identifier: bytes, data: str) -> Said:
        if identifier != self._identifier:
            raise InvalidFrame("`identifier`: there is no such subscription")
        frame = read_frame(data.encode())
        if not self._is_subscribed and not isinstance(frame, ResponseFrame | ProgressFrame):
            raise InvalidFrame(f"subscribe to {CHANNEL} first")
        return frame

    def _subscribe(self, identifier: bytes) -> Sequence[Said]:
        """Confirm the one subscription, however often it is asked for; reject any other."""
        is_another = self._is_subscribed and identifier != self._identifier
        if is_another or not _names_channel(identifier):
            return (Reply(b'{"identifier":%b,"type":"reject_subscription"}' % identifier),)
        self._identifier, self._is_subscribed = identifier, True
        confirmed = b'{"identifier":%b,"type":"confirm_subscription"}' % identifier
        return (Reply(confirmed), Reply(self._to_subscription(self._connection)))

    def _unsubscribe(self, identifier: bytes) -> Sequence[Said]:
        if not self._is_subscribed or identifier != self._identifier:
            return ()
        self._is_subscribed = False
        return (CapabilityFrame([]),)

    def _to_subscription(self, message: bytes) -> bytes:
        return b'{"identifier":%b,"message":%b}' % (self._identifier, message)


def _read(data: bytes) -> _CableCommand:
    message = codec.decode(_message_decoder, data, InvalidFrame)
    size = len(memoryview(message.identifier))
    if size > MAX_IDENTIFIER_BYTES:
        raise InvalidFrame(f"`identifier`: at most {MAX_IDENTIFIER_BYTES} bytes")
    if codec.raw_bytes(message.identifier)[:1] != b'"':
        raise InvalidFrame("`identifier`: expected JSON in a text")
    return message


def _names_channel(identifier: bytes) -> bool:
    """Tell whether an identifier is of our channel."""
    try:
        text = codec.decode(_text_decoder, identifier, InvalidFrame)
        return codec.decode(_channel_decoder, text.encode(), InvalidFrame).channel == CHANNEL
    except InvalidFrame:
        return False


ACTIONCABLE = DialectKind("actioncable", "/cable", ActionCable, SUBPROTOCOL)
