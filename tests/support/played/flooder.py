"""A simulated application that sends as fast as the gateway takes it: a raw socket and two threads, no event loop."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

from support.played.app import ws_url
from support.settings import bearer

CHUNK_BYTES = 256 * 1024
UNMASKED = bytes(4)  # a mask that changes nothing


class Flooder:
    """Keeps the error frames that it hears, and whether the connection has ended."""

    def __init__(self, sock: socket.socket, url: str, token: str) -> None:
        self.errors: list[dict[str, Any]] = []
        self.sent = 0
        self.closed = False
        self._sock = sock
        self._protocol = ClientProtocol(parse_uri(ws_url(url) + "/ws"))
        request = self._protocol.connect()
        request.headers.update(bearer(token))
        self._protocol.send_request(request)
        self._opened = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)

    async def open(self) -> None:
        """Do the handshake and wait for the first frame."""
        self._write()
        self._reader.start()
        assert await asyncio.to_thread(self._opened.wait, 5)

    async def flood(self, frame: dict[str, Any], seconds: float) -> None:
        """Send a frame again and again, until the time is over or the connection is."""
        await asyncio.to_thread(self._flood, _masked(json.dumps(frame).encode()), seconds)

    def _flood(self, message: bytes, seconds: float) -> None:
        at_once = max(1, CHUNK_BYTES // len(message))
        until = time.monotonic() + seconds
        with contextlib.suppress(OSError):
            while time.monotonic() < until:
                self._sock.sendall(message * at_once)
                self.sent += at_once

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._sock.recv(CHUNK_BYTES):
                self._protocol.receive_data(data)
                for event in self._protocol.events_received():
                    if isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                        self._take(json.loads(bytes(event.data)))
                self._write()
        self.closed = True

    def _take(self, frame: dict[str, Any]) -> None:
        self._opened.set()
        if frame["type"] == "error":
            self.errors.append(frame)

    def _write(self) -> None:
        for data in self._protocol.data_to_send():
            with contextlib.suppress(OSError):
                self._sock.sendall(data)


@contextlib.asynccontextmanager
async def flooder(gateway_url: str, token: str) -> AsyncIterator[Flooder]:
    """Connect an application that can flood."""
    parts = urlsplit(ws_url(gateway_url))
    with socket.create_connection((parts.hostname, parts.port)) as sock:
        made = Flooder(sock, gateway_url, token)
        await made.open()
        try:
            yield made
        finally:
            sock.shutdown(socket.SHUT_RDWR)
            await asyncio.to_thread(made._reader.join)


def _masked(payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        return bytes((0x81, 0x80 | size)) + UNMASKED + payload
    if size < 1 << 16:
        return bytes((0x81, 0x80 | 126)) + size.to_bytes(2) + UNMASKED + payload
    return bytes((0x81, 0x80 | 127)) + size.to_bytes(8) + UNMASKED + payload
