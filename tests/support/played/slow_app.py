"""A simulated application that reads slowly: a raw socket with a small receive buffer, read piece by piece."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

from support.played.app import ws_url
from support.settings import app_token, bearer
from support.wait import until

PIECE_BYTES = 64 * 1024


class SlowApp:
    """Offers `count`, answered with the length of its text. Reads only while `reading`, and no faster than told."""

    def __init__(self, sock: socket.socket, url: str, bytes_per_second: float) -> None:
        self.frames: list[dict[str, Any]] = []
        self.closed = False
        self.reading = asyncio.Event()
        self.reading.set()
        self.bytes_per_second = bytes_per_second
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._protocol = ClientProtocol(parse_uri(ws_url(url) + "/ws"))
        self._message = bytearray()

    @property
    def client_id(self) -> str:
        """The id under which agents reach it."""
        return str(self.frames[0]["clientId"])

    async def open(self, token: str) -> None:
        """Do the handshake and register."""
        request = self._protocol.connect()
        request.headers.update(bearer(token))
        self._protocol.send_request(request)
        await self._write()

    async def read(self) -> None:
        """Read until the connection ends."""
        while data := await self._received():
            self._protocol.receive_data(data)
            for event in self._protocol.events_received():
                if isinstance(event, Frame):
                    await self._take(event)
            await self._write()
            await asyncio.sleep(len(data) / self.bytes_per_second)
            await self.reading.wait()
        self.closed = True

    async def send(self, frame: dict[str, Any]) -> None:
        """Send a frame."""
        self._protocol.send_text(json.dumps(frame).encode())
        await self._write()

    async def _received(self) -> bytes:
        try:
            return await self._loop.sock_recv(self._sock, PIECE_BYTES)
        except OSError:
            return b""

    async def _write(self) -> None:
        for data in self._protocol.data_to_send():
            with contextlib.suppress(OSError):
                await self._loop.sock_sendall(self._sock, data)

    async def _take(self, event: Frame) -> None:
        if event.opcode not in (Opcode.TEXT, Opcode.CONT):
            return
        self._message += event.data
        if not event.fin:
            return
        frame = json.loads(self._message)
        self._message.clear()
        self.frames.append(frame)
        if frame["type"] == "command":
            result = {"status": "success", "result": len(frame["parameters"]["text"])}
            await self.send({"type": "response", "requestId": frame["requestId"], **result})


@contextlib.asynccontextmanager
async def slow_application(
    gateway_url: str, bytes_per_second: float, token: str | None = None
) -> AsyncIterator[SlowApp]:
    """Connect an application that reads so many bytes a second at most."""
    parts, loop = urlsplit(ws_url(gateway_url)), asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PIECE_BYTES)
        sock.setblocking(False)
        await loop.sock_connect(sock, (parts.hostname, parts.port))
        app = SlowApp(sock, gateway_url, bytes_per_second)
        await app.open(token or app_token())
        reader = asyncio.create_task(app.read())  # noqa: TID251  cancelled below
        try:
            await until(lambda: app.frames)
            await app.send({"type": "capability", "capabilities": ["count"], "id": "1"})
            await until(lambda: {"type": "ack", "id": "1"} in app.frames)
            yield app
        finally:
            reader.cancel()
            await asyncio.wait([reader])
