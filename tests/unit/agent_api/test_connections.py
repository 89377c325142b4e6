"""How long an answer may wait to be read, by a clock that the test moves."""

import socket
from collections.abc import Iterator
from typing import Any, cast

import pytest
import uvicorn
from uvicorn.server import ServerState

from agent_api.http.connections import HttpConnection
from agent_api.http.unread import MIN_READ_BYTES

PATIENCE = 30


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
        self.aborted = False

    def get_extra_info(self, name: str) -> Any:
        return self._sock if name == "socket" else None

    def get_write_buffer_size(self) -> int:
        return self.unwritten

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
