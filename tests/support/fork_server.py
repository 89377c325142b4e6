"""A fork server: an interpreter that has imported one of our modules and forks processes of it.

`python -m gateway` imports for 0.3 s of a core, `python -m agent_api` for 0.5 s, and most stories need both. A forked
process begins where the imports end. All else is as if it had been started by name: its environment, arguments,
session, files and signals are its own, and `__main__` runs from its first line.

Each module has a fork server of its own, so that a process finds only those modules imported that it imports itself.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.005


class ForkServer:
    """Forks processes of one module. It answers one request at a time."""

    def __init__(self, module: str) -> None:
        self._module = module
        ours, its = socket.socketpair()
        with its:
            command = [sys.executable, "-P", __file__, module, str(its.fileno())]
            self._popen = subprocess.Popen(
                command, pass_fds=[its.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
            )
        self._socket, self._answers = ours, ours.makefile("rb")

    def start(self, arguments: Sequence[str], environment: Mapping[str, str], out: Path, err: Path) -> "Forked":
        """Start a process that writes to these files, which exist."""
        return Forked(self, self.ask("fork", list(arguments), dict(environment), str(out), str(err), str(Path.cwd())))

    def ask(self, *request: object) -> Any:
        """Have the server do something, and return what came of it."""
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        answer = self._answers.readline()
        assert answer, f"the fork server of {self._module} has ended"
        return json.loads(answer)

    def close(self) -> None:
        """End the server, and the processes that still run."""
        self._answers.close()
        self._socket.close()
        self._popen.wait()


class Forked:
    """A forked process, with those methods of `Popen` that tests use. Its parent is the fork server."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._server = server

    def poll(self) -> int | None:
        """Return the exit code, negative after a signal, or None while it runs."""
        if self.returncode is None:
            self.returncode = self._server.ask("poll", self.pid)
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Return the exit code. Raises `TimeoutExpired` after `timeout` seconds."""
        give_up = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > give_up:
                raise subprocess.TimeoutExpired(self._server._module, timeout)
            time.sleep(POLL_SECONDS)
        return code

    def wait_until_stopped(self) -> None:
        """Return when SIGSTOP has reached each of its threads."""
        self._server.ask("stopped", self.pid)

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it as a crash does."""
        self.send_signal(signal.SIGKILL)


@functools.cache
def fork_server(module: str) -> ForkServer:
    """Return the fork server of a module, which lives as long as this process."""
    server = ForkServer(module)
    atexit.register(server.close)
    return server


def _serve(module: str, requests: socket.socket) -> list[Any] | None:
    """Answer until the tests end, and return None; in a forked process return what it was forked with."""
    children = set[int]()
    with requests, requests.makefile("rb") as lines:
        for line in lines:
            match json.loads(line):
                case ["fork", *how]:
                    child = os.fork()
                    if child == 0:
                        return how
                    children.add(child)
                    answer: int | None = child
                case ["poll", pid]:
                    ended, status = os.waitpid(pid, os.WNOHANG)
                    children -= {ended}
                    answer = os.waitstatus_to_exitcode(status) if ended else None
                case ["stopped", pid]:
                    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
                    answer = None
            requests.sendall(json.dumps(answer).encode() + b"\n")
    for left in children:
        os.kill(left, signal.SIGKILL)
        os.waitpid(left, 0)
    return None


def _become(module: str, arguments: list[str], environment: dict[str, str], out: str, err: str, folder: str) -> None:
    """Run the module as `python -m` does."""
    os.setsid()
    os.chdir(folder)
    for path, number in ((out, 1), (err, 2)):
        file = os.open(path, os.O_WRONLY)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()  # noqa: TID251  as a process that is started has the environment that it is given, and no other
    os.environ.update(environment)  # noqa: TID251
    sys.argv = [module, *arguments]
    del sys.modules[f"{module}.__main__"]  # it is run, not imported
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _module = sys.argv[1]
    importlib.import_module(f"{_module}.__main__")
    gc.collect()
    gc.freeze()  # what is shared with children stays shared
    _how = _serve(_module, socket.socket(fileno=int(sys.argv[2])))
    if _how is not None:
        _become(_module, *_how)
