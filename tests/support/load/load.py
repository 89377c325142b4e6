"""Load that keeps a ledger: applications that come back when their gateway dies, and callers on every way there is.

The load is bounded: each caller has one command under way and thinks for a while before the next.
"""

import asyncio
import contextlib
import itertools
import json
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

import httpx
import msgspec
from websockets.exceptions import WebSocketException

from agentbridge.cli.registry_client import RegistryClient
from protocol import codec
from protocol.errors import BridgeError
from protocol.messages import CommandRequest
from protocol.runtime.commands.caller import Caller
from protocol.runtime.nats.agent_login import user_name
from protocol.runtime.nats.connection import connect
from protocol.runtime.settings import Settings
from protocol.subjects import ClientAddress
from support.load.ledger import CUT_OFF, SUCCESS, UNREACHED, Command, Ledger
from support.played.app import application
from support.settings import agent_token
from support.wait import until

CALLERS = 16
THINK_SECONDS = 0.02
COMEBACK_SECONDS = 0.1
LIFETIME_SECONDS = 3600
TIMEOUT_MS = 120_000  # longer than any story: nobody is to be freed by it
WORK_MS = (0, 0, 0, 2, 10, 50, 250)
TENANT = "default"


class Listener(Protocol):
    """A process, or whatever stands in front of some."""

    @property
    def url(self) -> str:
        """Where it listens now."""


class Called(Protocol):
    """Applications that are called, and the ledger in which they note what they execute."""

    ledger: Ledger

    @property
    def clients(self) -> set[str]:
        """The ids of those that may be called now."""


class Way(Protocol):
    """A way from an agent to the applications."""

    async def call(self, client_id: str, target: str, parameters: dict[str, Any]) -> tuple[str, Any]:
        """Send a command; return its answer in the ledger's words, and the result."""


class OverHttp:
    """Through an agent API, wherever that listens after a restart."""

    def __init__(self, agent_api: Listener, http: httpx.AsyncClient) -> None:
        self._agent_api = agent_api
        self._http = http

    async def call(self, client_id: str, target: str, parameters: dict[str, Any]) -> tuple[str, Any]:
        """Send a command by `POST /api/command`."""
        body = {"clientId": client_id, "command": {"target": target, "parameters": parameters}, "timeoutMs": TIMEOUT_MS}
        try:
            answer = (await self._http.post(f"{self._agent_api.url}/api/command", json=body)).json()
        except httpx.ConnectError:
            return UNREACHED, None
        except httpx.TransportError:
            return CUT_OFF, None
        return (SUCCESS, answer["result"]) if answer.get("success") else (answer["code"], answer)


class OverNats:
    """Directly over NATS, with the module that the agent API and the command line use."""

    def __init__(self, caller: Caller, token: str) -> None:
        self._caller = caller
        self._token = token

    async def call(self, client_id: str, target: str, parameters: dict[str, Any]) -> tuple[str, Any]:
        """Send a command as a NATS request."""
        command = CommandRequest(target=target, parameters=msgspec.Raw(codec.encode(parameters)), timeout_ms=TIMEOUT_MS)
        try:
            answer = await self._caller.call(ClientAddress(TENANT, client_id), command, self._token)
            return SUCCESS, json.loads(bytes(answer.value()))
        except BridgeError as exc:
            return exc.code.value, exc.message


