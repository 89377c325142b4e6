"""Work that a signal may end."""

import asyncio
import os
import signal

import pytest

from agentbridge.cli.signals import Signalled, unless_signalled


async def answer(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "done"


async def test_work_without_a_signal_returns_what_it_has_found() -> None:
    assert await unless_signalled(answer(0)) == "done"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_first_signal_counts_and_the_work_may_say_goodbye() -> None:
    said = []

    async def work() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await answer(10)
        except asyncio.CancelledError:
            os.kill(os.getpid(), signal.SIGTERM)
            said.append("goodbye")
            raise

    with pytest.raises(Signalled, match="SIGTERM") as ended:
        await unless_signalled(work())
    assert (ended.value.exit_code, said) == (143, ["goodbye"])


async def test_answer_that_comes_with_the_signal_is_kept() -> None:
    async def work() -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            return await answer(10)
        except asyncio.CancelledError:
            return "in time"

    assert await unless_signalled(work()) == "in time"
    await asyncio.sleep(0)


async def test_failure_is_the_work_s_own() -> None:
    async def work() -> None:
        raise LookupError("nothing there")

    with pytest.raises(LookupError, match="nothing there"):
        await unless_signalled(work())
