"""Ends a command by a signal in an orderly way: Ctrl-C, `timeout`, or a terminal that is closed."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SHELLS_ADD = 128  # the exit code is 128 plus the signal's number, as in shells

R = TypeVar("R")


class Signalled(Exception):
    """A signal has ended the work."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = SHELLS_ADD + number


async def unless_signalled(work: Coroutine[Any, Any, R]) -> R:
    """Return the result of `work`. Raises `Signalled` if a signal cancelled it.

    Further signals have no effect. A signal that is ignored at the start, as under `nohup`, stays ignored.
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(work, name="until a signal")
    received: list[int] = []

    def end(number: int) -> None:
        received.append(number)
        task.cancel()

    heeded = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    for number in heeded:
        loop.add_signal_handler(number, end, number)
    try:
        await asyncio.wait([task])
    finally:
        for number in heeded:
            loop.remove_signal_handler(number)
    if task.cancelled() and received:
        raise Signalled(received[0])
    return task.result()
