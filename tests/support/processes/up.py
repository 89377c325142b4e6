"""A real `agentbridge up`, the commands that people type beside it, and the process tree that it leaves."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from signal import Handlers
from types import MappingProxyType
from typing import Any, NamedTuple

from protocol.runtime.tokens import mint
from support.wait import POLL_SECONDS, until

READY_SECONDS = 30
END_SECONDS = 30
COMMAND_SECONDS = 20
TOKEN_SECONDS = 600
PATH = os.environ["PATH"]  # noqa: TID251  children need it, and nothing else of this process's environment
# What a terminal does for the shell that it starts: it becomes the session's own, so that ^C is a signal.
ON_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)
# What a shell or `nohup` decides for what it starts, and children inherit: whether a hangup ends them.
ON_HANGUP = (
    "import os, signal, sys; signal.signal(signal.SIGHUP, int(sys.argv[1])); os.execv(sys.argv[2], sys.argv[2:])"
)


class Ended(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str


class Up:
    """`agentbridge up` in a folder of its own, on free ports."""

    def __init__(self, folder: Path, **settings: object) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        known = {"data_dir": folder / "data", "api_port": 0, "gateway_port": 0}
        variables = {f"AGENTBRIDGE_{name.upper()}": str(value) for name, value in (known | settings).items()}
        self.environment = {"PATH": PATH} | variables
        self.descendants: set[int] = set()
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id of `up` itself."""
        assert self._popen is not None
        return self._popen.pid

    @property
    def log(self) -> str:
        """What it and its children have logged."""
        return (self.folder / "up.err").read_text()

    @property
    def out(self) -> str:
        """What it has printed."""
        return (self.folder / "up.out").read_text()

    @property
    def run_file(self) -> dict[str, Any]:
        """What it tells other commands; empty where nothing is there."""
        path = self.folder / "data/run.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def launch(self) -> None:
        """Start it without waiting."""
        with (self.folder / "up.out").open("wb") as out, (self.folder / "up.err").open("ab") as err:
            command = [sys.executable, "-m", "agentbridge", "up"]
            self._popen = subprocess.Popen(command, stdout=out, stderr=err, env=self.environment, cwd=self.folder)

    def launch_on_terminal(self) -> int:
        """Start it as the foreground job of a terminal of its own; return the terminal's other end."""
        ours, its = os.openpty()
        command = [sys.executable, "-c", ON_TERMINAL, sys.executable, "-m", "agentbridge", "up"]
        self._popen = subprocess.Popen(
            command, stdin=its, stdout=its, stderr=its, env=self.environment, cwd=self.folder, start_new_session=True
        )
        os.close(its)
        return ours

    def start_blocking(self) -> None:
        """Start it and wait until it is ready, where no event loop runs."""
        self.launch()
        give_up = time.monotonic() + READY_SECONDS
        while not self._is_ready():
            assert time.monotonic() < give_up, self.log
            time.sleep(POLL_SECONDS)

    async def start(self) -> None:
        """Start it and wait until it is ready."""
        self.launch()
        await until(self._is_ready, READY_SECONDS)

    def child(self, name: str) -> int:
        """Return the process id of a child: `nats-server`, `registry`, `gateway` or `agent_api`; 0 without."""
        return next((pid for pid in tree(self.pid) if name in _arguments(pid)), 0)

    def token(self, role: str, sub: str = "somebody") -> str:
        """Return a token that this bridge accepts."""
        return mint(self.run_file["jwtSecret"], sub, role, TOKEN_SECONDS)

    def signal_child(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a child alone."""
        os.kill(self.child(name), number)

    async def freeze_child(self, name: str) -> None:
        """Stop a child from running; return when each of its threads has, for a busy machine takes its time with that.

        A server was seen to answer up to 0.4 ms after the signal, 29 times in 40 beside two busy loops.
        """
        pid = self.child(name)
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: all(state == "T" for state in _states(pid)))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to `up` alone."""
        assert self._popen is not None
        self.descendants |= set(tree(self.pid))
        self._popen.send_signal(number)

    async def ended(self, seconds: float = END_SECONDS) -> int:
        """Wait for its end and return its exit code."""
        popen = self._popen
        assert popen is not None
        await until(lambda: popen.poll() is not None, seconds)
        return int(popen.returncode)

    async def interrupted(self) -> int:
        """Press Ctrl-C and return the exit code."""
        self.signal(signal.SIGINT)
        return await self.ended()

    def orphans(self) -> list[int]:
        """Return the children, as of the last signal, that still run."""
        return [pid for pid in self.descendants if _runs(pid)]

    def end(self) -> None:
        """Leave nothing behind, whatever has happened."""
        if self._popen is not None and self._popen.poll() is None:
            self._popen.terminate()
            self._popen.wait(END_SECONDS)
        for pid in self.orphans():
            os.kill(pid, signal.SIGKILL)

    async def command(self, *arguments: str, **variables: str) -> Ended:
        """Run `agentbridge …` to its end in the same folder."""
        code, out, err = await finished(await self.begin(*arguments, variables=variables))
        return Ended(code, out.decode(), err.decode())

    async def begin(
        self,
        *arguments: str,
        stderr: int = subprocess.PIPE,
        on_hangup: Handlers = Handlers.SIG_DFL,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> asyncio.subprocess.Process:
        """Start `agentbridge …` in the same folder; with SIG_IGN as `nohup` does, whatever started these tests."""
        starter = ["-c", ON_HANGUP, str(int(on_hangup)), sys.executable]
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *(*starter, "-m", "agentbridge", *arguments),
            env={**self.environment, **variables},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )

    @contextlib.asynccontextmanager
    async def on_terminal(self, *arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, "Screen"]]:
        """Run `agentbridge …` with its standard error on a terminal, and give both."""
        screen = Screen()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "agentbridge", *arguments),
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=screen.its,
        )
        os.close(screen.its)
        try:
            yield process, screen
        finally:
            if process.returncode is None:
                process.kill()
                await finished(process)
            os.close(screen.ours)

    def _is_ready(self) -> bool:
        assert self._popen is not None
        assert self._popen.poll() is None, self.log
        return bool(self.run_file) and self.run_file["pid"] == self.pid


