"""The end of a registry that still has something to announce."""

import asyncio
from collections.abc import Callable
from typing import cast

import pytest
from support.nats.nats_server import NatsServer
from support.settings import settings_for
from support.wait import until

from protocol.errors import Unavailable
from protocol.reports import Removal
from protocol.runtime.nats.connection import Connection, connect
from protocol.runtime.streams.stores import TenantStore
from registry.bucket.announcements import Announcer
from registry.settings import RegistrySettings
from registry.stores.tenants import TenantStreams

SECONDS = 8


class NoRoom:
    """The stores of tenants, of which none can be made."""

    def __init__(self) -> None:
        self.asked = 0

    async def ensure_known(self, _: TenantStore) -> None:
        self.asked += 1
        raise Unavailable("there is no room")


@pytest.mark.parametrize("break_it", [NatsServer.kill, NatsServer.freeze], ids=["gone", "frozen"])
async def test_announcement_is_given_up_if_nats_leaves_while_it_waits(
    private_nats: NatsServer, monkeypatch: pytest.MonkeyPatch, break_it: Callable[[NatsServer], None]
) -> None:
    """As when `docker compose stop` ends both at once: NATS answers first, and is gone then."""
    async with connect(settings_for(RegistrySettings, private_nats.url), "registry", "registry") as connection:
        stores, answers, asked = NoRoom(), Connection.answers, []

        async def answers_once(self: Connection, within_seconds: float) -> bool:
            asked.append(await answers(self, within_seconds))
            if len(asked) == 1:
                break_it(private_nats)
            return asked[-1]

        monkeypatch.setattr(Connection, "answers", answers_once)
        async with asyncio.TaskGroup() as tasks:
            announcer = Announcer(connection, cast("TenantStreams", stores))
            async with asyncio.timeout(SECONDS), announcer.announcing(tasks):
                await announcer.announce("disconnected", Removal("default", "c1", "closed"), 1)
                await until(lambda: stores.asked)
            assert asked[0]
            assert not asked[-1]
            for task in asyncio.all_tasks():
                if task.get_name().startswith("announce"):
                    task.cancel()
        private_nats.kill()
