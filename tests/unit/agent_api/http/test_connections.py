"""How long an answer may wait to be read, by a clock that the test moves; and whether it may be written whole."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvicorn
from uvicorn.server import ServerState

from agent_api.http.connections import HttpConnection
from agent_api.http.writing import offered
from protocol.errors import Overloaded
from protocol.runtime.connections.bounds import ConnectionBounds
from protocol.runtime.connections.turns import Turns
from protocol.runtime.connections.unread import MIN_READ_BYTES

PATIENCE = 30
MAX_UNREAD_BYTES = 2 << 20


class _Clock:
    """As much of an event loop as this needs."""

    now = 0.0

    def time(self) -> float:
        return self.now


class _Transport:
    """Keeps some bytes that the system has not taken, beside those that it has."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.unwritten = 0
        self.aborted = self.closed = False
        self.written = b""

    def set_protocol(self, protocol: object) -> None:
        """The test calls the connection itself."""

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def get_extra_info(self, name: str) -> Any:
        return self._sock if name == "socket" else None

    def get_write_buffer_size(self) -> int:
        return self.unwritten

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


class _World:
    """A connection whose peer has been written more than it takes."""

    def __init__(self) -> None:
        ours, self.peer = socket.socketpair()
        ours.setblocking(False)
        self.clock, self.transport = _Clock(), _Transport(ours)
        config = uvicorn.Config(cast("Any", None), lifespan="off", log_config=None)
        self.connection = HttpConnection(config, ServerState(), {}, cast("Any", self.clock))
        self.connection.bounds = ConnectionBounds(100, 10, self.clock.time, max_unread_bytes=MAX_UNREAD_BYTES)
        self.connection.connection_made(cast("Any", self.transport))
        self.in_system = ours.send(bytes(1 << 20))
        self.transport.unwritten = 1 << 20
        self.connection.pause_writing()

    def pass_time(self, seconds: float) -> bool:
        """Move the clock and look; return whether the connection is still there."""
        self.clock.now += seconds
        self.connection.abort_where_unread(PATIENCE)
        return not self.transport.aborted


@pytest.fixture
def world() -> Iterator[_World]:
    made = _World()
    yield made
    made.peer.close()
    made.transport.get_extra_info("socket").close()


def test_answer_that_nobody_reads_is_cut_off(world: _World) -> None:
    assert world.pass_time(PATIENCE)
    assert not world.pass_time(0.1)


def test_slow_but_steady_reader_gets_its_answer_however_long_that_takes(world: _World) -> None:
    while world.transport.unwritten > MIN_READ_BYTES:
        world.transport.unwritten -= MIN_READ_BYTES
        assert world.pass_time(PATIENCE * 0.9)
    world.connection.resume_writing()
    assert world.pass_time(PATIENCE * 100)


def test_what_the_peer_takes_from_the_system_counts_too(world: _World) -> None:
    """The system takes more from us only when much of what it has is gone."""
    read = 0
    while read < world.in_system // 2:
        for _ in range(16):
            read += len(world.peer.recv(MIN_READ_BYTES // 4))
        assert world.pass_time(PATIENCE * 0.9)


def test_trickle_is_not_enough(world: _World) -> None:
    for _ in range(100):
        world.transport.unwritten -= 100
        if not world.pass_time(1):
            break
    assert world.clock.now == pytest.approx(PATIENCE + 1)


class _Neighbour:
    """Another tenant's connection, whose peer reads slowly, too."""

    def give_output_up(self) -> None:
        raise AssertionError("it holds less than the other")


def test_answer_that_takes_most_of_the_memory_gives_way_to_a_neighbour(world: _World) -> None:
    world.transport.unwritten = (2 << 20) - 1
    world.connection.pause_writing()
    world.connection.bounds.hold_output(_Neighbour(), None, ("calm", "agent"), 1 << 19)
    assert world.transport.aborted


@pytest.mark.parametrize(
    ("more_body", "others_wait", "is_told"), [(True, False, True), (False, False, False), (True, True, False)]
)
def test_request_that_is_whole_is_not_refused_for_what_waits_behind_it(
    world: _World, more_body: bool, others_wait: bool, is_told: bool
) -> None:
    """Its command may be with the application, and a refusal says that it certainly was not executed."""
    cycle = SimpleNamespace(more_body=more_body, response_started=False)
    world.connection.cycle = cast("Any", cycle)
    world.connection.pipeline.extend([cast("Any", (cycle, None))] * others_wait)
    world.connection.give_up_message(Overloaded("too much waits"))
    assert world.transport.closed
    assert (b"overloaded" in world.transport.written) is is_told


class _Cycle:
    """A request that waits, as far as its connection looks at it."""

    def __init__(self, *, complete: bool = False) -> None:
        self.response_complete = complete
        self.disconnected = False
        self.message_event = asyncio.Event()


def test_requests_of_a_caller_that_has_gone_end_in_turns(world: _World) -> None:
    """Each frees its body and may cancel its command, so a thousand of them must not end in one turn of the loop."""
    scheduled: list[Callable[[], None]] = []
    answering, waiting, arriving = requests = [_Cycle() for _ in range(3)]
    connection = cast("Any", world.connection)
    connection.turns = Turns(scheduled.append, lambda: 0.0)
    connection._answering, connection.cycle = answering, arriving
    connection.pipeline.append((waiting, None))
    connection.connection_lost(None)
    assert all(request.disconnected for request in requests)
    told = []
    while scheduled:
        told.append(sum(request.message_event.is_set() for request in requests))
        scheduled.pop(0)()
    assert told[0] == 0
    assert all(request.message_event.is_set() for request in requests)


def test_request_that_was_answered_is_told_nothing(world: _World) -> None:
    world.connection.cycle = answered = cast("Any", _Cycle(complete=True))
    world.connection.connection_lost(None)
    assert not answered.disconnected


class _Asked(HttpConnection):
    """Keeps its request, instead of having it served."""

    request: Any = None

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self.request = cycle.scope


@pytest.mark.parametrize("fast", [True, False])
def test_answers_are_written_whole_with_fast_paths_only(fast: bool, world: _World) -> None:
    config = uvicorn.Config(cast("Any", None), lifespan="off", log_config=None)
    connection = _Asked(config, ServerState(), {}, cast("Any", world.clock))
    connection.bounds, connection.writes_whole = world.connection.bounds, fast
    connection.turns = Turns(lambda _: None, world.clock.time)
    connection.connection_made(cast("Any", world.transport))
    connection.data_received(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (offered(connection.request) is not None) is fast