async def finished(process: asyncio.subprocess.Process, seconds: float = COMMAND_SECONDS) -> tuple[int, bytes, bytes]:
    """Wait for the end of a command; return its exit code, and what it printed and said if that went to pipes."""
    async with asyncio.timeout(seconds):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out or b"", err or b""


class Screen:
    """A terminal, as far as a program can tell that writes to it."""

    def __init__(self) -> None:
        self.ours, self.its = os.openpty()
        os.set_blocking(self.ours, False)
        self._text = b""

    @property
    def text(self) -> str:
        """All that was written to it."""
        while read := self._read():
            self._text += read
        return self._text.decode()

    def _read(self) -> bytes:
        try:
            return os.read(self.ours, 65_536)
        except OSError:  # nothing is there now, or nobody is there any more
            return b""


def tree(pid: int) -> Iterator[int]:
    """Yield the descendants of a process (from Linux's /proc)."""
    parents = {int(entry.name): _parent(entry) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    families = {pid}
    for child in sorted(parents):
        if parents[child] in families:
            families.add(child)
            yield child


def _parent(entry: Path) -> int:
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _runs(pid: int) -> bool:
    """Tell whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _states(pid: int) -> list[str]:
    """Return the state of each thread of a process."""
    stats = [stat.read_text() for stat in Path(f"/proc/{pid}/task").glob("*/stat")]
    return [stat.rpartition(")")[2].split()[0] for stat in stats]


def _arguments(pid: int) -> list[str]:
    try:
        found = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [] if any(argument.endswith("launch.py") for argument in found) else [Path(part).name for part in found]
