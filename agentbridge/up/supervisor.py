"""The life of `up`: it starts NATS, then the processes, greets the user when all are ready, and stops NATS last.

The first signal stops everything; further ones have no effect. After a failure the children end in the same order.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from agentbridge.deployment import data_folder, nats_config
from agentbridge.deployment.data_folder import RunFile
from agentbridge.up.children import Child
from agentbridge.up.members import Member
from agentbridge.up.nats_server import NatsServer
from agentbridge.up.settings import UpSettings
from protocol.runtime.settings import variable

STOP_MARGIN_SECONDS = 8
STILL_WAITING_SECONDS = 10
REGISTRY_FIELDS = ("nats_account_seed", "nats_xkey_seed", "nats_system_password")
NATS_FIELDS = ("nats_url", "nats_user", "nats_password", "nats_creds", "nats_ca", *REGISTRY_FIELDS)

log = logging.getLogger(__name__)
Announce = Callable[[RunFile], None]


class Supervisor:
    """Runs the processes, and NATS if there is a `nats_binary`.

    The children get `environment`, which is complete with defaults.
    """

    def __init__(self, settings: UpSettings, environment: dict[str, str], nats_binary: Path | None) -> None:
        self._settings = settings
        self._environment = environment
        self._folder = Path(settings.data_dir)
        self._nats_binary = nats_binary
        self._stop = asyncio.Event()
        self._failure: str | None = None
        self._nats: NatsServer | None = None
        self._started: list[Child] = []

    async def run(self, announce: Announce) -> str | None:
        """Run until a signal, and return None. If a child fails for good, stop all and return a sentence about it."""
        self._listen_for_signals()
        async with asyncio.TaskGroup() as tasks:
            try:
                await self._start(tasks, announce)
            finally:
                await self._stop_all()
        return self._failure

    async def _start(self, tasks: asyncio.TaskGroup, announce: Announce) -> None:
        if self._nats_binary is not None:
            self._nats = NatsServer(
                self._nats_binary, (self._folder / "nats").absolute(), self._fail, self._settings.nats_port
            )
            if not await self._bring_up(tasks, [self._nats]):
                return
        registry = self._member("registry", nats_config.REGISTRY)
        gateway = self._member("gateway", nats_config.GATEWAY, "gateway_port")
        agent_api = self._member("agent_api", nats_config.API, "api_port")
        if await self._bring_up(tasks, [registry, gateway, agent_api]):
            found = self._run_file(str(agent_api.url), str(gateway.url))
            with data_folder.published(self._folder, found):
                announce(found)
                await self._stop.wait()

    async def _bring_up(self, tasks: asyncio.TaskGroup, children: Sequence[Child]) -> bool:
        """Start these children and wait until all are ready; return False if the stop comes first."""
        for child in children:
            # Note it before it runs, so that a stop in this very moment ends it, too.
            self._started.append(child)
            tasks.create_task(child.run(), name=f"run {child.name}")
        stopped = tasks.create_task(self._stop.wait(), name="wait for the stop")
        waiting = {tasks.create_task(child.ready.wait(), name=child.name) for child in children}
        while waiting and not self._stop.is_set():
            done, _ = await asyncio.wait(
                {*waiting, stopped}, timeout=STILL_WAITING_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            waiting -= done
            if not done:
                log.info("still waiting for %s", ", ".join(sorted(task.get_name() for task in waiting)))
        for task in (*waiting, stopped):
            task.cancel()
        return not self._stop.is_set()

    async def _stop_all(self) -> None:
        """Stop the agent API, the gateway, the registry, and NATS last, because the others need it to end."""
        patience = self._settings.ending_seconds + STOP_MARGIN_SECONDS
        for child in reversed(self._started):
            await child.stop(patience)

    def _member(self, module: str, user: str, port_field: str | None = None) -> Member:
        environment = dict(self._environment)
        if user != nats_config.REGISTRY:  # only a registry decides agents' logins and ends their connections
            _remove(environment, REGISTRY_FIELDS)
        if self._nats is not None:
            _remove(environment, NATS_FIELDS)
            environment[variable("nats_url")] = self._nats.url
            environment[variable("nats_user")] = user
            environment[variable("nats_password")] = self._nats.password(user)
            if user == nats_config.REGISTRY:
                environment[variable("nats_account_seed")] = self._nats.account_seed
                environment[variable("nats_xkey_seed")] = self._nats.xkey_seed
                environment[variable("nats_system_password")] = self._nats.password(nats_config.SYSTEM)
        return Member(module, environment, port_field, self._fail)

    def _run_file(self, api_url: str, gateway_url: str) -> RunFile:
        settings = self._settings
        found = RunFile(
            pid=os.getpid(),
            api_url=api_url,
            gateway_url=gateway_url,
            nats_url=settings.nats_url,
            nats_user=settings.nats_user,
            nats_password=settings.nats_password,
            authentication=settings.auth != "off",
            jwt_secret=settings.jwt_secret,
            jwt_audience=settings.jwt_audience,
            jwt_issuer=settings.jwt_issuer,
        )
        return found if self._nats is None else _with_embedded(found, self._nats)

    def _fail(self, what: str) -> None:
        # Keep the first failure: the others follow from it.
        self._failure = self._failure or what
        self._stop.set()

    def _listen_for_signals(self) -> None:
        """Stop at the first signal. The handlers outlive the loop, so that a late second signal finds them too."""
        loop = asyncio.get_running_loop()

        def stop(*_: object) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._stop.set)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, stop)


def _remove(environment: dict[str, str], fields: Sequence[str]) -> None:
    for field in fields:
        environment.pop(variable(field), None)


def _with_embedded(found: RunFile, nats: NatsServer) -> RunFile:
    """Return the run file for the embedded server. It has no NATS user, because commands log in by token there."""
    return msgspec.structs.replace(found, nats_url=nats.url, nats_user=None, nats_password=None)
