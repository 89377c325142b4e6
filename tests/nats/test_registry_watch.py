"""The watch over gateways against a real server, where asking fails or a silence proves nothing."""

import asyncio

from support.halves import Half, halves
from support.kv import record
from support.nats_server import NatsServer
from support.wait import until

from protocol.errors import Unavailable
from protocol.reports import Report
from registry.hearing import Hearing
from registry.sync import Syncs
from registry.watch import Watch

TRUTH_SECONDS = 10


class CutOff(Hearing):
    """Loses NATS when it asks its peers for the first time."""

    asked = 0

    async def recently(self, gateway_id: str) -> bool:
        """Fail once, then ask."""
        self.asked += 1
        if self.asked == 1:
            raise Unavailable("NATS is away")
        return await super().recently(gateway_id)


async def keep_watch(half: Half, hearing: Hearing) -> None:
    async with asyncio.TaskGroup() as tasks:
        syncs = Syncs(half.connection, half.store, tasks)
        await Watch(half.connection, tasks, half.holdings, hearing, half.store, syncs).run()


async def test_gateway_is_withdrawn_although_peers_could_not_be_asked_at_first(private_nats: NatsServer) -> None:
    async with halves(private_nats.url) as ((half,), announced):
        await half.follow()
        await half.store.apply(Report("gw-1", 1, [record("a")], []))
        hearing = CutOff(half.connection)
        half.running.append(half.tasks.create_task(keep_watch(half, hearing)))
        async with asyncio.timeout(TRUTH_SECONDS):
            await until(lambda: announced.reasons() == {"a": "gateway_lost"}, TRUTH_SECONDS)
        assert hearing.asked == 2
