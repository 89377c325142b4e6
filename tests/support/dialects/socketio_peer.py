"""The client's side of the Socket.IO dialect, written with its own packets."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.dialects.dialect import Dialect
from protocol.frames import ClientFrame, ConnectionLimits

TOKEN = "a-token"


def begin_socketio(dialect: Dialect, client_id: str, limits: ConnectionLimits) -> Sequence[bytes]:
    """Send CONNECT with a token; return all that is sent up to the session's opening."""
    assert dialect.entry is not None
    hello = list(dialect.entry.hello(limits))
    step = dialect.entry.introduce(b'40{"token":"%b"}' % TOKEN.encode(), text=True)
    assert (step.is_over, step.token) == (True, TOKEN)
    return [*hello, *step.frames, *dialect.opening(client_id, limits)]


def write_socketio(frame: ClientFrame) -> bytes:
    """Return an event without an acknowledgement."""
    fields = msgspec.json.decode(msgspec.json.encode(frame))
    return b"42" + msgspec.json.encode([fields.pop("type"), fields])


def write_unreadable_socketio(request_id: str) -> bytes:
    return b'42["response",{"requestId":"%b","status":"success","result":NaN}]' % request_id.encode()


def read_socketio(data: bytes) -> Sequence[str]:
    """Return the values in the JSON of a packet, at any depth, as words."""
    words: list[str] = []

    def walk(value: Any) -> None:
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            walk(inner)
        if not isinstance(value, dict | list):
            words.append(str(value))

    text = data.decode().lstrip("0123456789")
    walk(json.loads(text) if text else None)
    return words
