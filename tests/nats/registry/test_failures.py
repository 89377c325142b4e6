"""Registries when things break: gateways die, freeze and return, NATS restarts, registries die, strays lie about."""

import asyncio
import json
import signal
from pathlib import Path

import msgspec
import nats.errors
import pytest
from conftest import MakeNats
from nats.aio.client import Client
from nats.aio.msg import Msg
from support.nats.clients_bucket import record
from support.nats.nats_server import NatsServer
from support.played.gateway import FakeGateway, fake_gateway
from support.processes.child import Process
from support.processes.registry import observer, registries
from support.settings import environment
from support.wait import subscribed, until

from protocol import codec, subjects
from protocol.reports import PeerHeard, PeerHeardRequest
from protocol.runtime.process.life import EXIT_CONFIGURATION
from protocol.runtime.streams.stores import audit_of

TRUTH_SECONDS = 5


@pytest.mark.parametrize("count", [1, 2])
async def test_clients_of_a_killed_gateway_are_withdrawn(tmp_path: Path, private_nats: NatsServer, count: int) -> None:
    url = private_nats.url
    async with registries(tmp_path, url, count), observer(url) as watching, fake_gateway(url, "gw-2") as other:
        await other.connect(record("z"))
        async with fake_gateway(url) as gateway:
            await gateway.connect(*(record(f"c{number}") for number in range(50)))
            await until(lambda: len(watching.announced.messages) == 51)
        async with asyncio.timeout(TRUTH_SECONDS):
            await until(lambda: len(watching.announced.of("disconnected")) == 50)
            await until(lambda: watching.lists("z"))
        assert set(watching.announced.reasons().values()) == {"gateway_lost"}
        await other.disconnect(("default", "z"))
        await until(lambda: "z" in watching.announced.of("disconnected"))
        assert len(watching.announced.messages) == 2 * 51


async def test_frozen_gateway_is_withdrawn_and_synced_when_it_thaws(tmp_path: Path, private_nats: NatsServer) -> None:
    url = private_nats.url
    async with registries(tmp_path, url), observer(url) as watching, fake_gateway(url) as gateway:
        await gateway.connect(record("a"), record("b"))
        gateway.mute = True
        async with asyncio.timeout(TRUTH_SECONDS):
            await until(lambda: watching.announced.of("disconnected") == {"a", "b"})
        gateway.hold(record("c"))
        gateway.mute = False
        async with asyncio.timeout(TRUTH_SECONDS):
            await until(lambda: watching.lists("a", "b", "c"))
        assert watching.announced.changes()[-3:].count(("connected", "c")) == 1
        assert await gateway.connect(record("d")) == b'{"number":2}'


async def test_peer_that_hears_the_gateway_vetoes(tmp_path: Path, private_nats: NatsServer) -> None:
    """The test is the peer that still hears a gateway which this registry cannot reach."""
    url = private_nats.url
    async with registries(tmp_path, url), observer(url) as watching, fake_gateway(url) as gateway:
        await gateway.connect(record("a"))
        asked = []

        async def veto(msg: Msg) -> None:
            asked.append(msg)
            await msg.respond(codec.encode(PeerHeard(100)))

        peer = await watching.nats.subscribe(subjects.REGISTRY_PEER_HEARD, cb=veto)
        await subscribed(watching.nats)
        gateway.mute = True
        async with asyncio.timeout(2 * TRUTH_SECONDS):
            await until(lambda: len(asked) >= 2, 2 * TRUTH_SECONDS)
        assert await watching.listed() == {"a"}

        await peer.unsubscribe()
        async with asyncio.timeout(TRUTH_SECONDS):
            await until(lambda: watching.announced.of("disconnected") == {"a"})


async def test_suspect_that_answers_again_is_not_announced_anew(tmp_path: Path, private_nats: NatsServer) -> None:
    url = private_nats.url
    async with registries(tmp_path, url), observer(url) as watching, fake_gateway(url) as gateway:
        await gateway.connect(record("a"))

        async def thaw_and_veto(msg: Msg) -> None:
            gateway.mute = False
            await msg.respond(codec.encode(PeerHeard(0)))

        await watching.nats.subscribe(subjects.REGISTRY_PEER_HEARD, cb=thaw_and_veto)
        await subscribed(watching.nats)
        gateway.mute = True
        await until(lambda: gateway.syncs)
        await gateway.connect(record("b"))
        await until(lambda: "b" in watching.announced.of("connected"))
        assert watching.announced.changes() == [("connected", "a"), ("connected", "b")]


