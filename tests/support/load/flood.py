"""A flood of messages from a process of its own, bounded: `python flood.py PORT SUBJECT SECONDS PER_SECOND`.

It writes the protocol itself, for a client library is too slow for it, and says at the end how many messages it sent.
"""

import asyncio
import itertools
import json
import socket
import sys
import time
from pathlib import Path

PER_SECOND = 20_000
BATCHES_A_SECOND = 100
END_SECONDS = 20  # beyond the flood itself
BODY = b'{"target":"echo","parameters":{}}'
FORGED = (
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhIiwicm9sZSI6ImFnZW50IiwiYXVkIjoiYWdlbnRicmlkZ2UiLCJleHAiOjF9."
)


async def flood(port: int, subject: str, seconds: float, per_second: int = PER_SECOND) -> int:
    """Flood a subject from another process; return how many messages NATS has taken from it."""
    arguments = [sys.executable, str(Path(__file__)), str(port), subject, str(seconds), str(per_second)]
    process = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(seconds + END_SECONDS):
            told, _ = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        raise
    assert process.returncode == 0
    return int(told)


def _kinds(subject: str) -> list[str]:
    """Return the beginnings of the messages: subject, reply and what the header says."""
    inbox = "_INBOX.flood.x"
    return [
        f"PUB {subject}",
        f"PUB {subject} {inbox}",
        f"PUB {subject} not.an.inbox",
        f"Bearer nonsense|HPUB {subject} {inbox}",
        f"Bearer {FORGED}same|HPUB {subject} {inbox}",
        f"Bearer {FORGED}NUMBER|HPUB {subject} {inbox}",
        f"Bearer {FORGED}NUMBER|HPUB {subject} not.an.inbox",
    ]


def _message(kind: str, number: int) -> bytes:
    value, _, start = kind.rpartition("|")
    body = BODY if number % 2 else b"garbage"
    if not value:
        return b"%b %d\r\n%b\r\n" % (start.encode(), len(body), body)
    block = f"NATS/1.0\r\nAuthorization: {value.replace('NUMBER', str(number))}\r\n\r\n".encode()
    return b"%b %d %d\r\n%b%b\r\n" % (start.encode(), len(block), len(block) + len(body), block, body)


def _main(port: int, subject: str, seconds: float, per_second: int) -> None:
    kinds, numbers, sent = itertools.cycle(_kinds(subject)), itertools.count(), 0
    batch_size = per_second // BATCHES_A_SECOND
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.recv(4096)
        sock.sendall(b"CONNECT " + json.dumps({"verbose": False, "headers": True}).encode() + b"\r\n")
        for batch in range(int(seconds * BATCHES_A_SECOND)):
            time.sleep(max(0.0, begun + batch / BATCHES_A_SECOND - time.monotonic()))
            sock.sendall(b"".join(_message(next(kinds), next(numbers)) for _ in range(batch_size)))
            sent += batch_size
        sock.sendall(b"PING\r\n")
        while b"PONG" not in sock.recv(4096):
            pass
    print(sent)  # noqa: T201  what its caller waits for


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))
