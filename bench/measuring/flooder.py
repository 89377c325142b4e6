#!/usr/bin/env python3
"""Flood a port of loopback from some sockets, as fast as they take it: `flooder.py PORT PATH KIND SOCKETS SECONDS`.

The token, if any, is in the variable TOKEN. A hoard, of what is begun and never ended, takes ten times the sockets.
Prints one line of JSON: bytes sent, and sockets that were closed on us.
"""

import base64
import json
import secrets
import selectors
import socket
import sys
import time

from protocol.runtime.settings import environment

BLOCK_BYTES = 64 * 1024
MASK = b"\0\0\0\0"
HANDSHAKE_SECONDS = 10


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """Return a client's frame; its mask of zeros leaves the payload as it is."""
    head = bytes(((0x80 if fin else 0) | opcode,))
    return head + _size(len(payload)) + MASK + payload


def _size(length: int) -> bytes:
    if length < 126:
        return bytes((0x80 | length,))
    return b"\xfe" + length.to_bytes(2) if length < 1 << 16 else b"\xff" + length.to_bytes(8)


def text(**fields: object) -> bytes:
    """Return a text frame that holds a JSON object."""
    return frame(1, json.dumps(fields).encode())


BEGIN_MESSAGE = frame(1, b"x", fin=False)
FRAMES = {
    "continuations": frame(0, fin=False),
    "pings": frame(9),
    "pongs": frame(10),
    "empty texts": frame(1),
    "ping frames": text(type="ping"),
    "events": text(type="event", event="flood", data="x" * 150),
    "large events": text(type="event", event="flood", data="x" * 900_000),
    "late responses": text(type="response", requestId="none", status="success", result=1),
    "bytes": b"",
}
POST = (
    b"POST /api/command HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
    b"%b\r\n"
)
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
HTTP_BLOCKS = {"chunks": b"1\r\nx\r\n", "requests": GET}
LARGE_BYTES = 900_000
PROMISE = (
    b"POST /api/command HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 983040\r\n%b\r\n"
)
# What is begun and never ended: each connection sends this once, and then holds on to what it made the process keep.
HOARDS = {
    "promised bodies": b"",
    "half bodies": b"x" * LARGE_BYTES,
    "half messages": frame(1, b"x" * LARGE_BYTES)[:-1],
    "half heads": b"GET /ws HTTP/1.1\r\nHost: localhost\r\nX: ",
    "silent sockets": b"",
}
WITHOUT_HANDSHAKE = ("half heads", "silent sockets")
BODIES = ("chunks", "promised bodies", "half bodies")
KINDS = (*FRAMES, *HTTP_BLOCKS, *HOARDS)
HOARD_FACTOR = 10  # so many connections of a hoard for each of a flood


def opened(port: int, path: str, kind: str, token: str | None) -> socket.socket:
    """Return a socket that is ready to flood."""
    connection = socket.create_connection(("127.0.0.1", port), HANDSHAKE_SECONDS)
    if kind in WITHOUT_HANDSHAKE:
        connection.setblocking(False)
        return connection
    bearer = f"Authorization: Bearer {token}\r\n" if token else ""
    if kind in HTTP_BLOCKS or kind in BODIES:
        if kind in BODIES:
            connection.sendall((POST if kind == "chunks" else PROMISE) % bearer.encode())
        connection.setblocking(False)
        return connection
    key = base64.b64encode(secrets.token_bytes(16)).decode()
    connection.sendall(
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n{bearer}\r\n".encode()
    )
    answer = connection.recv(4096)
    while token and b"connection" not in answer and path == "/ws":  # else the flood comes before the session
        answer += connection.recv(4096)
    if kind == "continuations":
        connection.sendall(BEGIN_MESSAGE)
    connection.setblocking(False)
    return connection


def _block(unit: bytes) -> bytes:
    return unit * max(1, BLOCK_BYTES // len(unit))


def main() -> None:
    """Flood, and print what came of it."""
    port, path, kind, count, seconds = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5])
    is_hoard = kind in HOARDS
    block = HOARDS[kind] if is_hoard else _block(HTTP_BLOCKS.get(kind) or FRAMES[kind])
    count *= HOARD_FACTOR if is_hoard else 1
    selector = selectors.DefaultSelector()
    rest: dict[socket.socket, bytes] = {}
    sockets: dict[int, socket.socket] = {}
    for _ in range(count):
        connection = opened(port, path, kind, environment().get("TOKEN"))
        selector.register(connection, selectors.EVENT_READ | (selectors.EVENT_WRITE if block else 0))
        rest[connection] = block
        sockets[connection.fileno()] = connection
    until, sent, closed = time.monotonic() + seconds, 0, 0
    while rest and time.monotonic() < until:
        for key, events in selector.select(0.1):
            connection = sockets[key.fd]
            try:
                if events & selectors.EVENT_READ and not connection.recv(BLOCK_BYTES):
                    raise ConnectionResetError
                if events & selectors.EVENT_WRITE:
                    done = connection.send(rest[connection])
                    sent += done
                    rest[connection] = rest[connection][done:] or (b"" if is_hoard else block)
                    if not rest[connection]:
                        selector.modify(connection, selectors.EVENT_READ)
            except BlockingIOError:
                continue
            except OSError:
                closed += 1
                selector.unregister(connection)
                del rest[connection]
    print(json.dumps({"sent": sent, "closed": closed}))


if __name__ == "__main__":
    main()