async def test_registry_says_when_it_heard_a_gateway(tmp_path: Path, private_nats: NatsServer) -> None:
    url = private_nats.url
    async with registries(tmp_path, url), observer(url) as watching, fake_gateway(url) as gateway:
        await gateway.connect()

        async def heard(gateway_id: str) -> int | None:
            body = codec.encode(PeerHeardRequest(gateway_id))
            answer = await watching.nats.request(subjects.REGISTRY_PEER_HEARD, body, timeout=5)
            return msgspec.json.decode(answer.data, type=PeerHeard).heard_ms_ago

        ago = await heard("gw-1")
        assert ago is not None
        assert ago < 1000
        assert await heard("gw-none") is None


async def test_two_registries_share_the_work(tmp_path: Path, private_nats: NatsServer) -> None:
    url = private_nats.url
    async with registries(tmp_path, url, 2), observer(url) as watching, fake_gateway(url) as gateway:
        for number in range(40):
            assert json.loads(await gateway.connect(record(f"c{number}"), record("often", revision=number + 1)))
        await until(lambda: len(watching.announced.messages) == 80)
        assert len(await watching.listed()) == 41
        counts = await reports_served(watching.nats, 2)
        assert sum(counts) == 40
        assert min(counts) > 0
        assert watching.announced.changes().count(("updated", "often")) == 39
        assert gateway.syncs == 0


async def reports_served(client: Client, count: int) -> list[int]:
    """Return how many reports each registry has served."""
    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox)
    await client.publish("$SRV.STATS.agentbridge-registry", b"", reply=inbox)
    answers = [json.loads((await subscription.next_msg(5)).data)["endpoints"] for _ in range(count)]
    return [next(each["num_requests"] for each in endpoints if each["name"] == "report") for endpoints in answers]


async def test_registry_that_dies_is_replaced_without_a_word_to_readers(
    tmp_path: Path, private_nats: NatsServer
) -> None:
    url = private_nats.url
    async with registries(tmp_path, url, 2) as running, observer(url) as watching, fake_gateway(url) as gateway:
        await gateway.connect(record("a"))
        await running[0].kill()
        await gateway.connect(record("b"))
        await until(lambda: watching.announced.of("connected") == {"a", "b"})
        assert await watching.listed() == {"a", "b"}
        assert watching.announced.of("disconnected") == set()


async def test_drift_is_mended(tmp_path: Path, private_nats: NatsServer) -> None:
    url = private_nats.url
    async with registries(tmp_path, url), observer(url) as watching, fake_gateway(url) as gateway:
        await gateway.connect(*(record(f"c{number}") for number in range(250)))
        gateway.hold(record("c0", revision=9), record("new"))
        del gateway.records["default.c1"]
        await until(lambda: len(watching.announced.messages) == 253)
        assert set(watching.announced.changes()[-3:]) == {
            ("updated", "c0"),
            ("connected", "new"),
            ("disconnected", "c1"),
        }
        assert len(await watching.listed()) == 250
        assert await gateway.connect(record("more")) == b'{"number":2}'


async def test_gateway_that_never_got_through_is_found_and_synced(tmp_path: Path, private_nats: NatsServer) -> None:
    url = private_nats.url
    async with observer(url) as watching, fake_gateway(url) as gateway:
        gateway.hold(record("a"))
        gateway.number = 7
        async with registries(tmp_path, url):
            await until(lambda: watching.announced.of("connected") == {"a"})


@pytest.mark.parametrize("wipe", [False, True], ids=["same store", "empty store"])
async def test_restart_of_nats_is_survived(tmp_path: Path, private_nats: NatsServer, wipe: bool) -> None:
    url = private_nats.url
    async with registries(tmp_path, url) as running, observer(url) as watching, fake_gateway(url) as gateway:
        await gateway.connect(record("a"), record("b"))
        await until(lambda: len(watching.announced.messages) == 2)
        private_nats.kill()
        if wipe:
            private_nats.wipe()
        await private_nats.start()
        async with asyncio.timeout(TRUTH_SECONDS):
            await until(lambda: watching.nats.is_connected)
            await until(lambda: watching.lists("a", "b"))
            if wipe:
                await until(lambda: gateway.syncs)
            await until(lambda: accepted(gateway))
        async with asyncio.timeout(TRUTH_SECONDS):
            await until(lambda: watching.lists("a", "b", "c"))
        assert watching.announced.of("disconnected") == set()
        assert all(process.running for process in running)


async def accepted(gateway: FakeGateway) -> bool:
    """Report until the registry takes it, as a gateway does."""
    last, mine = gateway.number, gateway.hold(record("c"))
    try:
        answer = json.loads(await gateway.report(last + 1, mine))
    except nats.errors.Error:  # the server, or the registry, is on its way back
        answer = {}
    if "number" not in answer:
        gateway.number = last
    return "number" in answer


