"""A bridge of many processes under load, and what must hold at the end of whatever befell it."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager

import httpx
from nats.aio.msg import Msg

from protocol.runtime.settings import Settings
from support.load.ledger import Command, Ledger
from support.load.load import Fleet, Load, OverHttp, Way, ending_tasks, over_nats
from support.processes.bridge import Bridge
from support.processes.registry import Observer
from support.settings import agent_token, bearer
from support.wait import until

APPLICATIONS = 12
HTTP_SECONDS = 60
COMPLETE_SECONDS = 15
SLACK_SECONDS = 1.5  # for a machine that does many other things; the bounds are of minutes, were they missed


class Story:
    """Everything that a test of many processes needs."""

    def __init__(
        self,
        bridge: Bridge,
        fleet: Fleet,
        load: Load,
        watching: Observer,
        http: httpx.AsyncClient,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self.bridge = bridge
        self.load = load
        self.fleet = fleet
        self.ledger = load.ledger
        self.tasks = tasks
        self._observer = watching
        self._http = http

    async def hold(self, client_ids: set[str]) -> list[Command]:
        """Have commands under way to each of these clients on each way, and return them."""
        return await self.load.hold(client_ids, self.tasks)

    async def freed(self, commands: Collection[Command], seconds: float) -> None:
        """Wait until each of these commands has its answer; fail where that takes longer than it may."""
        await until(lambda: not any(command.waits for command in commands), seconds + SLACK_SECONDS)

    async def truth_is_told(self, seconds: float) -> None:
        """Wait until the applications are back, then until everybody lists exactly those that are connected."""
        await until(lambda: self.fleet.complete, COMPLETE_SECONDS)
        await until(lambda: self.all_list(self.fleet.clients), seconds + SLACK_SECONDS)

    async def all_list(self, client_ids: set[str]) -> bool:
        """Tell whether every agent API, and the registries over NATS, list exactly these clients."""
        for agent_api in filter(lambda each: each.running, self.bridge.agent_apis):
            if await self._listed(agent_api.url) != client_ids:
                return False
        for _ in range(2 * len(self.bridge.registries)):  # whichever answers
            if not await self._observer.lists(*client_ids):
                return False
        return True

    async def end(self, *allowed: str) -> None:
        """Let all come to rest, and check the ledger; only these answers may have been given."""
        self.fleet.release.set()
        await self.load.stop()
        assert self.ledger.faults() == []
        assert set(self.ledger.outcomes()) <= set(allowed), self.ledger.outcomes()
        assert not any("Traceback" in process.log for process in self.bridge.processes), self.bridge.log

    async def _listed(self, url: str) -> set[str]:
        answer = await self._http.get(f"{url}/api/clients")
        return {record["clientId"] for record in answer.json()} if answer.status_code == httpx.codes.OK else set()


class Inboxes:
    """What came to whom: a tap on all replies, where NATS has no users that keep them apart."""

    def __init__(self) -> None:
        self._terminal: Counter[str] = Counter()

    async def take(self, msg: Msg) -> None:
        """Count a terminal answer."""
        if b'"status":' in msg.data and b'"durationMs":' in msg.data:
            self._terminal[msg.subject] += 1

    @property
    def answered(self) -> int:
        """To how many requests a terminal answer came."""
        return len(self._terminal)

    def answered_again(self) -> list[str]:
        """Return the inboxes that got more than one terminal answer to one request."""
        return [inbox for inbox, count in self._terminal.items() if count > 1]


@contextlib.asynccontextmanager
async def told(
    bridge: Bridge, direct: Settings, observing: AbstractAsyncContextManager[Observer]
) -> AsyncIterator[Story]:
    """Connect applications and callers to a running bridge: `direct` are the settings of those that speak NATS."""
    headers = bearer(agent_token("http-agent"))
    async with (
        httpx.AsyncClient(headers=headers, timeout=HTTP_SECONDS, trust_env=False) as http,
        over_nats(direct) as nats_way,
        observing as watching,
        ending_tasks() as tasks,
    ):
        fleet = Fleet(bridge.gateways, Ledger())
        await fleet.join(APPLICATIONS, tasks)
        ways: list[Way] = [*(OverHttp(agent_api, http) for agent_api in bridge.agent_apis), nats_way]
        story = Story(bridge, fleet, Load(fleet, ways), watching, http, tasks)
        await story.truth_is_told(5)
        yield story
