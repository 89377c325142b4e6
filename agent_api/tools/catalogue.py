"""The tools of all tenants with requests for tools, kept up to date by the mirror's changes.

A tenant's tools are read at the first request, and forgotten if there are no more requests. Changes are only noted when
they come. The next request reads them in slices, so that ten thousand new clients delay no other work.
"""

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterator
from typing import NamedTuple

import msgspec

from agent_api.clients.find import KnownClients, clients_of
from agent_api.tools.ages import ToolAges
from agent_api.tools.groups import TenantTools
from agent_api.tools.listing import ToolListing, listing_of
from agent_api.tools.news import TenantNews, ToolNews
from agent_api.tools.views import EVERYTHING, Narrowing, ToolView
from protocol.access import Principal
from protocol.errors import BridgeError

SLICE_SECONDS = 0.004
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
        self._clock = asyncio.get_running_loop().time
        self._comparing = asyncio.Lock()

    async def view(self, principal: Principal, narrowing: Narrowing = EVERYTHING) -> ToolView:
        """Return a principal's present tools. Raises `Unavailable` before the clients are known."""
        tenant = await self._up_to_date(principal)
        return ToolView(tenant.tools, principal, narrowing)

    async def listing(self, principal: Principal, narrowing: Narrowing = EVERYTHING) -> ToolListing:
        """Return the list of tools for a principal. Raises `Unavailable` before the clients are known."""
        tenant = await self._up_to_date(principal)
        key = _View(msgspec.structs.replace(principal, sub="", role="", expires_at=0.0), narrowing)
        kept = self._listings.get(key)
        if kept is not None and kept[:2] == (tenant.tools, tenant.tools.revision):
            self._listings.move_to_end(key)
            return kept[2]
        listing = listing_of(ToolView(tenant.tools, principal, narrowing))
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

    async def _up_to_date(self, principal: Principal) -> TenantNews:
        clients = clients_of(self._known, principal)
        tenant = self._tenants.get(principal.tenant)
        if tenant is None:
            self._forget_idle()
            tenant = self._tenants[principal.tenant] = TenantNews(dict(clients), self._room, self._clock())
        tenant.used_at = self._clock()
        if tenant.unread or tenant.reading.locked():  # another request may still be asking for ages
            async with tenant.reading:
                await _read(tenant)
                await self._settle(principal.tenant, tenant.tools)
        return tenant

    async def _settle(self, tenant: str, tools: TenantTools) -> None:
        """Ask for the ages of tools with the same name, before a list gives the name to one of them."""
        contested = tools.take_contested()
        if not contested:
            return
        try:
            for digest, since in (await self._ages.ask(tenant, contested)).items():
                tools.learn(digest, since)
        except BridgeError as exc:
            log.warning("other agent APIs could not be asked how old tools are: %s", exc.message)

    def _forget_idle(self) -> None:
        since = self._clock() - IDLE_SECONDS
        for name, tenant in list(self._tenants.items()):
            if tenant.used_at < since and not tenant.watchers and not tenant.reading.locked():
                self._tenants.pop(name).tools.close()
                self._listings = OrderedDict(
                    (key, kept) for key, kept in self._listings.items() if kept[0] is not tenant.tools
                )


async def _read(tenant: TenantNews) -> None:
    until = time.perf_counter() + SLICE_SECONDS
    while tenant.unread:
        tenant.tools.put(*tenant.unread.popitem())
        if time.perf_counter() > until:
            await asyncio.sleep(0)
            until = time.perf_counter() + SLICE_SECONDS