async def test_frozen_nats_makes_no_gateway_suspect(tmp_path: Path, private_nats: NatsServer) -> None:
    url = private_nats.url
    async with registries(tmp_path, url) as running, observer(url) as watching, fake_gateway(url) as gateway:
        await gateway.connect(record("a"))
        private_nats.freeze()
        await until(lambda: "lost NATS" in running[0].log, 2 * TRUTH_SECONDS)
        private_nats.thaw()
        pings = gateway.pings
        await until(lambda: gateway.pings > pings + 5, 2 * TRUTH_SECONDS)
        assert await watching.listed() == {"a"}
        assert watching.announced.changes() == [("connected", "a")]


@pytest.mark.parametrize(
    "subject",
    ["agentbridge.default.command.*", "agentbridge.*.registry.list", "agentbridge._gateway.gw-1.ping"],
)
async def test_stream_that_captures_requests_is_refused(tmp_path: Path, private_nats: NatsServer, subject: str) -> None:
    async with observer(private_nats.url) as watching:
        await watching.nats.jetstream().add_stream(name="stray", subjects=[subject])
    process = Process("registry", tmp_path, environment(private_nats.url)).launch()
    assert await process.ended() == EXIT_CONFIGURATION
    assert "the stream stray captures" in process.log
    assert "Traceback" not in process.log


@pytest.mark.parametrize(
    ("name", "subject", "says"),
    [
        (audit_of(subjects.STRANGERS).stream, "something.else", "has other subjects"),
        ("foreign", subjects.ALL_EVENTS, "the stream foreign captures"),
        ("foreign", "agentbridge.acme.key.*", "the stream foreign captures"),
    ],
)
async def test_stream_in_the_way_of_ours_is_refused(
    tmp_path: Path, private_nats: NatsServer, name: str, subject: str, says: str
) -> None:
    async with observer(private_nats.url) as watching:
        await watching.nats.jetstream().add_stream(name=name, subjects=[subject])
    process = Process("registry", tmp_path, environment(private_nats.url)).launch()
    assert await process.ended() == EXIT_CONFIGURATION
    assert says in process.log


async def test_more_replicas_than_servers_are_refused(tmp_path: Path, private_nats: NatsServer) -> None:
    process = Process("registry", tmp_path, environment(private_nats.url, replicas=3)).launch()
    assert await process.ended() == EXIT_CONFIGURATION
    assert "AGENTBRIDGE_REPLICAS is 3" in process.log


async def test_limits_that_an_operator_has_tuned_are_left_alone_and_what_is_needed_is_mended(
    tmp_path: Path, private_nats: NatsServer
) -> None:
    async with observer(private_nats.url) as watching:
        jetstream = watching.nats.jetstream()
        name, captured = f"KV_{subjects.CLIENTS_BUCKET}", f"$KV.{subjects.CLIENTS_BUCKET}.>"
        await jetstream.add_stream(name=name, subjects=[captured], max_age=60)
        async with registries(tmp_path, private_nats.url):
            config = (await jetstream.stream_info(name)).config
            assert (config.max_age, config.max_msgs_per_subject, config.allow_msg_ttl) == (60, 1, True)


async def test_stream_that_cannot_be_mended_ends_the_registry_with_what_to_do(
    tmp_path: Path, private_nats: NatsServer
) -> None:
    """As nats-server 2.11.0 does with any bucket that was made without times to live."""
    name, captured = f"KV_{subjects.CLIENTS_BUCKET}", f"$KV.{subjects.CLIENTS_BUCKET}.>"
    async with observer(private_nats.url) as watching:
        counter = {"name": name, "subjects": [captured], "allow_msg_counter": True}
        await watching.nats.request(f"$JS.API.STREAM.CREATE.{name}", codec.encode(counter), timeout=5)
    process = Process("registry", tmp_path, environment(private_nats.url)).launch()
    assert await process.ended() == EXIT_CONFIGURATION
    assert f"the stream {name} was made without" in process.log
    assert "upgrade nats-server, or delete the stream" in process.log
    assert "Traceback" not in process.log


async def test_registry_waits_for_nats(tmp_path: Path, make_nats: MakeNats) -> None:
    server = make_nats("")
    async with asyncio.timeout(20):
        process = Process("registry", tmp_path, environment(server.url)).launch()
        try:
            await until(lambda: "waiting for NATS" in process.log, 10)
            await server.start()
            await until(lambda: '"process": "registry"' in process.out, 10)
            assert await process.terminate() == 0
            assert "Traceback" not in process.log
        finally:
            process.end()


async def test_sigint_and_sigterm_end_it_in_order(tmp_path: Path, private_nats: NatsServer) -> None:
    async with registries(tmp_path, private_nats.url, 2) as running, fake_gateway(private_nats.url) as gateway:
        await gateway.connect(record("a"))
        for process, number in zip(running, (signal.SIGINT, signal.SIGTERM), strict=True):
            process.signal(number)
            assert await process.ended(5) == 0
            assert "Traceback" not in process.log
