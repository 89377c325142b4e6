"""The tools of all tenants with requests for tools, kept up to date by the mirror's changes.

Nothing is read before the first request for a tenant's tools, and tools without requests are forgotten. Changes are
only noted when they come. The next request reads them, in slices, so that ten thousand new clients delay no other work;
lists are made in slices, too. A change is not made while a list is, and nobody looks at half a change.
"""

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from typing import NamedTuple
from weakref import WeakValueDictionary

import msgspec

from agent_api.clients.find import KnownClients, clients_of
from agent_api.tools.ages import MAX_QUESTIONS, ToolAges
from agent_api.tools.groups import TenantTools
from agent_api.tools.listing import ToolListing, listing_of
from agent_api.tools.news import TenantNews, ToolNews
from agent_api.tools.slices import Slices
from agent_api.tools.views import EVERYTHING, Narrowing, ToolView
from protocol.access import Principal
from protocol.errors import BridgeError

IDLE_SECONDS = 900.0
MAX_LISTINGS = 64
REST = 4  # pause after a comparison, in durations of it, so that comparisons take a fifth of the time at most
log = logging.getLogger(__name__)


class _View(NamedTuple):
    """The key of a list: rights without `sub` and `exp`, and the narrowing."""

    rights: Principal
    narrowing: Narrowing


class ToolCatalogue:
    """Makes views of tools. `news` are the changes of the `known` clients, `ages` asks other processes for ages."""

    def __init__(self, known: KnownClients, news: ToolNews, ages: ToolAges) -> None:
        self._known = known
        self._ages = ages
        self._tenants, self._room = news.tenants, news.room
        self._listings: OrderedDict[_View, tuple[TenantTools, int, ToolListing]] = OrderedDict()
        self._making: WeakValueDictionary[_View, asyncio.Lock] = WeakValueDictionary()
        self._closing: list[Generator[None, None, None]] = []
        self._clock = asyncio.get_running_loop().time
        self._comparing = asyncio.Lock()

    async def view(self, principal: Principal, narrowing: Narrowing = EVERYTHING) -> ToolView:
        """Return a principal's present tools. Raises `Unavailable` before the clients are known."""
        async with self._held(principal) as tenant:
            view = ToolView(tenant.tools, principal, narrowing)
            await Slices().run(view.prepare())
            return view

    def present(self, principal: Principal, narrowing: Narrowing = EVERYTHING) -> ToolView | None:
        """Return the known tools of a principal without reading any news; None if there are none yet."""
        tenant = self._tenants.get(principal.tenant)
        return None if tenant is None else ToolView(tenant.tools, principal, narrowing)

    async def listing(self, principal: Principal, narrowing: Narrowing = EVERYTHING) -> ToolListing:
        """Return the tools that are listed to a principal. Raises `Unavailable` before the clients are known."""
        key = _View(msgspec.structs.replace(principal, sub="", role="", expires_at=0.0), narrowing)
        making = self._making.setdefault(key, asyncio.Lock())  # a change makes all hosts ask for one list at once
        async with self._held(principal) as tenant, making:
            kept = self._listings.get(key)
            if kept is not None and kept[:2] == (tenant.tools, tenant.tools.revision):
                self._listings.move_to_end(key)
                return kept[2]
            listing = await Slices().run(listing_of(ToolView(tenant.tools, principal, narrowing)))
            self._listings[key] = tenant.tools, tenant.tools.revision, listing
            if len(self._listings) > MAX_LISTINGS:
                self._listings.popitem(last=False)
            return listing

    async def changes(self, principal: Principal, narrowing: Narrowing, pause_seconds: float) -> AsyncGenerator[None]:
        """Yield once at the beginning, then after each change of a principal's list, but with a pause in between.

        No change after the first yield is missed.
        """
        await self._up_to_date(principal)
        with self._watching(principal.tenant) as news:
            known = (await self.listing(principal, narrowing)).digest
            yield
            while True:
                await news.wait()
                await asyncio.sleep(pause_seconds)
                news.clear()
                digest = await self._compared(principal, narrowing)
                if digest != known:
                    known = digest
                    yield

    async def _compared(self, principal: Principal, narrowing: Narrowing) -> bytes:
        """Return the digest of a list. One is made at a time, because a change wakes all watchers."""
        async with self._comparing:
            begun = self._clock()
            digest = (await self.listing(principal, narrowing)).digest
            await asyncio.sleep(REST * min(self._clock() - begun, 0.05))
        return digest

    @contextlib.contextmanager
    def _watching(self, name: str) -> Iterator[asyncio.Event]:
        tenant, news = self._tenants[name], asyncio.Event()
        tenant.watchers.add(news)
        try:
            yield news
        finally:
            tenant.watchers.discard(news)
            tenant.used_at = self._clock()

    @contextlib.asynccontextmanager
    async def _held(self, principal: Principal) -> AsyncIterator[TenantNews]:
        """Read all news of a tenant, then keep its tools unchanged. News that comes meanwhile is read afterwards."""
        while True:
            tenant = await self._up_to_date(principal)
            async with tenant.gate.reading():
                if tenant.is_whole:  # else a writer was cancelled in the middle of a change
                    yield tenant
                    return

    async def _up_to_date(self, principal: Principal) -> TenantNews:
        clients = clients_of(self._known, principal)
        if principal.tenant not in self._tenants:
            await self._forget_idle()
        tenant = self._tenants.get(principal.tenant)
        if tenant is None:
            tenant = self._tenants[principal.tenant] = TenantNews(dict(clients), self._room, self._clock())
        tenant.used_at = self._clock()
        # A writer that is inside may still be asking how old tools are.
        if not tenant.is_read or tenant.tools.is_contested or tenant.gate.is_written:
            async with tenant.gate.writing():
                await tenant.read()
                await self._settle(principal.tenant, tenant.tools)
        return tenant

    async def _settle(self, tenant: str, tools: TenantTools) -> None:
        """Learn the ages of tools that want one name, before any list gives it to one of them."""
        contested = tools.contested(MAX_QUESTIONS)
        if not contested:
            return
        try:
            known = await self._ages.ask(tenant, contested)
            await Slices().run(tools.learn(known))
        except BridgeError as exc:
            log.warning("other agent APIs could not be asked how old tools are: %s", exc.message)
        tools.settled(contested)  # not if this was cancelled: then the next request asks

    async def _forget_idle(self) -> None:
        """Forget tenants without requests, in slices; the next call goes on with it if this one is cancelled."""
        since = self._clock() - IDLE_SECONDS
        for name, tenant in list(self._tenants.items()):
            if tenant.used_at < since and not tenant.watchers and tenant.gate.is_free:
                self._closing.append(self._tenants.pop(name).tools.close())
                self._listings = OrderedDict(
                    (key, kept) for key, kept in self._listings.items() if kept[0] is not tenant.tools
                )
        while self._closing:
            closing = self._closing[0]
            await Slices().run(closing)
            if closing in self._closing:  # another request may have seen its end, too
                self._closing.remove(closing)
