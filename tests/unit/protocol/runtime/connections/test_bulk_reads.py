"""Sockets that send much: how many of them are read in one turn of the loop."""

import asyncio
from typing import cast

from protocol.errors import Overloaded
from protocol.runtime.connections.bounds import ConnectionBounds
from protocol.runtime.connections.reads import LARGE_READ_BYTES, SMALL_READ_BYTES
from protocol.runtime.connections.shared import BULK_BYTES, SharedConnection
from protocol.runtime.connections.turns import Turns

FLOODERS = 40


class Transport:
    """A transport whose reading can be paused."""

    def __init__(self) -> None:
        self.reads = True
        self.protocol: asyncio.BufferedProtocol | None = None

    def set_protocol(self, protocol: asyncio.BufferedProtocol) -> None:
        self.protocol = protocol

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True


class Loop:
    """A loop whose clock stands still: only the time that is charged counts."""

    def __init__(self) -> None:
        self.ready: list[object] = []
        self.turns = Turns(self.ready.append, lambda: 0.0)

    def turn(self) -> None:
        ready, self.ready[:] = self.ready[:], []
        for call in ready:
            assert callable(call)
            call()


class Upload(SharedConnection):
    """A connection that takes whatever comes."""

    def __init__(self, turns: Turns, share: tuple[str, str]) -> None:
        self.turns, self.share = turns, share
        self.bounds = ConnectionBounds(100, 100, lambda: 0.0)
        self.socket = Transport()
        self.transport = cast("asyncio.Transport", self.socket)

    def comes(self, size: int) -> None:
        """Take one read of the socket."""
        self._keep(bytes(size))
        if not self._in_turns:
            self._add_to_turns()

    def take_slice(self) -> bool:
        self._drop_input()
        self._in_turns = False
        self._read(True)
        return False

    def next_read(self, comes: int) -> int:
        """Have the transport read as much as the connection's buffer takes; return that."""
        assert self.socket.protocol is not None
        room = len(memoryview(self.socket.protocol.get_buffer(-1)))
        self.socket.protocol.buffer_updated(min(room, comes))
        return min(room, comes)

    def data_received(self, data: bytes) -> None:
        self.comes(len(data))

    def give_up_message(self, error: Overloaded) -> None:
        raise AssertionError(error)

    def cut_off(self) -> None:
        raise AssertionError


def test_one_socket_is_read_in_a_turn_if_many_send_much() -> None:
    loop = Loop()
    uploads = [Upload(loop.turns, ("flood", "u1")) for _ in range(FLOODERS)]
    for upload in uploads:
        upload.comes(BULK_BYTES)
    most = 0
    for _ in range(10 * FLOODERS):
        loop.turn()
        reading = [upload for upload in uploads if upload.socket.reads]
        most = max(most, len(reading))
        for upload in reading:
            upload.comes(BULK_BYTES)
    assert most == 1


def test_neighbour_does_not_wait_for_all_who_came_before() -> None:
    loop = Loop()
    for _ in range(FLOODERS):
        Upload(loop.turns, ("flood", "u1")).comes(BULK_BYTES)
    loop.turn()
    neighbour = Upload(loop.turns, ("calm", "u2"))
    neighbour.comes(BULK_BYTES)
    for _ in range(4):  # its input and its next read, each behind one of the flood
        loop.turn()
    assert neighbour.socket.reads


def test_small_messages_are_read_on_at_once() -> None:
    loop = Loop()
    clients = [Upload(loop.turns, ("calm", "u2")) for _ in range(FLOODERS)]
    for client in clients:
        client.comes(BULK_BYTES - 1)
    loop.turn()
    assert all(client.socket.reads for client in clients)


def test_first_reads_of_all_sockets_are_small_and_one_large_read_follows_in_each_turn() -> None:
    loop = Loop()
    uploads = [Upload(loop.turns, ("flood", "u1")) for _ in range(FLOODERS)]
    for upload in uploads:
        upload.read_little()
    much = 10 * LARGE_READ_BYTES
    assert [upload.next_read(much) for upload in uploads] == FLOODERS * [SMALL_READ_BYTES]
    for _ in range(3 * FLOODERS):
        loop.turn()
        reads = [upload.next_read(much) for upload in uploads if upload.socket.reads]
        assert reads in ([], [LARGE_READ_BYTES])


def test_granted_large_read_is_for_once() -> None:
    loop = Loop()
    upload = Upload(loop.turns, ("calm", "u1"))
    upload.read_little()
    read = []
    for comes in (SMALL_READ_BYTES, SMALL_READ_BYTES - 1, LARGE_READ_BYTES):
        while not upload.socket.reads:
            loop.turn()
        read.append(upload.next_read(comes))
    assert read == [SMALL_READ_BYTES, SMALL_READ_BYTES - 1, SMALL_READ_BYTES]
