"""Processes that a bench starts; none outlives it. Their figures come from Linux's /proc."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from agentbridge.up import launch
from measuring.tools import Missing
from protocol.runtime.settings import PREFIX, environment

START_SECONDS = 60
END_SECONDS = 20
POLL_SECONDS = 0.05
LOG_LINES = 5
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class Service:
    """A process that is to run for as long as it is measured."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.pid = process.pid
        self._process = process
        self._log = log

    def require_alive(self) -> None:
        """Raise `Missing`, with the end of its log, if it has ended."""
        code = self._process.poll()
        if code is not None:
            last = " | ".join(self._log.read_text(errors="replace").splitlines()[-LOG_LINES:])
            raise Missing(f"{self.name} ended with exit code {code}: {last or 'it logged nothing'}")

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait until it is ready; raise `Missing` if it ends instead."""

        def is_ready() -> bool:
            self.require_alive()
            return ready()

        wait_for(f"the start of {self.name}", is_ready)

    def wait_for_port(self, port: int) -> None:
        """Wait until it listens on a port of loopback; raise `Missing` if it ends instead."""
        self.wait_until(lambda: _listens(port))

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return self._log.read_text(errors="replace")

    def ending_seconds(self) -> float:
        """Ask it to end, and return how long that took; raise `Missing` if it does not."""
        began = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            raise Missing(f"{self.name} did not end within {END_SECONDS} s") from None
        return time.monotonic() - began

    def end(self) -> None:
        """End it, by force if it does not end by itself."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def running(name: str, command: list[str], folder: Path, variables: Mapping[str, str]) -> Iterator[Service]:
    """Run a command, an absolute path first, for as long as the context lasts; its log is `folder/name.log`.

    If the bench is killed, the kernel kills the process. Our own settings in the environment are not passed on.
    """
    inherited = {key: value for key, value in environment().items() if not key.startswith(PREFIX)}
    guarded = [sys.executable, "-I", "-S", str(Path(launch.__file__)), str(os.getpid()), *command]
    path = folder / f"{name}.log"
    with path.open("ab") as log:
        process = subprocess.Popen(
            guarded, env={**inherited, **variables}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
        )
    service = Service(name, process, path)
    try:
        yield service
    finally:
        service.end()


def wait_for(what: str, condition: Callable[[], bool], seconds: float = START_SECONDS) -> None:
    """Wait until a condition holds; raise `TimeoutError` that names it."""
    give_up = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError(f"{what} took more than {seconds:g} s")
        time.sleep(POLL_SECONDS)


def free_port() -> int:
    """Return a port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# --- /proc ---


def family(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    parents = {int(entry.name): _parent(entry) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    found = [pid]
    for ancestor in found:
        found += [child for child, parent in parents.items() if parent == ancestor]
    return found


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used so far, in the kernel too."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_A_SECOND


def resident_bytes(pid: int) -> int:
    """Return the memory that a process occupies."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def short_name(pid: int) -> str:
    """Return a process's name for a table: its Python module, its script, or its program."""
    arguments = Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
    if "-m" in arguments:
        return arguments[arguments.index("-m") + 1]
    scripts = [Path(argument).stem for argument in arguments if argument.endswith((".js", ".py"))]
    return scripts[0] if scripts else Path(arguments[0].split()[0]).name


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _parent(entry: Path) -> int:
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def forget_peak(pid: int) -> None:
    """Have `peak_mb()` count from now on (proc(5), `clear_refs`)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_mb(pid: int) -> float:
    """Return the most memory that a process has had resident since `forget_peak()`, in megabytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
