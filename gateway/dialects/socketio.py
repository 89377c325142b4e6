"""The Socket.IO dialect: each frame is an event named by its type, `socket.emit("capability", {…}, acknowledged)`.

Engine.IO 4 over the WebSocket transport, Socket.IO 5, the namespace `/`, text packets. A client may bring its token in
CONNECT (`auth: {token}`), so it has a session only from then on. An event with an acknowledgement id is acknowledged
by `{status: "success"}` or `{status: "error", error}`, any other by the events `ack` and `error`.
"""

from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from gateway.dialects import json_frames
from gateway.dialects.dialect import (
    DialectKind,
    Farewell,
    Introduction,
    MessageIds,
    RefusedRequest,
    Reply,
    Said,
    may_return,
)
from gateway.dialects.socketio_packets import MAIN, Packet, PacketType, read_packet, write_packet
from protocol import PROTOCOL_VERSION, codec
from protocol.errors import CloseCode, InvalidFrame
from protocol.frames import (
    AckFrame,
    AgentsFrame,
    AuthFrame,
    CancelFrame,
    CapabilityFrame,
    ClientFrame,
    CommandFrame,
    ConnectionFrame,
    ConnectionLimits,
    ErrorFrame,
    EventFrame,
    MetadataFrame,
    PingFrame,
    PongFrame,
    ProgressFrame,
    ResponseFrame,
    ServerFrame,
    check_frame,
)
from protocol.ids import new_client_id

PING_TIMEOUT_SECONDS = 20
MAX_ACKNOWLEDGEMENTS = 1024  # that a client waits for at once; the oldest is forgotten
MAX_PROBE_BYTES = 64
_OPEN, _CLOSE, _PING, _PONG, _MESSAGE, _NOOP = b"0", b"1", b"2", b"3", b"4", b"6"

_FRAMES: dict[str, type[ClientFrame]] = {
    "capability": CapabilityFrame,
    "metadata": MetadataFrame,
    "response": ResponseFrame,
    "progress": ProgressFrame,
    "event": EventFrame,
    "auth": AuthFrame,
    "ping": PingFrame,
}
_ACKNOWLEDGED_LATER = CapabilityFrame | MetadataFrame | EventFrame | AuthFrame
# `socket.send(frame)` emits "message": its frame says its type itself.
_decoders: dict[str, msgspec.json.Decoder[ClientFrame]] = {
    "message": json_frames.decoder,
    **{name: msgspec.json.Decoder(frame) for name, frame in _FRAMES.items()},
}
_list_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_text_decoder = msgspec.json.Decoder(str)
_NAMES = ", ".join(_FRAMES)


class _Credentials(msgspec.Struct):
    """The `auth` of CONNECT; its other parts are the application's own."""

    token: Any = None


_credentials_decoder = msgspec.json.Decoder(_Credentials)


