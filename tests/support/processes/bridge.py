"""The whole bridge as real processes: registry, gateways and agent APIs around one NATS server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx

from support.played.app import App, Handler, application
from support.processes.child import Process
from support.settings import admin_token, agent_token, bearer, environment
from support.wait import until

HTTP_TIMEOUT_SECONDS = 30


class Bridge:
    """A running bridge. `http` speaks to the first agent API with an agent's token."""

    def __init__(self, folder: Path, nats_url: str, **settings: object) -> None:
        self.folder = folder
        self.nats_url = nats_url
        self.gateways: list[Process] = []
        self.agent_apis: list[Process] = []
        self.registries: list[Process] = []
        self._environment = environment(nats_url, **settings)
        self._clients: list[httpx.AsyncClient] = []

    @property
    def processes(self) -> list[Process]:
        """All processes of ours, whatever became of them."""
        return [*self.gateways, *self.agent_apis, *self.registries]

    @property
    def gateway_url(self) -> str:
        """Where applications connect."""
        return self.gateways[0].url

    @property
    def log(self) -> str:
        """What all processes have logged."""
        return "".join(process.log for process in self.processes)

    async def start(self, *, gateways: int = 1, agent_apis: int = 1, registries: int = 1) -> None:
        """Start the processes at once and wait until the agent APIs are ready."""
        self.gateways = [self._process("gateway", number) for number in range(gateways)]
        self.agent_apis = [self._process("agent_api", number) for number in range(agent_apis)]
        self.registries = [self._process("registry", number) for number in range(registries)]
        await asyncio.gather(*(process.start() for process in self.processes))
        if self.agent_apis:
            self.http = self.client(agent_token())
            await until(self.ready, HTTP_TIMEOUT_SECONDS)

    async def ready(self) -> bool:
        """Tell whether the first agent API is ready."""
        return (await self.http.get("/readyz")).status_code == httpx.codes.OK

    def client(self, token: str | None, agent_api: int = 0) -> httpx.AsyncClient:
        """Return an HTTP client of an agent API that sends this token."""
        client = httpx.AsyncClient(
            base_url=self.agent_apis[agent_api].url,
            headers=bearer(token) if token else {},
            timeout=HTTP_TIMEOUT_SECONDS,
            trust_env=False,
        )
        self._clients.append(client)
        return client

    def admin(self) -> httpx.AsyncClient:
        """Return an administrator's HTTP client."""
        return self.client(admin_token())

    def app(
        self, handlers: dict[str, Handler] | None = None, *, gateway: int = 0, **options: Any
    ) -> AbstractAsyncContextManager[App]:
        """Connect a simulated application to a gateway."""
        return application(self.gateways[gateway].url, handlers, **options)

    async def call(
        self, client_id: str | None, target: str, parameters: Any = None, *, timeout_ms: int | None = None, **more: Any
    ) -> httpx.Response:
        """Send a command by HTTP with the agent's token; `more` joins the command."""
        command = {"target": target, "action": "call", "parameters": parameters or {}, **more}
        body = {"clientId": client_id, "command": command, "timeoutMs": timeout_ms}
        present = {name: value for name, value in body.items() if value is not None}
        return await self.http.post("/api/command", json=present)

    async def capabilities(self, **query: Any) -> dict[str, Any]:
        """Return what the agent discovers."""
        answer = await self.http.get("/api/capabilities", params=query)
        assert answer.status_code == httpx.codes.OK, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def listed(self, *client_ids: str, seconds: float = 5) -> None:
        """Wait until exactly these clients are discovered."""
        await until(lambda: self._lists(set(client_ids)), seconds)

    async def _lists(self, client_ids: set[str]) -> bool:
        return set(await self.capabilities()) == client_ids

    async def connected(self) -> set[str]:
        """Return the ids of the clients that are connected; pages that were closed may still be expected back."""
        answer = await self.http.get("/api/clients")
        assert answer.status_code == httpx.codes.OK, answer.text
        return {client["clientId"] for client in answer.json() if client["state"] == "active"}

    async def only(self, *client_ids: str) -> None:
        """Wait until exactly these clients are connected."""
        await until(lambda: self._connects(set(client_ids)))

    async def _connects(self, client_ids: set[str]) -> bool:
        return await self.connected() == client_ids

    async def close(self) -> None:
        """Close the HTTP clients and leave no process behind."""
        for client in self._clients:
            await client.aclose()
        for process in self.processes:
            process.end()

    def _process(self, module: str, number: int) -> Process:
        return Process(module, self.folder / f"{module}-{number}", self._environment)


@contextlib.asynccontextmanager
async def running_bridge(
    folder: Path, nats_url: str, *, gateways: int = 1, agent_apis: int = 1, registries: int = 1, **settings: object
) -> AsyncIterator[Bridge]:
    """Run a bridge; `settings` are those of the processes: `command_timeout_ms=500`."""
    bridge = Bridge(folder, nats_url, **settings)
    try:
        await bridge.start(gateways=gateways, agent_apis=agent_apis, registries=registries)
        yield bridge
    finally:
        await bridge.close()
