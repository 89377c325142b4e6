"""What may wait for a peer of a WebSocket, by a transport that the test reads from and a clock that it moves."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from protocol.errors import Overloaded
from protocol.runtime.connections.bounds import ConnectionBounds
from protocol.runtime.connections.unread import MIN_READ_BYTES
from protocol.runtime.websocket.connection import SLOW_SECONDS, BoundedSocket

BUFFER = 1 << 20
MAX_UNREAD_BYTES = 10 * BUFFER


class _Transport:
    """Keeps what is written until the test takes it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.unread = 0
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.unread += len(data)

    def get_write_buffer_size(self) -> int:
        return self.unread

    def get_extra_info(self, name: str) -> Any:
        return self._sock if name == "socket" else None

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


class _Loop:
    """As much of an event loop as this needs."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def create_future(self) -> asyncio.Future[float]:
        return asyncio.get_running_loop().create_future()


class Holder:
    """Another connection with unread output."""

    def __init__(self) -> None:
        self.cut_off = False

    def give_output_up(self) -> None:
        self.cut_off = True


class _Peer:
    """A socket whose peer reads what the test says."""

    def __init__(self, sock: socket.socket) -> None:
        self.transport = _Transport(sock)
        self.loop = _Loop()
        self.socket = BoundedSocket(ServerProtocol(state=OPEN), cast("Any", None))
        self.socket.transport = cast("asyncio.Transport", self.transport)
        self.socket.loop = cast("asyncio.AbstractEventLoop", self.loop)
        self.socket.send_buffer_bytes = BUFFER
        self.socket.bounds = ConnectionBounds(100, 10, self.loop.time, max_unread_bytes=MAX_UNREAD_BYTES)

    def write(self, size: int) -> bool:
        """Write so much; return whether the connection is still there."""
        self.socket.send_text(bytes(size))
        if self.transport.unread > MIN_READ_BYTES and not self.socket.paused:
            self.socket.pause_writing()
        return not self.transport.aborted

    def take(self, size: int) -> None:
        self.transport.unread -= size

    def pass_time(self, seconds: float = 1) -> bool:
        """Move the clock and look; return whether the peer has taken anything."""
        self.loop.now += seconds
        return self.socket.check_reading()


@pytest.fixture
async def peer() -> AsyncIterator[_Peer]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield _Peer(ours)


async def test_largest_message_fits_an_empty_buffer_and_nothing_more_does(peer: _Peer) -> None:
    assert peer.socket.has_room(8 * BUFFER)
    assert peer.write(8 * BUFFER)
    assert not peer.socket.has_room(1)


async def test_room_ends_where_the_buffer_does(peer: _Peer) -> None:
    peer.write(1000)
    left = BUFFER - peer.transport.unread
    assert peer.socket.has_room(left)
    assert not peer.socket.has_room(left + 1)


async def test_full_buffer_has_as_much_room_again_for_what_is_always_written(peer: _Peer) -> None:
    for _ in range(16):
        peer.write(BUFFER // 16)
    assert not peer.socket.has_room(1)
    for _ in range(15):
        assert peer.write(BUFFER // 16)
    assert not all(peer.write(BUFFER // 16) for _ in range(3))
    assert peer.socket.too_slow


async def test_large_message_leaves_room_for_what_is_always_written(peer: _Peer) -> None:
    peer.write(8 * BUFFER)
    assert all(peer.write(BUFFER // 16) for _ in range(30))
    assert not all(peer.write(BUFFER // 16) for _ in range(4))


async def test_full_buffer_refuses_the_next_command(peer: _Peer) -> None:
    peer.socket.require_room(BUFFER)
    peer.write(BUFFER)
    with pytest.raises(Overloaded):
        peer.socket.require_room(1)


async def test_users_who_leave_their_share_unread_get_no_more_commands(peer: _Peer) -> None:
    neighbour = Holder()
    peer.socket.share = ("flood", "user")
    peer.socket.bounds.hold_output(neighbour, None, ("calm", "user"), 1)
    peer.write(5 * BUFFER)
    with pytest.raises(Overloaded) as refused:
        peer.socket.bounds.require_output_share(peer.socket.share)
    assert refused.value.details == {"limit": "agent"}
    peer.socket.bounds.require_output_share(("calm", "user"))
    peer.take(5 * BUFFER)
    peer.socket.resume_writing()
    peer.socket.require_room(1)


async def test_largest_holder_of_unread_output_is_cut_off_for_a_neighbour(peer: _Peer) -> None:
    peer.socket.share = ("flood", "user")
    peer.write(9 * BUFFER)
    neighbour = Holder()
    piece = peer.socket.bounds.hold_output(neighbour, None, ("calm", "user"), 2 * BUFFER)
    assert peer.transport.aborted
    assert piece is not None
    assert piece.held
    assert not neighbour.cut_off


async def test_peer_that_takes_nothing_is_cut_off(peer: _Peer) -> None:
    peer.write(100_000)
    assert not peer.pass_time(SLOW_SECONDS)
    assert not peer.transport.aborted
    assert not peer.pass_time()
    assert peer.socket.too_slow


async def test_peer_that_takes_a_kilobyte_a_second_stays(peer: _Peer) -> None:
    peer.write(200_000)
    for _ in range(100):
        peer.take(1100)
        assert peer.pass_time()
    assert not peer.transport.aborted


async def test_what_is_written_meanwhile_does_not_hide_what_is_taken(peer: _Peer) -> None:
    peer.write(100_000)
    for _ in range(100):
        peer.take(1100)
        peer.write(1200)
        assert peer.pass_time()
    assert not peer.transport.aborted


async def test_ping_that_waits_behind_much_makes_reading_count(peer: _Peer) -> None:
    peer.transport.unread = 100_000
    peer.socket.send_ping(lambda: None)
    peer.take(1000)
    assert peer.pass_time()
    assert not peer.pass_time()


async def test_what_is_taken_of_a_ping_alone_does_not_count(peer: _Peer) -> None:
    peer.socket.send_ping(lambda: None)
    peer.transport.unread = 0
    assert not peer.pass_time()


async def test_peer_that_has_read_nearly_all_is_left_to_the_keepalive(peer: _Peer) -> None:
    peer.write(100_000)
    peer.take(90_000)
    assert peer.pass_time()
    assert not peer.pass_time(100)
    assert not peer.transport.aborted
