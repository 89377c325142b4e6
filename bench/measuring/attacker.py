#!/usr/bin/env python3
"""Attack a bridge from both of its sides: `attacker.py KIND SOCKETS SECONDS`, where KIND is one of `KINDS`.

`bursts` sends commands of 150 KB, sixteen at a time for each socket, to an application that reads 2 MB/s. `large
commands` sends commands of 900 KB, 16 or 40 at a time, to an application that reads them at once. `large answers` sends
as many small ones, whose answers are 900 KB. The others send messages to an application's subject on NATS, or questions
to the registry. Variables say where the bridge is, and hold the tokens. Prints one line of JSON: bytes sent, and
connections that were closed.
"""

import asyncio
import contextlib
import itertools
import json
import socket
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from protocol import subjects
from protocol.runtime.settings import environment

BURST, TEXT_BYTES = 16, 150_000
LARGE_BYTES = 900_000
READ_BYTES_A_SECOND = 2_000_000
RECEIVE_BUFFER_BYTES = 64 * 1024
MESSAGES_A_WRITE = 500
DIFFERENT = 6_000  # messages, which are sent again and again
GOOD_PER_SECOND = 20_000
WRITE_SECONDS = 0.02
FORGED = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIiwicm9sZSI6ImFnZW50IiwiYXVkIjoiYWdlbnRicmlkZ2UiLCJleHAiOjF9.forged"
Sent = dict[str, int]


async def main() -> None:
    """Attack, and print what came of it."""
    kind, sockets, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    given = environment()
    attack = KINDS[kind]
    sent = {"sent": 0, "closed": 0}
    async with application(int(given["SOCKET_PORT"]), given["APP_TOKEN"], kind) as client_id:
        attacks = [attack(client_id, given, sent) for _ in range(sockets)]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), asyncio.TaskGroup() as tasks:
                for each in attacks:
                    tasks.create_task(each)
    print(json.dumps(sent))


@contextlib.asynccontextmanager
async def application(port: int, token: str, kind: str) -> AsyncIterator[str]:
    """Connect the application that is attacked by its own agents, and give its id."""
    is_slow, result = not kind.startswith("large"), "y" * LARGE_BYTES if kind == "large answers" else 1
    sock = socket.socket()
    if is_slow:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    headers = {"Authorization": f"Bearer {token}"}
    options: dict[str, Any] = {
        "additional_headers": headers,
        "max_queue": 1,
        "compression": None,
        "ping_interval": None,
    }
    async with connect(f"ws://127.0.0.1:{port}/ws", sock=sock, **options) as client:
        client_id = json.loads(await client.recv())["clientId"]
        await client.send(json.dumps({"type": "capability", "capabilities": ["echo"], "id": "1"}))
        await client.recv()
        answering = asyncio.ensure_future(answer(client, result, is_slow=is_slow))  # noqa: TID251  ended below
        yield client_id
        answering.cancel()


async def answer(client: ClientConnection, result: object, *, is_slow: bool) -> None:
    """Answer commands; a slow application no faster than it reads them."""
    async for message in client:
        if is_slow:
            await asyncio.sleep(len(message) / READ_BYTES_A_SECOND)
        frame = json.loads(message)
        if frame["type"] == "command":
            response = {"type": "response", "requestId": frame["requestId"], "status": "success", "result": result}
            await client.send(json.dumps(response))


async def bursts(client_id: str, given: dict[str, str], sent: Sent) -> None:
    """Send commands without end, sixteen at a time."""
    await send_bursts(client_id, given, sent, TEXT_BYTES, BURST)