class SocketIo:
    """The dialect of one connection; before there is a session, its entry; always, its heartbeat."""

    queue = None
    documented = None

    def __init__(self) -> None:
        self.seconds = 0.0
        self._is_connected = False
        self._acknowledgements: dict[str, int] = {}

    # --- before the session ---

    @property
    def entry(self) -> "SocketIo":
        """The packets up to CONNECT."""
        return self

    def hello(self, limits: ConnectionLimits) -> Iterable[bytes]:
        """Return Engine.IO's handshake."""
        self.seconds = limits.ping_interval_seconds
        handshake = {
            "sid": new_client_id(),
            "upgrades": [],
            "pingInterval": round(limits.ping_interval_seconds * 1000),
            "pingTimeout": PING_TIMEOUT_SECONDS * 1000,
            "maxPayload": limits.max_message_bytes,
        }
        return (_OPEN + codec.encode(handshake),)

    def introduce(self, data: bytes, *, text: bool) -> Introduction:
        """Wait for CONNECT to `/`; one to another namespace is refused by CONNECT_ERROR."""
        packet = _packet_of(data, text=text)
        if packet is None:
            return Introduction()
        if packet.type is not PacketType.CONNECT:
            raise InvalidFrame("the first packet of a client is CONNECT")
        if packet.namespace != MAIN:
            return Introduction((_refused_namespace(packet),))
        credentials = codec.decode(_credentials_decoder, packet.json or b"{}", InvalidFrame)
        return Introduction((), True, credentials.token if isinstance(credentials.token, str) else None)

    # --- the session ---

    def opening(self, client_id: str, limits: ConnectionLimits) -> Sequence[bytes]:
        """Return CONNECT, whose `sid` is the client's id, and the event `connection`."""
        self._is_connected = True
        connected = _message(Packet(PacketType.CONNECT, codec.encode({"sid": client_id})))
        return (connected, _event("connection", ConnectionFrame(client_id, PROTOCOL_VERSION, limits)))

    def decode(self, data: bytes, *, text: bool) -> Sequence[Said]:
        """Return the frames of a packet. Raises `InvalidFrame` or `PayloadTooLarge`, naming the field."""
        if text and data[:1] == _CLOSE:
            return (Farewell((), CloseCode.NORMAL, ""),)
        if text and data[:1] == _PING:  # in Engine.IO 4 servers ping; one that a client sends is answered all the same
            return (Reply(_PONG + data[1:MAX_PROBE_BYTES]),)
        packet = _packet_of(data, text=text)
        return () if packet is None else self._said(packet)

    def identify(self, data: bytes) -> MessageIds:
        """Return the ids of a refused event, and remember its acknowledgement."""
        try:
            packet = _packet_of(data, text=True)
            if packet is None or packet.type not in (PacketType.EVENT, PacketType.BINARY_EVENT):
                return MessageIds()
            name, body = _event_of(packet)
        except InvalidFrame:
            return self._ids_within(data)
        found = json_frames.ids_of(body, None if name == "message" else name)
        return found._replace(id=self._expect(packet.ack, found.id))

    def encode(self, frame: ServerFrame) -> bytes:
        """Return an event, or the acknowledgement of the client's event that a frame answers."""
        match frame:
            case CommandFrame():
                return _event("command", frame)
            case AckFrame(id=ident):
                ack = self._acknowledgements.pop(ident, None)
                return _event("ack", frame) if ack is None else _acknowledgement(ack, {"status": "success"})
            case ErrorFrame(id=ident):
                ack = None if ident is None else self._acknowledgements.pop(ident, None)
                return _event("error", frame) if ack is None else _acknowledgement(ack, _fault(frame))
            case CancelFrame():
                return _event("cancel", frame)
            case AgentsFrame():
                return _event("agents", frame)
            case PongFrame():
                return _event("pong", frame)
            case ConnectionFrame():
                return _event("connection", frame)

    def ping(self) -> bytes:
        """Return Engine.IO's ping, which clients answer by its pong."""
        return _PING

    @property
    def heartbeat(self) -> "SocketIo":
        """Pings at regular times: a client without pings takes its connection for lost, whatever it receives."""
        return self

    def beat(self, at: float) -> bytes:
        """Return Engine.IO's ping."""
        return _PING

    def close(self, code: int, reason: str) -> Farewell:
        """Tell a client by CONNECT_ERROR or DISCONNECT that it should not come back by itself; others do."""
        if may_return(code):
            return Farewell((), code, reason)
        if self._is_connected:
            return Farewell((_message(Packet(PacketType.DISCONNECT)),), code, reason)
        refusal = codec.encode({"message": reason, "data": {"code": code}})
        return Farewell((_message(Packet(PacketType.CONNECT_ERROR, refusal)),), code, reason)

    def _said(self, packet: Packet) -> Sequence[Said]:
        if packet.namespace != MAIN:
            if packet.type is PacketType.CONNECT:
                return (Reply(_refused_namespace(packet)),)
            raise InvalidFrame(f"there is no namespace but {MAIN}")
        match packet.type:
            case PacketType.EVENT:
                return self._frames_of(packet)
            case PacketType.DISCONNECT:
                return (Farewell((), CloseCode.NORMAL, ""),)
            case PacketType.BINARY_EVENT | PacketType.BINARY_ACK:
                raise InvalidFrame("binary values are not understood: send JSON")
            case _:
                raise InvalidFrame("the gateway takes EVENT and DISCONNECT once a client is connected")

    def _frames_of(self, packet: Packet) -> Sequence[Said]:
        name, body = _event_of(packet)
        decoder = _decoders.get(name)
        if decoder is None:
            raise InvalidFrame(f"no such event; one of {_NAMES} is expected")
        frame = check_frame(codec.decode(decoder, body, InvalidFrame))
        if packet.ack is None:
            return (frame,)
        if not isinstance(frame, _ACKNOWLEDGED_LATER):
            return (frame, Reply(_acknowledgement(packet.ack, {"status": "success"})))
        ident = self._expect(packet.ack, frame.id)
        return (frame if ident == frame.id else msgspec.structs.replace(frame, id=ident),)

    def _expect(self, ack: int | None, ident: str | None) -> str | None:
        """Remember an acknowledgement id by the frame's own id, which it gets if it has none; return that."""
        if ack is None:
            return ident
        ident = ident or f"ack-{ack}"
        self._acknowledgements[ident] = ack
        if len(self._acknowledgements) > MAX_ACKNOWLEDGEMENTS:
            del self._acknowledgements[next(iter(self._acknowledgements))]
        return ident

    def _ids_within(self, data: bytes) -> MessageIds:
        """Return the ids of an event whose JSON cannot be read: those of the first object in it."""
        name, brace, body = data.partition(b"{")
        is_answer = brace and name.startswith((b"42", b"45")) and b'["response"' in name
        return json_frames.ids_of(brace + body, "response") if is_answer else MessageIds()


