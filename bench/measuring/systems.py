"""The systems that are measured: ours by `agentbridge up`, and the two designs that it is measured beside."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from agentbridge.deployment import data_folder
from agentbridge.deployment.data_folder import RunFile
from agentbridge.up import nats_server
from measuring.processes import Service, family, free_port, running, short_name
from measuring.tools import PEERS, install_peers, require
from protocol.access import AGENT, APP
from protocol.runtime.settings import variable
from protocol.runtime.tokens import mint
from protocol.runtime.version import FAST_PATHS

OURS = "agentbridge"
OURS_OFF = "agentbridge, fast paths off"
WITHOUT = {f"{OURS}, without {name}": name for name in FAST_PATHS}  # systems, and the fast path that each lacks
FAST_PATHS_CHOICES = ("on", "off", "both", "each")
MEMORY, REDIS = "express-memory", "express-redis"
WITHOUT_PEERS = "leave the peers out by --peers none"
WITHOUT_REDIS = f"leave that peer out by --peers {MEMORY}"
TOKEN_SECONDS = 6 * 3600


class System(NamedTuple):
    """A running system: its ports, its tokens, and its processes by name."""

    name: str
    api_port: int
    socket_port: int
    pids: dict[str, int]
    agent_token: str | None = None
    app_token: str | None = None
    acknowledges: bool = False
    run_file: RunFile | None = None


def ours_by(choice: str) -> dict[str, str]:
    """Return our systems that one of `FAST_PATHS_CHOICES` compares: by name, each with its `AGENTBRIDGE_FAST_PATHS`."""
    lacking = {name: ",".join(other for other in FAST_PATHS if other != path) for name, path in WITHOUT.items()}
    slower = {"both": {OURS_OFF: "off"}, "each": lacking}.get(choice, {})
    return {OURS_OFF: "off"} if choice == "off" else {OURS: "on", **slower}


@contextlib.contextmanager
def agentbridge(
    folder: Path, secret: str, nats_url: str | None = None, *, name: str = OURS, fast_paths: str = "on"
) -> Iterator[System]:
    """Run `agentbridge up` on free ports, authentication on; with NATS of its own unless `nats_url` is given."""
    data = folder / name / "data"
    settings: dict[str, object] = {"data_dir": data, "api_port": 0, "gateway_port": 0, "jwt_secret": secret}
    settings["events_per_session"] = 0  # one client alone is measured, too, as fast as the gateway takes its events
    settings |= {"log_level": "warning", "max_connections_per_user": 1_000_000}
    settings["max_connections"] = 100_000  # all clients of a bench are one user's
    settings |= {"fast_paths": fast_paths}
    settings |= {"nats_url": nats_url} if nats_url else {}
    data.parent.mkdir(exist_ok=True)
    variables = {variable(name): str(value) for name, value in settings.items()}
    with running(name, [sys.executable, "-P", "-m", "agentbridge", "up"], folder, variables) as process:
        found = _run_file(process, data)
        yield System(
            name,
            _port(found.api_url),
            _port(found.gateway_url),
            _named(family(process.pid)),
            mint(secret, "bench-agent", AGENT, TOKEN_SECONDS),
            mint(secret, "bench-user", APP, TOKEN_SECONDS),
            acknowledges=True,
            run_file=found,
        )


@contextlib.contextmanager
def express_memory(folder: Path) -> Iterator[System]:
    """Run the design that keeps everything in one process's memory."""
    node, port = install_peers(WITHOUT_PEERS), free_port()
    with _node(node, folder, "memory", port) as pid:
        yield System(MEMORY, port, port, _named([pid]))


@contextlib.contextmanager
def express_redis(folder: Path) -> Iterator[System]:
    """Run the scaled design: an agent API and a server of WebSockets that talk through Redis."""
    node, redis = install_peers(WITHOUT_PEERS), require("redis-server", WITHOUT_REDIS)
    redis_port, socket_port, api_port = free_port(), free_port(), free_port()
    options = {"port": str(redis_port), "bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": str(folder)}
    command = [redis, *(word for name, value in options.items() for word in (f"--{name}", value))]
    with running("redis-server", command, folder, {}) as server:
        server.wait_for_port(redis_port)
        with (
            _node(node, folder, "redis_sockets", socket_port, redis_port) as sockets,
            _node(node, folder, "redis_api", api_port, redis_port) as api,
        ):
            yield System(REDIS, api_port, socket_port, _named([server.pid, sockets, api]))


PEER_SYSTEMS: dict[str, Callable[[Path], contextlib.AbstractContextManager[System]]] = {
    MEMORY: express_memory,
    REDIS: express_redis,
}


@contextlib.contextmanager
def nats(folder: Path) -> Iterator[tuple[str, int]]:
    """Run a nats-server without users, so that a bench can read its streams; give its URL and its process id."""
    port = free_port()
    config = folder / "nats.conf"
    config.write_text(f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{folder / "jetstream"}" }}\n')
    with running("nats-server", [str(nats_server.find()), "-c", str(config)], folder, {}) as process:
        process.wait_for_port(port)
        yield f"nats://127.0.0.1:{port}", process.pid


@contextlib.contextmanager
def _node(node: str, folder: Path, script: str, port: int, redis_port: int = 0) -> Iterator[int]:
    variables = {"PORT": str(port), "REDIS_PORT": str(redis_port), "NODE_ENV": "production"}
    with running(script, [node, str(PEERS / f"{script}.js")], folder, variables) as process:
        process.wait_for_port(port)
        yield process.pid


def _run_file(up: Service, data: Path) -> RunFile:
    """Wait for the run file of `up`."""
    up.wait_until(lambda: data_folder.read(data) is not None)
    found = data_folder.read(data)
    assert found is not None
    return found


def _named(pids: list[int]) -> dict[str, int]:
    return {("up" if (name := short_name(pid)) == OURS else name): pid for pid in pids}


def _port(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port
