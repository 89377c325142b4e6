"""The watch over gateways against a real server, where asking fails or a silence proves nothing."""

import asyncio

import pytest
from nats.aio.msg import Msg
from support.nats.clients_bucket import record
from support.nats.nats_server import NatsServer
from support.played.registry_parts import Half, halves
from support.wait import until

from protocol import codec, subjects
from protocol.errors import Unavailable
from protocol.records import ClientRecord
from protocol.reports import Digest, EndReason, GatewayPong, Removal, Report, SyncPage
from registry.bucket.gateway_entry import GatewayEntry
from registry.gateways import drift
from registry.gateways.monitor import GatewayMonitor
from registry.gateways.peers import Peers
from registry.gateways.sync import Syncs

TRUTH_SECONDS = 10


class CutOff(Peers):
    """Loses NATS when it asks its peers for the first time."""

    asked = 0

    async def recently(self, gateway_id: str) -> bool:
        """Fail once, then ask."""
        self.asked += 1
        if self.asked == 1:
            raise Unavailable("NATS is away")
        return await super().recently(gateway_id)


async def keep_watch(half: Half, peers: Peers) -> None:
    async with asyncio.TaskGroup() as tasks:
        syncs = Syncs(half.connection, half.store, tasks)
        await GatewayMonitor(half.connection, tasks, half.gateway_records, peers, half.store, syncs).run()


async def test_gateway_is_withdrawn_although_peers_could_not_be_asked_at_first(private_nats: NatsServer) -> None:
    async with halves(private_nats.url) as ((half,), announced):
        await half.follow()
        await half.store.apply(Report("gw-1", 1, [record("a")], []))
        peers = CutOff(half.connection)
        half.running.append(half.tasks.create_task(keep_watch(half, peers)))
        async with asyncio.timeout(TRUTH_SECONDS):
            await until(lambda: announced.reasons() == {"a": "gateway_lost"}, TRUTH_SECONDS)
        assert peers.asked == 2


async def test_departures_that_a_dead_registry_left_are_announced_although_their_gateway_has_nothing_to_report(
    private_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It died in a sync, after it had removed the record of a client that the gateway does not have."""
    monkeypatch.setattr(drift, "LEFT_OVER_PONGS", 1)
    async with halves(private_nats.url) as ((half,), announced):
        await half.follow()
        await half.store.apply(Report("gw-1", 1, [record("a")], []))
        ghost = Removal("default", "ghost", EndReason.UNREPORTED, "ann", "todo", 3)
        own = await half.bucket.read(subjects.gateway_key("gw-1"))
        await half.bucket.put(subjects.gateway_key("gw-1"), codec.encode(GatewayEntry(1, [ghost])), own.revision)
        await answer_as_gateway(half, [record("a")])
        half.running.append(half.tasks.create_task(keep_watch(half, Peers(half.connection))))
        await until(lambda: announced.reasons() == {"ghost": "unreported"}, TRUTH_SECONDS)
        await until(lambda: not half.gateway_records.of("gw-1").leaving_since)
        assert announced.of("connected") == {"a"}


async def answer_as_gateway(half: Half, records: list[ClientRecord]) -> None:
    """Answer as a gateway that has reported these and is at rest."""
    digest = Digest()
    for each in records:
        digest.toggle(subjects.client_key(each.tenant, each.client_id), each.revision)
    answers = {"ping": GatewayPong("gw-1", 1, len(records), str(digest)), "sync": SyncPage(1, records)}

    async def answer(msg: Msg) -> None:
        await msg.respond(codec.encode(answers[msg.subject.rpartition(".")[2]]))

    for operation in answers:
        await half.connection.subscribe(subjects.gateway("gw-1", operation), answer)
