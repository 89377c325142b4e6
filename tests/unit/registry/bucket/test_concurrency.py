"""Doing the same to many things at once."""

import asyncio

import pytest

from registry.bucket.concurrency import AT_ONCE, for_each


async def test_everything_is_done_but_not_all_at_once() -> None:
    running, most, done = 0, 0, []
    gate = asyncio.Event()

    async def work(item: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == AT_ONCE:
            gate.set()
        await gate.wait()
        running -= 1
        done.append(item)

    async with asyncio.timeout(5):
        await for_each(range(10 * AT_ONCE), work)
    assert (sorted(done), most) == (list(range(10 * AT_ONCE)), AT_ONCE)


async def test_first_error_ends_it_and_is_raised_as_it_is() -> None:
    begun, ended = [], []

    async def work(item: int) -> None:
        begun.append(item)
        try:
            await asyncio.sleep(0)
            if item == 3:
                raise LookupError(item)
            await asyncio.Event().wait()
        finally:
            ended.append(item)

    with pytest.raises(LookupError):
        async with asyncio.timeout(5):
            await for_each(range(10 * AT_ONCE), work)
    assert begun == list(range(AT_ONCE))
    assert sorted(ended) == begun


async def test_nothing_to_do_is_done() -> None:
    done: list[int] = []

    async def work(item: int) -> None:
        done.append(item)

    async with asyncio.timeout(5):
        await for_each([], work)
    assert done == []
