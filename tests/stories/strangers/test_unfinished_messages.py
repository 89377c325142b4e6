"""Sockets that begin messages and never end them, and users with more sockets than anybody needs."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.nats.nats_server import NatsServer
from support.played.app import application
from support.processes.child import Process
from support.processes.gateways import Agent, agent, gateway_process
from support.settings import app_token
from support.wait import until
from websockets.asyncio.client import ClientConnection, connect
from websockets.frames import Frame, Opcode

SOCKETS = 120
PIECE = 900_000
TOKEN_OF_A_FLOODER = app_token("flooder", tenant="flood")


@pytest.fixture
async def gateway(private_nats: NatsServer, tmp_path: Path) -> AsyncIterator[Process]:
    async with gateway_process(tmp_path, private_nats.url, max_connections_per_user=SOCKETS) as running:
        yield running
        assert "Traceback" not in running.log


@pytest.fixture
async def caller(private_nats: NatsServer) -> AsyncIterator[Agent]:
    async with agent(private_nats.url) as connected:
        yield connected


async def flooder(gateway: Process) -> ClientConnection:
    socket = await connect(f"{gateway.url}?token={TOKEN_OF_A_FLOODER}", proxy=None, max_size=None)
    await socket.recv()
    return socket


def resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


@pytest.mark.parametrize("opcode_of_pieces", [Opcode.TEXT, Opcode.CONT], ids=["one frame", "fragments"])
async def test_unfinished_messages_are_bounded_and_neighbours_keep_theirs(
    gateway: Process, caller: Agent, opcode_of_pieces: Opcode
) -> None:
    before = resident_bytes(gateway.pid)
    async with contextlib.AsyncExitStack() as stack, application(gateway.url, {"echo": lambda given: given}) as app:
        sockets = [await flooder(gateway) for _ in range(SOCKETS)]
        for socket in sockets:
            stack.callback(socket.transport.abort)
            if opcode_of_pieces is Opcode.CONT:
                socket.transport.write(Frame(Opcode.TEXT, b"", fin=False).serialize(mask=True))
            whole = Frame(opcode_of_pieces, b"x" * PIECE, fin=False).serialize(mask=True)
            socket.transport.write(whole[:-1])  # the frame is not whole either
        await until(lambda: sum(socket.close_code == 4029 for socket in sockets) >= SOCKETS // 3, 20)
        answer = await caller.call(app.client_id, "echo", {"a": 1})
        assert answer.get("result") == {"a": 1}, answer
        large = "y" * 500_000  # a neighbour's message that comes in several reads
        assert (await caller.call(app.client_id, "echo", {"a": large}))["result"] == {"a": large}
        assert resident_bytes(gateway.pid) - before < 160_000_000


async def test_user_with_too_many_connections_is_told_and_others_connect(gateway: Process) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(SOCKETS):
            stack.callback((await flooder(gateway)).transport.abort)
        async with connect(f"{gateway.url}?token={TOKEN_OF_A_FLOODER}", proxy=None) as refused, asyncio.timeout(5):
            await refused.wait_closed()
        assert (refused.close_code, "120 connections" in (refused.close_reason or "")) == (4029, True)
        async with application(gateway.url) as neighbour:
            assert neighbour.client_id
