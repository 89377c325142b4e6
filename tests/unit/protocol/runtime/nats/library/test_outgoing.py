"""What is published leaves in order and together, and headers stay lines, whatever they hold."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from protocol.runtime.nats.library.outgoing import MESSAGES_A_WRITE, Outgoing, header_block


class Wire:
    """A client of the library with a socket that keeps each write."""

    def __init__(self) -> None:
        self.writes: list[list[bytes]] = []
        self.is_connected = True
        self.max_payload = 1024
        self.pending_data_size = 0
        self._pending: list[bytes] = []
        self._pending_data_size = 0
        socket = SimpleNamespace(get_write_buffer_size=lambda: 0, is_closing=lambda: False)
        writer = SimpleNamespace(transport=socket)
        self._transport = SimpleNamespace(_io_writer=writer, writelines=self.writes.append)


async def test_turn_leaves_in_writes_of_some_messages_in_order() -> None:
    wire: Any = Wire()
    outbox = Outgoing()
    for number in range(2 * MESSAGES_A_WRITE + 3):
        outbox.post(wire, f"s.{number}", b"x", "", None)
    assert [len(write) for write in wire.writes] == [MESSAGES_A_WRITE, MESSAGES_A_WRITE]
    await asyncio.sleep(0)
    assert len(wire.writes[2]) == 3
    sent = [message.split(b" ")[1] for write in wire.writes for message in write]
    assert sent == [f"s.{number}".encode() for number in range(2 * MESSAGES_A_WRITE + 3)]
    await asyncio.sleep(0)
    assert len(wire.writes) == 3


async def test_whole_writes_leave_nothing_for_the_end_of_the_turn() -> None:
    wire: Any = Wire()
    outbox = Outgoing()
    for turn in range(2):
        for _ in range(MESSAGES_A_WRITE):
            outbox.post(wire, "s", b"x", "", None)
        await asyncio.sleep(0)
        assert [len(write) for write in wire.writes] == [MESSAGES_A_WRITE] * (turn + 1)


def test_headers_travel_as_lines() -> None:
    block = header_block({"Authorization": "Bearer x", "Agentbridge-Progress": "_INBOX.a.p1"})
    assert block == b"NATS/1.0\r\nAuthorization: Bearer x\r\nAgentbridge-Progress: _INBOX.a.p1\r\n\r\n"


@pytest.mark.parametrize("evil", ["x\r\nStatus: 503", "x\nStatus: 503", "\rx\rStatus: 503\n"])
def test_value_cannot_end_its_line(evil: str) -> None:
    head, *lines, last, end = header_block({"Authorization": evil, "More": " é "}).split(b"\r\n")
    assert (head, last, end) == (b"NATS/1.0", b"", b"")
    assert [line.partition(b": ")[0] for line in lines] == [b"Authorization", b"More"]
    assert lines[1] == "More: é".encode()
    assert not set(lines[0]) & set(b"\r\n")
