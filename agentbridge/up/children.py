"""A child process of `up`: started, awaited until it is ready, restarted when it dies, and stopped. It dies with `up`.

Each child leads a process group of its own, so that Ctrl-C on the terminal reaches `up` alone, which stops its
children in order.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from abc import ABC, abstractmethod
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable
from pathlib import Path

from agentbridge.up import launch
from protocol.runtime.process.life import EXIT_CONFIGURATION

FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 5.0
STABLE_AFTER_SECONDS = 10.0
LAST_WORDS_SECONDS = 1.0
MAX_FAILED_STARTS = 3
MAX_LINE_BYTES = 1024 * 1024

log = logging.getLogger(__name__)


class Child(ABC):
    """A process that runs until it is stopped. `fail` is called if it cannot serve with its configuration."""

    def __init__(self, name: str, fail: Callable[[str], None]) -> None:
        self.name = name
        self.ready = asyncio.Event()
        self._fail = fail
        self._process: Process | None = None
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()
        self._failed_starts: int | None = 0  # None after it has once been ready
        self._pause = FIRST_PAUSE_SECONDS

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command to run; it begins with an absolute path."""

    @abstractmethod
    def environment(self) -> dict[str, str]:
        """Return the environment to run it in."""

    @abstractmethod
    async def follow(self, process: Process) -> None:
        """Read the process's output and call `serves()` once it is ready."""

    def serves(self) -> None:
        """Note that the process is ready."""
        self._failed_starts = None
        self.ready.set()

    async def run(self) -> None:
        """Keep the process running until it is stopped."""
        loop = asyncio.get_running_loop()
        try:
            while not self._stopping.is_set():
                started = loop.time()
                code = await self._run_once()
                if not self._stopping.is_set():
                    await self._after_death(code, loop.time() - started)
        finally:
            self._ended.set()

    async def stop(self, patience_seconds: float) -> None:
        """Ask the process to end, and kill it if it has not ended within `patience_seconds`."""
        self._stopping.set()
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(patience_seconds):
                await self._ended.wait()
        except TimeoutError:
            log.warning("%s has not ended within %g s; killing it", self.name, patience_seconds)
            self._signal(signal.SIGKILL)
            await self._ended.wait()

    async def _run_once(self) -> int:
        process = self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-I", "-S", str(Path(launch.__file__)), str(os.getpid())),
            *self.command(),
            env=self.environment(),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=self._stderr(),
            process_group=0,
            limit=MAX_LINE_BYTES,
        )
        # A stop that came while the process was being started has found nothing to signal.
        if self._stopping.is_set():
            self._signal(signal.SIGTERM)
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(self.follow(process), name=f"follow {self.name}")
            code = await process.wait()
            # Its last lines are still in the pipe. A grandchild may hold the pipe open, so do not wait for its end.
            await asyncio.wait([following], timeout=LAST_WORDS_SECONDS)
            following.cancel()
        self.ready.clear()
        self._process = None
        return code

    def _stderr(self) -> int | None:
        """Return the destination of its log: the terminal."""
        return None

    async def _after_death(self, code: int, lived_seconds: float) -> None:
        """Wait before the next start, longer each time. Give up on a process that has never served and cannot."""
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if self._is_hopeless(code):
            self._fail(f"{self.name} {how}")
            await self._stopping.wait()
            return
        # A process that ran well for a while has another fault than one that fails at each start.
        if lived_seconds >= STABLE_AFTER_SECONDS:
            self._pause = FIRST_PAUSE_SECONDS
        log.warning("%s %s; starting it again in %g s", self.name, how, self._pause)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._pause):
                await self._stopping.wait()
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)

    def _is_hopeless(self, code: int) -> bool:
        """Tell whether to give up: the process was never ready, and its settings are wrong or it failed 3 times."""
        if self._failed_starts is None:
            return False
        self._failed_starts += 1
        return code == EXIT_CONFIGURATION or self._failed_starts >= MAX_FAILED_STARTS

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            # The process may have ended without our having noticed yet.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