async def large_commands(client_id: str, given: dict[str, str], sent: Sent) -> None:
    """Send commands of 900 KB without end."""
    await send_bursts(client_id, given, sent, LARGE_BYTES, max(1, BURST // int(sys.argv[2])))


async def large_answers(client_id: str, given: dict[str, str], sent: Sent) -> None:
    """Send commands without end whose answers are large."""
    await send_bursts(client_id, given, sent, 1, max(1, BURST // int(sys.argv[2])))


async def send_bursts(client_id: str, given: dict[str, str], sent: Sent, text_bytes: int, at_once: int) -> None:
    """Send commands with a text of this size without end, so many at a time."""
    command = {"target": "echo", "parameters": {"text": "x" * text_bytes}}
    body = json.dumps({"clientId": client_id, "command": command}).encode()
    head = (
        "POST /api/command HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {given['AGENT_TOKEN']}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(at_once):
            tasks.create_task(ask(int(given["API_PORT"]), head + body, sent))


async def ask(port: int, request: bytes, sent: Sent) -> None:
    """Send a request again and again, each when the one before it is answered; connect again if it is closed."""
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            while True:
                writer.write(request)
                await writer.drain()
                sent["sent"] += len(request)
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.partition(b"content-length:")[2].split()[0]))
        sent["closed"] += 1


async def garbage(client_id: str, given: dict[str, str], sent: Sent) -> None:
    """Send messages without a good token to the application's subject as fast as NATS takes them."""
    await publish(given, sent, [message(subjects.command("flood", client_id), number) for number in range(DIFFERENT)])


async def forged(client_id: str, given: dict[str, str], sent: Sent) -> None:
    """Send messages with forged tokens alone, each a new one."""
    subject = subjects.command("flood", client_id)
    await publish(given, sent, [message(subject, 6 * number + 4) for number in range(DIFFERENT)])


async def commands(client_id: str, given: dict[str, str], sent: Sent) -> None:
    """Send commands with a good token over NATS: 20,000 a second of all connections together."""
    one = signed(subjects.command("flood", client_id), given["AGENT_TOKEN"], b'{"target":"echo","parameters":{}}')
    await publish(given, sent, [one], GOOD_PER_SECOND / int(sys.argv[2]))


async def questions(client_id: str, given: dict[str, str], sent: Sent) -> None:
    """Send questions to the registry without a token as fast as NATS takes them."""
    await publish(given, sent, [b"PUB agentbridge.flood.registry.list _INBOX.flood.x 2\r\n{}\r\n"])


async def signed_questions(client_id: str, given: dict[str, str], sent: Sent) -> None:
    """Send questions to the registry with a good token as fast as NATS takes them."""
    await publish(given, sent, [signed(subjects.registry("flood", "list"), given["AGENT_TOKEN"], b"{}")])


async def publish(given: dict[str, str], sent: Sent, messages: list[bytes], per_second: float = 0) -> None:
    """Publish messages over a connection to NATS, again and again; connect again if it is closed."""
    host, _, port = given["NATS_URL"].rpartition("/")[2].partition(":")
    a_write = MESSAGES_A_WRITE if not per_second else max(1, int(per_second * WRITE_SECONDS))
    supply = itertools.cycle(messages)
    blocks = itertools.cycle(
        [b"".join(itertools.islice(supply, a_write)) for _ in range(max(1, len(messages) // a_write))]
    )
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(host, int(port))
            await reader.readline()
            writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n')
            due = time.monotonic()
            for block in blocks:
                writer.write(block)
                await writer.drain()
                sent["sent"] += len(block)
                if per_second:
                    due += WRITE_SECONDS
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
        sent["closed"] += 1


def signed(subject: str, token: str, body: bytes) -> bytes:
    """Return a message with a token."""
    block = f"NATS/1.0\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    return f"HPUB {subject} _INBOX.flood.x {len(block)} {len(block) + len(body)}\r\n".encode() + block + body + b"\r\n"


def message(subject: str, number: int) -> bytes:
    """Return a message without a token, with a forged one, or with a reply that is no inbox."""
    body = b'{"target":"echo"}'
    reply = ("", "_INBOX.flood.x", "not.an.inbox")[number % 3]
    if number % 2:
        return f"PUB {subject} {reply} {len(body)}\r\n".encode() + body + b"\r\n"
    block = f"NATS/1.0\r\nAuthorization: Bearer {FORGED}{number}\r\n\r\n".encode()
    return f"HPUB {subject} {reply} {len(block)} {len(block) + len(body)}\r\n".encode() + block + body + b"\r\n"


KINDS = {
    "bursts": bursts,
    "large commands": large_commands,
    "large answers": large_answers,
    "garbage": garbage,
    "forged tokens": forged,
    "commands": commands,
    "questions": questions,
    "signed questions": signed_questions,
}


if __name__ == "__main__":
    asyncio.run(main())
