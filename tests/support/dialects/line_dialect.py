"""A second dialect, as different from the native one as a small one can be: lines of words, several in one message.

    client → gateway                               gateway → client
    offer JSON-LIST                                you CLIENT-ID MAX-MESSAGE-BYTES
    meta JSON                                      do REQUEST-ID TARGET ACTION TIMEOUT-MS AGENT JSON   (ACTION may be -)
    answer REQUEST-ID JSON                         stop REQUEST-ID REASON
    fail REQUEST-ID SENTENCE                       ok LINE-NUMBER
    step REQUEST-ID PROGRESS                       error CODE LINE-NUMBER REQUEST-ID SENTENCE          (both may be -)
    tell EVENT JSON                                tick
    auth TOKEN                                     bye CODE
    count, tock                                    lines NUMBER          (at once, for `count`)

A line is acknowledged by its number, so the dialect counts lines: it holds state. Its `tick` is answered by `tock`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from gateway.dialects.dialect import DialectKind, Farewell, MessageIds, Reply
from protocol import codec
from protocol.errors import InvalidFrame
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
    PongFrame,
    ProgressFrame,
    ResponseFrame,
    ServerFrame,
    check_frame,
)

_list_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_object_decoder = msgspec.json.Decoder(dict[str, Any])
_any_decoder = msgspec.json.Decoder(msgspec.Raw)


ANSWERS = (b"answer", b"fail")
MAX_LOOKED_AT = 2048


class Lines:
    """The dialect of one connection."""

    entry = None
    heartbeat = None
    queue = None
    documented = None

    def __init__(self) -> None:
        self._count = 0

    def opening(self, client_id: str, limits: ConnectionLimits) -> Iterable[bytes]:
        return [f"you {client_id} {limits.max_message_bytes}".encode()]

    def decode(self, data: bytes, *, text: bool) -> Sequence[ClientFrame | Reply]:
        if not text:
            raise InvalidFrame("send lines in text frames")
        try:
            lines = data.decode().split("\n")
        except UnicodeDecodeError as exc:
            raise InvalidFrame("the message is not valid UTF-8") from exc
        return [item for line in lines for item in self._line(line)]

    def identify(self, data: bytes) -> MessageIds:
        words = [line.split(b" ") for line in data[:MAX_LOOKED_AT].split(b"\n")[:64]]
        answers = [word[1].decode("ascii", "replace") for word in words if word[0] in ANSWERS and len(word) > 1]
        return MessageIds(str(self._count) if self._count else None, [name for name in answers if name.isprintable()])

    def encode(self, frame: ServerFrame) -> bytes | None:
        match frame:
            case CommandFrame():
                words = ["do", frame.request_id, frame.target, frame.action or "-", str(frame.timeout_ms)]
                return b" ".join([*(word.encode() for word in [*words, frame.agent.id]), bytes(frame.parameters)])
            case CancelFrame():
                return f"stop {frame.request_id} {frame.reason}".encode()
            case AckFrame():
                return f"ok {frame.id}".encode()
            case ErrorFrame():
                return f"error {frame.code} {frame.id or '-'} {frame.request_id or '-'} {frame.message}".encode()
            case ConnectionFrame() | AgentsFrame() | PongFrame():
                return None

    def ping(self) -> bytes:
        return b"tick"

    def close(self, code: int, reason: str) -> Farewell:
        return Farewell((f"bye {code}".encode(),), 1000, reason)

    def _line(self, line: str) -> list[ClientFrame | Reply]:
        self._count += 1
        verb, _, rest = line.partition(" ")
        name, _, value = rest.partition(" ")
        match verb:
            case "count":
                return [Reply(f"lines {self._count}".encode())]
            case "tock":
                return []
            case _:
                return [check_frame(self._frame(verb, rest, name, value))]

    def _frame(self, verb: str, rest: str, name: str, value: str) -> ClientFrame:
        match verb:
            case "offer":
                return CapabilityFrame(codec.decode(_list_decoder, rest.encode(), InvalidFrame), id=str(self._count))
            case "meta":
                return MetadataFrame(codec.decode(_object_decoder, rest.encode(), InvalidFrame), str(self._count))
            case "answer":
                return ResponseFrame(name, "success", _raw(value))
            case "fail":
                return ResponseFrame(name, "error", error=value)
            case "step":
                return ProgressFrame(name, _number(value))
            case "tell":
                return EventFrame(_named(name), data=_raw(value), id=str(self._count))
            case "auth":
                return AuthFrame(rest, str(self._count))
            case _:
                raise InvalidFrame("a line begins with offer, meta, answer, fail, step, tell, auth, count or tock")


def _raw(value: str) -> msgspec.Raw:
    return msgspec.Raw(bytes(codec.decode(_any_decoder, value.encode(errors="surrogatepass"), InvalidFrame)))


def _named(name: str) -> str:
    if not name:
        raise InvalidFrame("`tell` needs a name")
    return name


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError as exc:
        raise InvalidFrame("`step` needs a number") from exc


LINES = DialectKind("lines", "/lines", Lines)