def screen(query: str) -> RefusedRequest | None:
    """Refuse all but Engine.IO 4 over a WebSocket, in the words of Engine.IO."""
    parameters = dict(parse_qsl(query))
    if parameters.get("EIO", "4") != "4":
        return _refused_request(5, "Unsupported protocol version")
    if parameters.get("transport", "websocket") != "websocket":
        return _refused_request(0, "Transport unknown")
    return _refused_request(1, "Session ID unknown") if "sid" in parameters else None


def _refused_request(code: int, message: str) -> RefusedRequest:
    return RefusedRequest(400, codec.encode({"code": code, "message": message}))


def _packet_of(data: bytes, *, text: bool) -> Packet | None:
    """Return Socket.IO's packet in one of Engine.IO; None if there is none in it."""
    if not text:
        raise InvalidFrame("binary messages are not understood: send JSON in text packets")
    if data[:1] in (_PONG, _NOOP):
        return None
    if data[:1] != _MESSAGE:
        raise InvalidFrame("not a packet of Engine.IO that a client sends here")
    return read_packet(data[1:])


def _event_of(packet: Packet) -> tuple[str, bytes]:
    """Return the name of an event and its first argument."""
    arguments = codec.decode(_list_decoder, packet.json, InvalidFrame)
    if not arguments:
        raise InvalidFrame("an event begins with its name")
    name = codec.decode(_text_decoder, codec.raw_bytes(arguments[0]), InvalidFrame)
    return name, codec.raw_bytes(arguments[1]) if len(arguments) > 1 else b"{}"


def _message(packet: Packet) -> bytes:
    return _MESSAGE + write_packet(packet)


def _event(name: str, frame: ServerFrame) -> bytes:
    return b'42["%b",%b]' % (name.encode(), codec.encode(frame))


def _acknowledgement(ack: int, value: dict[str, Any]) -> bytes:
    return b"43%d[%b]" % (ack, codec.encode(value))


def _fault(frame: ErrorFrame) -> dict[str, Any]:
    """Return the acknowledgement of a refused frame, in the form of a response."""
    error = {"code": frame.code, "message": frame.message}
    return {"status": "error", "error": error if frame.details is None else {**error, "details": frame.details}}


def _refused_namespace(packet: Packet) -> bytes:
    error = codec.encode({"message": "Invalid namespace"})
    return _message(Packet(PacketType.CONNECT_ERROR, error, packet.namespace))


SOCKETIO = DialectKind("socketio", "/socket.io/", SocketIo, other_paths=frozenset({"/socket.io"}), screen=screen)
