"""Real processes of ours: started, spoken to by signals, and ended with the test."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from protocol.runtime.settings import PREFIX
from support.fork_server import Forked, fork_server
from support.wait import until

START_SECONDS = 20
END_SECONDS = 20
FORKED = ("gateway", "agent_api", "registry")


def freeze(process: subprocess.Popen[bytes] | Forked) -> None:
    """Stop a process from running; return when each of its threads, on whichever core, has."""
    process.send_signal(signal.SIGSTOP)
    if isinstance(process, Forked):
        process.wait_until_stopped()
    else:
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)


class Process:
    """`python -m MODULE` with an environment of its own; what it prints goes to files in `folder`.

    Our three kinds of process come from fork servers, which saves their imports. One with another command, or with
    variables that the interpreter itself reads, is started by its command.
    """

    def __init__(self, module: str, folder: Path, environment: dict[str, str], *arguments: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.module = module
        self.command = self._by_name = [sys.executable, "-m", module, *arguments]
        self.environment = environment
        self._stdout, self._stderr = folder / f"{module}.out", folder / f"{module}.err"
        self._popen: subprocess.Popen[bytes] | Forked | None = None
        self._report: dict[str, Any] = {}

    async def start(self) -> "Process":
        """Start it and wait for the line that says it serves."""
        self.launch()
        self._report = await until(self._said, START_SECONDS)
        return self

    def launch(self) -> "Process":
        """Start it without waiting for anything."""
        with self._stdout.open("wb") as out, self._stderr.open("wb") as err:
            if self._can_be_forked:
                self._popen = fork_server(self.module).start(
                    self.command[3:], self.environment, self._stdout, self._stderr
                )
            else:
                self._popen = subprocess.Popen(
                    self.command, stdout=out, stderr=err, env=self.environment, start_new_session=True
                )
        return self

    @property
    def url(self) -> str:
        """Where it said that it listens."""
        return str(self._report["url"])

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._popen is not None
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def out(self) -> str:
        """What it has printed to standard output."""
        return self._stdout.read_text()

    @property
    def log(self) -> str:
        """What it has printed to standard error."""
        return self._stderr.read_text()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._popen is not None
        self._popen.send_signal(number)

    def freeze(self) -> None:
        """Stop it from running without closing a socket."""
        assert self._popen is not None
        freeze(self._popen)

    def thaw(self) -> None:
        """Let it run on."""
        self.signal(signal.SIGCONT)

    async def terminate(self) -> int:
        """Ask it to end and return its exit code."""
        self.signal(signal.SIGTERM)
        return await self.ended()

    async def kill(self) -> int:
        """End it as a crash does."""
        self.signal(signal.SIGKILL)
        return await self.ended()

    async def ended(self, seconds: float = END_SECONDS) -> int:
        """Wait for its end and return its exit code."""
        popen = self._popen
        assert popen is not None
        await until(lambda: popen.poll() is not None, seconds)
        code = popen.poll()
        assert code is not None
        return code

    def end(self) -> None:
        """Leave nothing behind, whatever state it is in."""
        if self._popen is not None and self._popen.poll() is None:
            self._popen.kill()
            self._popen.wait(END_SECONDS)

    @property
    def _can_be_forked(self) -> bool:
        ours = all(name.startswith(PREFIX) for name in self.environment)
        return self.module in FORKED and self.command == self._by_name and ours

    def _said(self) -> dict[str, Any]:
        assert self.running, f"{self.module} ended before it served: {self.log}"
        line, complete, _ = self.out.partition("\n")
        said: dict[str, Any] = json.loads(line) if complete else {}
        return said