class Fleet:
    """Applications, each on a gateway, and on another when that one dies; each time a new client."""

    def __init__(self, gateways: Sequence[Listener], ledger: Ledger) -> None:
        self.ledger = ledger
        self.release = asyncio.Event()
        self._gateways = gateways
        self._homes: dict[str, Listener] = {}
        self._size = 0

    @property
    def clients(self) -> set[str]:
        """The ids of all clients that are connected and have registered: the truth."""
        return set(self._homes)

    @property
    def complete(self) -> bool:
        """Whether every application is connected."""
        return len(self._homes) == self._size

    def on(self, gateway: Listener) -> set[str]:
        """Return the ids of the clients on a gateway."""
        return {client_id for client_id, home in self._homes.items() if home is gateway}

    async def join(self, count: int, tasks: asyncio.TaskGroup) -> None:
        """Start so many applications, spread over the gateways, and wait until all are connected."""
        self._size += count
        for number in range(count):
            tasks.create_task(self._live(number), name=f"application {number}")
        await until(lambda: self.complete, 20)

    async def _live(self, number: int) -> None:
        """Stay connected: come back after every end, at the gateways in turn."""
        for turn in itertools.count(number):
            gateway = self._gateways[turn % len(self._gateways)]
            try:
                await self._stay(gateway)
            except* (OSError, WebSocketException, TimeoutError):
                pass  # the gateway is dead, or frozen, or has lost NATS: the next one in turn
            await asyncio.sleep(COMEBACK_SECONDS)

    async def _stay(self, gateway: Listener) -> None:
        """Connect, and return when the connection has ended."""
        client_id = ""

        async def work(parameters: dict[str, Any]) -> dict[str, Any]:
            self.ledger.executed(parameters["number"], client_id)
            await asyncio.sleep(parameters["workMs"] / 1000)
            return parameters

        async def hold(parameters: dict[str, Any]) -> dict[str, Any]:
            self.ledger.executed(parameters["number"], client_id)
            await self.release.wait()
            return parameters

        async with application(gateway.url, {"work": work, "hold": hold}) as app:
            client_id = app.client_id
            self._homes[client_id] = gateway
            try:
                await app.closed(LIFETIME_SECONDS)
            finally:
                del self._homes[client_id]


class Load:
    """Callers that send commands to all clients, on all ways, until they are told to stop."""

    def __init__(self, fleet: Called, ways: Sequence[Way]) -> None:
        self.fleet = fleet
        self.ledger = fleet.ledger
        self.ways = ways
        self._random = random.Random(1)
        self._stopped = False

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Let the callers begin."""
        for number in range(CALLERS):
            tasks.create_task(self._keep_calling(self.ways[number % len(self.ways)]), name=f"caller {number}")

    async def stop(self, seconds: float = 10) -> None:
        """Let the callers end, and wait for the last answer."""
        self._stopped = True
        await until(lambda: not self.ledger.waiting(), seconds)

    async def hold(self, client_ids: set[str], tasks: asyncio.TaskGroup) -> list[Command]:
        """Have each client execute a command, on each way, that ends when the fleet releases it; return these."""
        held = []
        for client_id, way in itertools.product(sorted(client_ids), self.ways):
            held.append(command := self.ledger.issue(client_id))
            tasks.create_task(self._call(way, command, "hold"), name=f"held command {command.number}")
        await until(lambda: all(command.executed_by for command in held))
        return held

    async def flows(self, count: int = 300, seconds: float = 15) -> None:
        """Wait until so many more commands have been successful."""
        wanted = self.ledger.outcomes()[SUCCESS] + count
        await until(lambda: self.ledger.outcomes()[SUCCESS] >= wanted, seconds)

    async def _keep_calling(self, way: Way) -> None:
        while not self._stopped:
            clients = sorted(self.fleet.clients)
            if clients:
                command = self.ledger.issue(self._random.choice(clients))
                await self._call(way, command, "work", workMs=self._random.choice(WORK_MS))
            await asyncio.sleep(THINK_SECONDS)

    async def _call(self, way: Way, command: Command, target: str, **parameters: Any) -> None:
        parameters["number"] = command.number
        command.over_http = isinstance(way, OverHttp)
        answer, result = await way.call(command.client_id, target, parameters)
        assert answer != SUCCESS or result == parameters, result
        command.refusal = None if answer == SUCCESS else result
        command.answers.append(answer)


@contextlib.asynccontextmanager
async def over_nats(settings: Settings, sub: str = "direct-agent") -> AsyncIterator[OverNats]:
    """Connect an agent that speaks NATS itself."""
    token = agent_token(sub)
    login = connect(settings, "agent", user_name(TENANT, sub), token=lambda: token)
    async with login as connection, ending_tasks() as tasks:
        caller = Caller(connection, RegistryClient(connection, TENANT, token).knows, tasks)
        await caller.start()
        yield OverNats(caller, token)


@contextlib.asynccontextmanager
async def ending_tasks() -> AsyncIterator[asyncio.TaskGroup]:
    """Run tasks that have no end of their own, and end them with the block."""
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
            raise _Done
    except* _Done:
        pass


class _Done(Exception):
    """Ends a task group whose work is done."""
