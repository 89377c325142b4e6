"""Readers of events who take nothing, or little, when their token expires or the process must go."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from starlette.types import Message as AsgiMessage
from support.wait import until

from agent_api.events.hub import Hub
from agent_api.events.messages import Message
from agent_api.http.waiting import Waits
from agent_api.routes.events import EventsEndpoint
from protocol.access import ClientView, Principal
from protocol.runtime.clients.denied_agents import DeniedAgents
from protocol.runtime.streams.positions import Position
from protocol.runtime.tokens import Verifier

LARGE, SMALL = b'"' + b"x" * 200_000 + b'"', b'"little"'
AUTHORIZATION = [(b"authorization", b"Bearer x")]


class _Caller:
    """The other side: takes what is sent while it reads, and holds up whoever sends more."""

    def __init__(self) -> None:
        self.reads = asyncio.Event()
        self.reads.set()
        self.messages: list[AsgiMessage] = []
        self.begun_to_send = 0

    async def send(self, message: AsgiMessage) -> None:
        self.begun_to_send += 1
        await self.reads.wait()
        self.messages.append(message)
        if b"event: event" in message.get("body", b""):
            self.reads.clear()

    async def receive(self) -> AsgiMessage:
        await asyncio.Event().wait()
        raise AssertionError

    @property
    def text(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def is_complete(self) -> bool:
        return bool(self.messages) and self.messages[-1].get("more_body") is False


class _Reader:
    """Has the same message again and again."""

    position = Position("1", 0)

    def __init__(self, data: bytes) -> None:
        self._data = data

    @contextlib.asynccontextmanager
    async def while_held(self) -> AsyncIterator[None]:
        yield

    async def next(self) -> list[Message]:
        return [Message(Position("1", 1), "event", "e", ClientView("t", "c", "u", "a"), self._data)]


class _Surroundings:
    """Verifies any token, for as long as is said, and opens one reader."""

    def __init__(self, data: bytes, valid_seconds: float) -> None:
        self._data = data
        self._principal = Principal("a", "agent", "t", time.time() + valid_seconds)

    async def verify(self, token: str) -> Principal:
        return self._principal

    @contextlib.asynccontextmanager
    async def open(self, *_: Any) -> AsyncIterator[_Reader]:
        yield _Reader(self._data)


def serve(
    tasks: asyncio.TaskGroup, waits: Waits, data: bytes, valid_seconds: float
) -> tuple[_Caller, asyncio.Task[None]]:
    context, caller = _Surroundings(data, valid_seconds), _Caller()
    endpoint = EventsEndpoint(cast("Verifier", context), DeniedAgents(lambda: 0), cast("Hub", context), waits)
    scope = {"method": "GET", "headers": AUTHORIZATION, "query_string": b""}
    return caller, tasks.create_task(endpoint(scope, caller.receive, caller.send))


@pytest.mark.parametrize(("data", "last"), [(SMALL, b'"code":"unauthenticated"'), (LARGE, b"xxx")])
async def test_write_that_waits_ends_with_the_token(data: bytes, last: bytes) -> None:
    """What waited is not written afterwards; the last word is, but not in the middle of an event."""
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        caller, served = serve(tasks, Waits(tasks), data, 0.1)
        await until(lambda: caller.begun_to_send == len(caller.messages) + 2)
        taken = len(caller.messages)
        caller.reads.set()
        await served
    assert caller.is_complete
    assert len(caller.messages) == taken + 1
    assert last in caller.text[-300:]


@pytest.mark.parametrize(("data", "last"), [(SMALL, b'"code":"unavailable"'), (LARGE, b"xxx")])
async def test_process_that_must_go_completes_the_answer_of_a_reader_that_took_nothing(
    data: bytes, last: bytes
) -> None:
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        waits = Waits(tasks)
        caller, served = serve(tasks, waits, data, 1e9)
        await until(lambda: caller.begun_to_send == len(caller.messages) + 1)
        waits.give_up()
        await asyncio.sleep(0)
        caller.reads.set()
        await served
    assert caller.is_complete
    assert last in caller.text[-300:]
