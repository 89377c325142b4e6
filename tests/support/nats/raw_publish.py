"""A request on NATS whose header lines are the test's own: the library writes each name once, and no line breaks."""

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

INBOX = "_INBOX.raw"
SECONDS = 5


async def raw_request(nats_url: str, subject: str, headers: list[str], body: bytes) -> dict[str, Any]:
    """Send a request with these header lines and return the answer's body."""
    url = urlsplit(nats_url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    try:
        block = "".join(f"{line}\r\n" for line in ["NATS/1.0", *headers, ""]).encode()
        sizes = f"{len(block)} {len(block) + len(body)}"
        hello = f'CONNECT {{"headers":true,"verbose":false}}\r\nSUB {INBOX} 1\r\nHPUB {subject} {INBOX} {sizes}\r\n'
        writer.write(hello.encode() + block + body + b"\r\n")
        async with asyncio.timeout(SECONDS):
            return await _answer(reader)
    finally:
        writer.close()


async def _answer(reader: asyncio.StreamReader) -> dict[str, Any]:
    """Read up to the first message; return its body."""
    while True:
        words = (await reader.readline()).split()
        if words[:1] in ([b"MSG"], [b"HMSG"]):
            payload = await reader.readexactly(int(words[-1]))
            found: dict[str, Any] = json.loads(payload[int(words[-2]) if words[0] == b"HMSG" else 0 :])
            return found
