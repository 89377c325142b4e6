"""The deployment of compose.yaml, brought up by Docker Compose under a project name of its own."""

import asyncio
import contextlib
import json
import os
import secrets
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from support.nats.nats_server import free_port
from support.paths import ROOT
from support.processes import engine
from support.settings import SECRET, agent_token, bearer
from support.wait import until

CHECKOUT = (
    *(".dockerignore", "Dockerfile", "README.md", "compose.yaml", "deploy", "pyproject.toml", "requirements"),
    *("agent_api", "agentbridge", "gateway", "protocol", "registry"),
)
IMAGE = "agentbridge:test"
HTTP_TIMEOUT_SECONDS = 30
COMMAND_SECONDS = 240
RECOVERY_SECONDS = 40
# With an init process as number 1, the process of ours is its only child. From inside it is a crash, after which the
# engine restarts the container; `docker kill` counts as an operator's wish instead.
CRASH = "kill -9 $(cat /proc/1/task/1/children)"


class Container:
    """A container of the deployment."""

    def __init__(self, ident: str) -> None:
        self.id = ident

    @property
    def host(self) -> str:
        """What the processes in it take for their host's name."""
        return self.id[:12]

    @property
    def facts(self) -> dict[str, Any]:
        """All that the engine knows about it."""
        found: list[dict[str, Any]] = json.loads(engine.docker("inspect", self.id))
        return found[0]

    @property
    def crashes(self) -> int:
        """How often the engine has started it again by itself."""
        return int(self.facts["RestartCount"])

    def crash(self) -> None:
        """Kill our process in it."""
        engine.docker("exec", self.id, "sh", "-c", CRASH)


class Deployment:
    """A checkout in which a reader follows docs/deployment.md; tokens are signed with the tests' secret."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._environment = _without_ours() | {
            "COMPOSE_PROJECT_NAME": f"agentbridge-test-{secrets.token_hex(4)}",
            "AGENTBRIDGE_IMAGE": IMAGE,
            "AGENTBRIDGE_PUBLISH": f"127.0.0.1:{self.port}",
            "AGENTBRIDGE_JWT_SECRET": SECRET,
        }
        for name in CHECKOUT:
            (shutil.copytree if (ROOT / name).is_dir() else shutil.copy2)(ROOT / name, folder / name)

    @property
    def url(self) -> str:
        """The one address of everything."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What all containers have said."""
        return self.compose("logs", "--no-color")

    def set(self, variable: str, value: str) -> None:
        """Change a setting for all later commands."""
        self._environment[variable] = value

    def type(self, code: str) -> str:
        """Do what the documentation says; return what it prints."""
        done = self._run(["sh", "-euc", code], self._environment)
        assert done.returncode == 0, f"{code}: {done.stderr[-4000:]}"
        return done.stdout

    def compose(self, *arguments: str) -> str:
        """Run a Docker Compose command and return what it prints."""
        return self.type(shlex.join(["docker", "compose", *arguments]))

    def refusal_without(self, variable: str) -> str:
        """Return what `docker compose up` says where a variable is not set; nothing is started, whatever it says."""
        complete = (self._folder / ".env").read_text().splitlines()
        incomplete = self._folder / "incomplete.env"
        incomplete.write_text("\n".join(line for line in complete if not line.startswith(f"{variable}=")))
        command = ["docker", "compose", "--dry-run", f"--env-file={incomplete}", "up", "--detach"]
        done = self._run(command, {name: value for name, value in self._environment.items() if name != variable})
        assert done.returncode != 0, done.stdout
        return done.stderr

    def up(self, *options: str, **replicas: int) -> None:
        """Bring it up, or to so many replicas: `up(gateway=3)`, and wait until every container is healthy."""
        scale = [f"--scale={service}={count}" for service, count in replicas.items()]
        self.compose("up", "--detach", "--wait", "--quiet-pull", *options, *scale)

    def down(self) -> None:
        """Leave nothing behind."""
        self.compose("--profile", "console", "down", "--volumes", "--timeout", "1", "--remove-orphans")

    def containers(self, service: str) -> list[Container]:
        """Return the running containers of a service."""
        return [Container(ident) for ident in self.compose("ps", "--quiet", service).split()]

    def container_on(self, service: str, host: str) -> Container:
        """Return the container of a service whose processes call their host so."""
        return next(container for container in self.containers(service) if container.host == host)

    def console(self, *arguments: str) -> str:
        """Run a command of the command line in a container, as an operator does."""
        return self.compose("run", "--rm", "--no-deps", "console", *arguments)

    async def processes(self) -> list[dict[str, Any]]:
        """Return the processes that answer on NATS."""
        found: dict[str, Any] = json.loads(await asyncio.to_thread(self.console, "health", "--json"))
        processes: list[dict[str, Any]] = found["processes"]
        return processes

    def client(self, token: str | None = None) -> httpx.AsyncClient:
        """Return an HTTP client with an agent's token, or this one."""
        headers = bearer(token or agent_token())
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=HTTP_TIMEOUT_SECONDS, trust_env=False)

    async def healthy(self, service: str, seconds: float = RECOVERY_SECONDS) -> None:
        """Wait until every container of a service is healthy."""
        await until(lambda: asyncio.to_thread(self._healthy, service), seconds)

    def _run(self, command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self._folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )

    def _healthy(self, service: str) -> bool:
        states = [container.facts["State"] for container in self.containers(service)]
        return bool(states) and all(state.get("Health", {}).get("Status") == "healthy" for state in states)


@contextlib.contextmanager
def running_deployment(folder: Path, start: str) -> Iterator[Deployment]:
    """Bring a deployment up by the commands of the documentation, and leave nothing of it behind but the image."""
    deployment = Deployment(folder)
    try:
        deployment.type(start)
        yield deployment
    finally:
        deployment.down()


def secrets_made() -> dict[str, str]:
    """Return what `deploy/secrets.sh` prints, by variable."""
    printed = subprocess.check_output([ROOT / "deploy/secrets.sh"], text=True, timeout=COMMAND_SECONDS)
    return dict(line.split("=", 1) for line in printed.splitlines())


def _without_ours() -> dict[str, str]:
    """Return the environment without settings of the product, but for the network that images are built in."""
    kept = {"AGENTBRIDGE_BUILD_NETWORK"}
    environment = dict(os.environ)  # noqa: TID251  Docker reads it
    return {name: value for name, value in environment.items() if name in kept or not name.startswith("AGENTBRIDGE_")}
