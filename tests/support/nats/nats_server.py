"""A real nats-server: one that tests share, and private ones that a test may stop, freeze, kill and wipe."""

import contextlib
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import nats

from support.processes.child import freeze
from support.wait import POLL_SECONDS, until

IMAGE = "nats:2.12-alpine"
DOCKER_SOCKET = "unix:///var/run/docker.sock"
CLIENT_PORT = 4222
START_SECONDS = 10
FIRST_PORT, FIRST_GIVEN_PORT = 15_000, 32_768


class NatsServer:
    """A nats-server process with JetStream on a fixed free port of loopback; `config` is added to its configuration."""

    def __init__(self, folder: Path, config: str = "") -> None:
        self.folder = folder
        self.port = free_port()
        self._config = folder / "nats.conf"
        self._storage = ""
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.configure(config)

    @property
    def url(self) -> str:
        """Where clients without credentials connect."""
        return self.url_of()

    @property
    def log(self) -> str:
        """What the server has logged."""
        return (self.folder / "nats.log").read_text()

    def url_of(self, credentials: str = "") -> str:
        """Return the URL with `user:password` in it."""
        return f"nats://{credentials}{'@' if credentials else ''}127.0.0.1:{self.port}"

    def configure(self, config: str) -> None:
        """Set what the next start adds to the configuration."""
        store = f'store_dir: "{self.folder / "jetstream"}"{self._storage}'
        self._config.write_text(f'listen: "127.0.0.1:{self.port}"\njetstream {{ {store} }}\n{config}\n')

    def limit_storage(self, size: int) -> None:
        """Let JetStream have so many bytes from the next start on."""
        self._storage = f", max_file_store: {size}"
        self.configure("")

    def limit_files(self, size: int) -> None:
        """Let no file of the running server grow beyond so many bytes: what writes to them fails as on a full disk."""
        assert self._process is not None, "it does not run"
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    async def start(self) -> None:
        """Start, or start again with the same port and store, and wait until it answers."""
        self._launch()
        await until(self._answers, START_SECONDS)

    def start_blocking(self) -> None:
        """Start where no event loop runs."""
        self._launch()
        _wait_for_info(self.port)

    def stop(self) -> None:
        """End it as an operator does."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash does."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Stop it from running without closing a socket."""
        assert self._process is not None, "it does not run"
        freeze(self._process)

    def thaw(self) -> None:
        """Let a frozen server run on."""
        self._signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Forget all that JetStream has stored; the server must be stopped."""
        assert self._process is None, "stop it first"
        shutil.rmtree(self.folder / "jetstream", ignore_errors=True)

    def _launch(self) -> None:
        assert self._process is None, "it runs already"
        with (self.folder / "nats.log").open("ab") as log:
            command = [binary(), "-c", str(self._config)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log
        return _says_info(self.port)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "it does not run"
        self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.send_signal(signal.SIGCONT)
            self._process.wait(START_SECONDS)
            self._process = None


@contextlib.contextmanager
def shared_server(folder: Path) -> Iterator[str]:
    """Give the URL of the server that tests share: an external one, else a container's, else a process's."""
    external = os.environ.get("AGENTBRIDGE_TEST_NATS_URL")  # noqa: TID251  a setting of the tests, not of the product
    if external:
        yield external
    elif _docker_answers():
        with _container() as url:
            yield url
    else:
        server = NatsServer(folder)
        server.start_blocking()
        try:
            yield server.url
        finally:
            server.stop()


async def forget_streams(url: str) -> None:
    """Delete every stream and bucket of ours."""
    client = await nats.connect(url)
    try:
        manager = client.jsm()
        for info in await manager.streams_info():
            name = str(info.config.name)
            if name.removeprefix("KV_").startswith("agentbridge_"):
                await manager.delete_stream(name)
    finally:
        await client.close()


def binary() -> str:
    """Return the path of nats-server: the one installed beside Python, else one on PATH."""
    beside = Path(sysconfig.get_path("scripts")) / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    assert found, "nats-server is neither in this environment (pip install '.[embedded]') nor on PATH"
    return found


_returned_ports: set[int] = set()


def free_port() -> int:
    """Return a port of loopback that is free now, from below those that the kernel gives to whoever asks for any.

    None is returned twice: the server that got it may not have taken it yet.
    """
    while True:
        port = random.randrange(FIRST_PORT, FIRST_GIVEN_PORT)
        if port in _returned_ports:
            continue
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            _returned_ports.add(port)
            return port


def _docker_answers() -> bool:
    host = os.environ.get("DOCKER_HOST", DOCKER_SOCKET)  # noqa: TID251  Docker's own setting
    scheme, _, path = host.partition("://")
    if scheme == "tcp":
        return True
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(2)
            sock.connect(path)
            sock.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in sock.recv(64)
    except OSError:
        return False


@contextlib.contextmanager
def _container() -> Iterator[str]:
    from testcontainers.core.container import DockerContainer  # it looks for an engine as soon as it is imported

    with DockerContainer(IMAGE).with_command("-js").with_exposed_ports(CLIENT_PORT) as container:
        port = int(container.get_exposed_port(CLIENT_PORT))
        _wait_for_info(port)
        yield f"nats://{container.get_container_host_ip()}:{port}"


def _says_info(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as sock:
            return sock.recv(4) == b"INFO"
    except OSError:
        return False


def _wait_for_info(port: int) -> None:
    give_up = time.monotonic() + START_SECONDS
    while not _says_info(port):
        assert time.monotonic() < give_up, "nats-server does not answer"
        time.sleep(POLL_SECONDS)
