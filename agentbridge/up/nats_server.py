"""The embedded NATS server: found, configured with our users, started on loopback with JetStream in the data folder."""

import asyncio
import contextlib
import logging
import re
import shutil
import socket
import subprocess
import sysconfig
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from agentbridge.deployment import nats_config
from agentbridge.up.children import Child
from protocol.errors import ConfigurationError
from protocol.runtime.nats.login_keys import LoginKeys, new_seeds
from protocol.runtime.nats.servers import MIN_VERSION

PORT = 4222
ANY_PORT = -1
POLL_SECONDS = 0.02
VERSION_TIMEOUT_SECONDS = 10
REMEDY = "pip install -e '.[embedded]' in AgentBridge's folder"

log = logging.getLogger(__name__)
_VERSION = re.compile(r"v(\d+)\.(\d+)")
_LOG_LINE = re.compile(r"\[\d+\] [\d/]+ [\d:.]+ \[(?P<level>[A-Z]{3})\] ?(?P<text>.*)")
_EXPECTED_WARNING = "Plaintext passwords detected"  # ours are random and only in the server's environment
_LEVELS = {"WRN": logging.WARNING, "ERR": logging.ERROR, "FTL": logging.ERROR}


class _Ports(msgspec.Struct):
    """The content of nats-server's ports file."""

    nats: list[str]


class NatsServer(Child):
    """nats-server with a random password for each user, which it reads from its environment, not from its file."""

    def __init__(self, binary: Path, folder: Path, fail: Callable[[str], None], port: int | None = None) -> None:
        super().__init__("nats-server", fail)
        self.url = ""
        self._binary = binary
        self._folder = folder
        self._wanted_port = ANY_PORT if port == 0 else port
        self._users = {user.name: user for user in nats_config.users()}
        self._passwords = {name: nats_config.new_password() for name in self._users}
        self.account_seed, self.xkey_seed = new_seeds()

    def password(self, user: str) -> str:
        """Return the password of a NATS user."""
        return self._passwords[user]

    def command(self) -> list[str]:
        """Write the configuration, and return the command that runs it. A restart keeps the first start's port."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for stale in self._folder.glob("*.ports"):
            stale.unlink()
        config = self._folder / "nats.conf"
        config.write_text(nats_config.render(self._server()))
        return [str(self._binary), "-c", str(config)]

    def environment(self) -> dict[str, str]:
        """Return the passwords and the public keys, and no other variable."""
        keys = LoginKeys(self.account_seed, self.xkey_seed)
        passwords = {user.password_variable: self._passwords[name] for name, user in self._users.items()}
        return passwords | nats_config.public_keys(keys)

    async def follow(self, process: Process) -> None:
        """Log the server's warnings, and wait for its ports file."""
        assert process.stderr is not None
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(self._await_ports(process.pid), name="wait for nats-server")
            async for line in process.stderr:
                _pass_on(line.decode(errors="replace").rstrip())
            waiting.cancel()

    def _stderr(self) -> int:
        return PIPE

    def _server(self) -> nats_config.Server:
        port = urlsplit(self.url).port if self.url else self._wanted_port or _first_port()
        return nats_config.Server(f"127.0.0.1:{port}", str(self._folder), ports_folder=str(self._folder))

    async def _await_ports(self, pid: int) -> None:
        path = self._folder / f"{self._binary.name}_{pid}.ports"
        while True:
            ports = _read_ports(path)
            if ports is not None:
                break
            await asyncio.sleep(POLL_SECONDS)
        self.url = ports.nats[0]
        self.serves()


def find() -> Path:
    """Return the path of a nats-server 2.11 or newer. Raises `ConfigurationError` with the remedy if there is none."""
    found = next(filter(None, map(shutil.which, _candidates())), None)
    if found is None:
        raise ConfigurationError(f"no nats-server here: {REMEDY}, or set AGENTBRIDGE_NATS_URL to one that runs")
    version = _version(found)
    if version < MIN_VERSION:
        shown, needed = ".".join(map(str, version)), ".".join(map(str, MIN_VERSION))
        raise ConfigurationError(f"{found} is version {shown}, but {needed} or newer is needed: {REMEDY}")
    return Path(found).absolute()


def _candidates() -> list[str]:
    """Return the wheel's possible paths (this environment, the user's), then the name for PATH."""
    schemes = (sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user"))
    return [str(Path(sysconfig.get_path("scripts", scheme), "nats-server")) for scheme in schemes] + ["nats-server"]


def _version(binary: str) -> tuple[int, int]:
    try:
        answer = subprocess.run(  # noqa: S603  the binary that will be run as the server
            [binary, "--version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError) as exc:
        raise ConfigurationError(f"{binary} does not run: {REMEDY}") from exc
    found = _VERSION.search(answer.stdout)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _first_port() -> int:
    """Return the standard port of NATS if it is free, else let the server take any."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", PORT))
        except OSError:
            return ANY_PORT
    return PORT


def _read_ports(path: Path) -> _Ports | None:
    with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):  # not there, or not yet whole
        return msgspec.json.decode(path.read_bytes(), type=_Ports)
    return None


def _pass_on(line: str) -> None:
    found = _LOG_LINE.match(line)
    level, text = (found["level"], found["text"]) if found else ("", line)
    expected = text.startswith(_EXPECTED_WARNING)
    log.log(logging.DEBUG if expected else _LEVELS.get(level, logging.DEBUG), "nats-server: %s", text)
