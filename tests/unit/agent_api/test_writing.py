"""Writes to a peer: together where they belong together, in order, and before the end."""

import asyncio
from typing import cast

import pytest

from agent_api.writing import JoiningTransport


class _Wire:
    """A transport that keeps what happens to it."""

    def __init__(self) -> None:
        self.log: list[bytes | str] = []

    def write(self, data: bytes) -> None:
        self.log.append(data)

    def get_write_buffer_size(self) -> int:
        return 5

    def write_eof(self) -> None:
        self.log.append("eof")

    def close(self) -> None:
        self.log.append("close")

    def abort(self) -> None:
        self.log.append("abort")

    def is_closing(self) -> bool:
        return "close" in self.log or "abort" in self.log


@pytest.fixture
def wire() -> _Wire:
    return _Wire()


@pytest.fixture
async def joining(wire: _Wire) -> JoiningTransport:
    return JoiningTransport(cast("asyncio.Transport", wire), asyncio.get_running_loop())


async def test_one_turn_is_one_write(wire: _Wire, joining: JoiningTransport) -> None:
    joining.write(b"head ")
    joining.write(b"body")
    assert wire.log == []
    await asyncio.sleep(0)
    assert wire.log == [b"head body"]


async def test_turns_follow_each_other(wire: _Wire, joining: JoiningTransport) -> None:
    joining.write(b"first")
    await asyncio.sleep(0)
    joining.write(b"second")
    await asyncio.sleep(0)
    assert wire.log == [b"first", b"second"]


async def test_all_is_written_before_the_close(wire: _Wire, joining: JoiningTransport) -> None:
    joining.write(b"the last answer")
    joining.close()
    await asyncio.sleep(0)
    assert wire.log == [b"the last answer", "close"]


async def test_nothing_is_written_to_what_was_aborted(wire: _Wire, joining: JoiningTransport) -> None:
    joining.write(b"too late")
    joining.abort()
    await asyncio.sleep(0)
    assert wire.log == ["abort"]
    assert joining.is_closing()


async def test_all_is_written_before_the_end_of_what_is_said(wire: _Wire, joining: JoiningTransport) -> None:
    joining.write(b"goodbye")
    joining.write_eof()
    await asyncio.sleep(0)
    assert wire.log == [b"goodbye", "eof"]


async def test_what_waits_for_the_end_of_the_turn_counts_as_unread(joining: JoiningTransport) -> None:
    joining.write(b"1234")
    assert joining.get_write_buffer_size() == 4 + 5
    await asyncio.sleep(0)
    assert joining.get_write_buffer_size() == 5
