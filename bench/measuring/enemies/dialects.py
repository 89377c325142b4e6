"""Speak a dialect to a port of loopback as an enemy: `dialects.py PORT KIND SOCKETS SECONDS`; KIND is one of `KINDS`.

Each connection introduces itself as clients of its dialect do, with the token in the variable TOKEN, and then sends one
message as fast as it is taken: `bad` kinds one that is refused, `flood` kinds one that is well-formed. Every second one
that is sent away comes back at once with the next message; the others go on sending for as long as they are read.
Prints one line of JSON: bytes sent, and connections that were closed.
"""

import asyncio
import base64
import contextlib
import itertools
import json
import secrets
import sys
from typing import NamedTuple

from measuring.flooder import BLOCK_BYTES, frame
from protocol.runtime.settings import environment

READ_BYTES = 64 * 1024
PATIENCE_SECONDS = 10.0
DEEP, HALF, HUGE_DEEP = "[" * 3000, '{"type":"event","event":"x","data":{"a"', "[" * 900_000
BINARY = b"\x04\x00\xff"
CLOSE_FRAME = b"\x88"  # its first byte, which no text of these dialects holds
AGENTS = "agents of the SDK"
CHANNEL = json.dumps({"channel": "AgentBridgeChannel"})


class Dialect(NamedTuple):
    """How a connection begins, what it then waits for, and the messages that it sends."""

    path: str
    beginning: str
    awaited: bytes
    bad: tuple[str | bytes, ...]
    flood: tuple[str, ...]
    subprotocol: str = ""


def cable(command: str, identifier: str = CHANNEL, data: str = "") -> str:
    """Return a command of ActionCable's."""
    return json.dumps({"command": command, "identifier": identifier, "data": data})


def listing(**more: object) -> str:
    """Return a client's list of capabilities."""
    return json.dumps({"type": "capability", "capabilities": ["add"], "id": "1", **more})


def dialects(token: str) -> dict[str, Dialect]:
    """Return all dialects by their names; the token is for the one that carries it in a message."""
    late = '{"type":"response","requestId":"none","status":"success","result":1}'
    return {
        "native": Dialect(
            "/ws", listing(), b'"ack"', (DEEP, HALF, HUGE_DEEP, BINARY, '{"type":"response","requestId":7}'), (late,)
        ),
        "document": Dialect(
            "/",
            listing(timestamp=1),
            b'"ack"',
            (DEEP, HALF, HUGE_DEEP, BINARY, '{"type":"response","requestId":{}}'),
            (late,),
        ),
        "published_sdk": Dialect(
            "/agent-bridge",
            '{"type":"register_capabilities","functions":[{"name":"add"}],"components":[{"id":"p"}]}',
            b"connection_ack",
            (
                f'{{"type":"update_capabilities","functions":{DEEP}',
                f'{{"type":"update_capabilities","functions":{HUGE_DEEP}',
                '{"type":"function_result","correlationId":"x","success":',
                '{"type":"function_result","correlationId":7,"success":true}',
                BINARY,
            ),
            ('{"type":"function_result","correlationId":"none","success":true}', '{"type":"session"}'),
        ),
        "socketio": Dialect(
            "/socket.io/?EIO=4&transport=websocket",
            f'40{{"token":"{token}"}}',
            b"clientId",
            (
                f"42{DEEP}",
                f"42{HUGE_DEEP}",
                f'42["event",{HALF}',
                '42/admin,["event",{"event":"x"}]',
                "42" + "9" * 5000 + '["event",{"event":"x"}]',
                "42" + "9" * 900_000,
                '451-["event",{"_placeholder":true,"num":0}]',
                BINARY,
            ),
            ('42999999999999999["ping",{}]', "2probe", '43999999999999999["x"]'),
        ),
        "actioncable": Dialect(
            "/cable",
            cable("subscribe"),
            b"confirm_subscription",
            (
                DEEP,
                HUGE_DEEP,
                '{"command":"message","identifier":',
                cable("message", data=HALF),
                cable("message", data=f'{{"type":"event","event":"x","data":{DEEP}'),
                cable("message", '{"channel":"Chat"}', late),
                cable("subscribe", "x" * 5000),
                BINARY,
            ),
            (cable("subscribe"), cable("subscribe", "x" * 900), cable("message", data=late)),
            subprotocol="actioncable-v1-json",
        ),
        AGENTS: Dialect(
            "/agent-bridge",
            '{"type":"query_capabilities","id":"q"}',
            b"capabilities_result",
            (
                DEEP,
                HUGE_DEEP,
                '{"type":"call_function","name"',
                '{"type":"query_capabilities","filters":{"x":1}}',
                '{"type":"call_function","id":"%s","name":"add"}' % ("9" * 5000),
                BINARY,
            ),
            ('{"type":"query_capabilities","id":"q"}', '{"type":"call_function","id":"c","name":"none"}'),
        ),
    }


KINDS = tuple(f"{manner} {name}" for name in dialects("") for manner in ("bad", "flood"))
OF_AGENTS = tuple(kind for kind in KINDS if kind.endswith(AGENTS))


class Enemy:
    """All connections of one kind; each takes the next message."""

    def __init__(self, port: int, kind: str, token: str) -> None:
        self.sent = {"sent": 0, "closed": 0}
        manner, _, name = kind.partition(" ")
        self._port = port
        self._token = token
        self._dialect = dialects(token)[name]
        messages = self._dialect.bad if manner == "bad" else self._dialect.flood
        self._blocks = itertools.cycle([_block(each) for each in messages])
        self._heeds_goodbye = itertools.cycle([True, False])

    async def attack(self) -> None:
        """Connect and send, again and again."""
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                await self._one_connection(next(self._blocks))
            self.sent["closed"] += 1

    async def _one_connection(self, block: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._introduce(reader, writer)
            goodbye = CLOSE_FRAME if next(self._heeds_goodbye) else None
            reading = asyncio.ensure_future(_read(reader, goodbye))  # noqa: TID251  ends with the connection
            while not reading.done():
                writer.write(block)
                await writer.drain()
                self.sent["sent"] += len(block)
        finally:
            writer.transport.abort()

    async def _introduce(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Open a WebSocket, and begin as a client that means well; return when it has been let in."""
        offered = ", ".join(filter(None, (self._dialect.subprotocol, f"bearer.{self._token}")))
        head = (
            f"GET {self._dialect.path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {base64.b64encode(secrets.token_bytes(16)).decode()}\r\n"
            f"Sec-WebSocket-Protocol: {offered}\r\n\r\n"
        )
        writer.write(head.encode())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(frame(1, self._dialect.beginning.encode()))
        await reader.readuntil(self._dialect.awaited)


async def _read(reader: asyncio.StreamReader, goodbye: bytes | None) -> None:
    """Read to a goodbye or to the end, so that nobody can be cut off for what it leaves unread."""
    with contextlib.suppress(OSError):
        while data := await reader.read(READ_BYTES):
            if goodbye is not None and goodbye in data:
                return


def _block(message: str | bytes) -> bytes:
    """Return a message as frames, many if it is short."""
    one = frame(1, message.encode()) if isinstance(message, str) else frame(2, message)
    return one * max(1, BLOCK_BYTES // len(one))


async def main() -> None:
    """Attack, and print what came of it."""
    port, kind, sockets, seconds = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    enemy = Enemy(port, kind, environment()["TOKEN"])
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as tasks:
            for _ in range(sockets):
                tasks.create_task(enemy.attack())
    print(json.dumps(enemy.sent))


if __name__ == "__main__":
    asyncio.run(main())
