"""Registries whose NATS does not take what they write: heard by operators, and made good as soon as NATS takes it."""

import asyncio
import contextlib
import json
import resource
from collections.abc import AsyncIterator
from pathlib import Path

import nats.errors
import pytest
from conftest import MakeNats
from support.nats.audit import statistics
from support.nats.clients_bucket import record
from support.nats.nats_server import NatsServer
from support.played.gateway import FakeGateway, fake_gateway
from support.processes.child import Process
from support.processes.registry import Observer, observer, registries
from support.settings import environment
from support.wait import until

from protocol import codec, subjects
from protocol.records import ClientRecord
from protocol.runtime.process.life import EXIT_CONFIGURATION

HEALED_SECONDS = 2
CLIENTS_STREAM = f"KV_{subjects.CLIENTS_BUCKET}"
MIB = 1024 * 1024


async def health(folder: Path, url: str) -> tuple[str, list[str]]:
    """Return what `agentbridge health` says is wrong, and the faults of its JSON form."""
    process = Process("agentbridge", folder / "health", environment(url), "health", "--json").launch()
    assert await process.ended() == 1, "the gateways that the test plays do not answer, so it cannot be 0"
    return process.log, json.loads(process.out)["faults"]


@contextlib.asynccontextmanager
async def reporting(gateway: FakeGateway, client_id: str) -> AsyncIterator[asyncio.Task[None]]:
    """Report a client again and again until the registry takes it, as a gateway does."""

    async def report() -> None:
        mine = gateway.hold(record(client_id))
        while "number" not in await answer(gateway, mine):
            await asyncio.sleep(0.25)

    async def answer(gateway: FakeGateway, mine: list[ClientRecord]) -> dict[str, object]:
        number = gateway.number + 1
        with contextlib.suppress(nats.errors.Error):
            told: dict[str, object] = json.loads(await gateway.report(number, mine))
            if "number" in told:
                return told
        gateway.number = number - 1
        return {}

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(report())
        yield task
        await asyncio.wait_for(task, 20)


async def limit(watching: Observer, stream: str, max_bytes: int) -> None:
    """Change how much a stream takes, as an operator does."""
    config = (await watching.nats.jetstream().stream_info(stream)).config.as_dict() | {"max_bytes": max_bytes}
    answer = await watching.nats.request(f"$JS.API.STREAM.UPDATE.{stream}", codec.encode(config), timeout=5)
    assert "error" not in json.loads(answer.data)


async def test_full_bucket_is_heard_and_newcomers_are_listed_once_it_is_larger(
    tmp_path: Path, private_nats: NatsServer
) -> None:
    url = private_nats.url
    async with registries(tmp_path, url) as (registry,), observer(url) as watching, fake_gateway(url) as gateway:
        await gateway.connect(record("a"))
        await limit(watching, CLIENTS_STREAM, 512)
        async with reporting(gateway, "late") as task:
            fault = f"the stream {CLIENTS_STREAM} refuses messages (maximum bytes exceeded)"
            await until(lambda: fault in registry.log)
            said, faults = await health(tmp_path, url)
            assert [each.startswith(fault) for each in faults] == [True]
            assert f"nats stream edit {CLIENTS_STREAM}" in said
            counted = await statistics(url, "agentbridge-registry")
            assert counted["storesRefusing"] == 1
            assert counted["storeWritesRefused"] > 1
            assert await watching.listed() == {"a"}

            await limit(watching, CLIENTS_STREAM, -1)
            await asyncio.wait_for(task, HEALED_SECONDS)
        await until(lambda: watching.lists("a", "late"))
        assert (await statistics(url, "agentbridge-registry"))["storesRefusing"] == 0
        assert (await health(tmp_path, url))[1] == []
        assert f"the stream {CLIENTS_STREAM} takes messages again" in registry.log


async def test_nats_without_storage_is_heard_and_leavers_go_once_there_is_room(
    tmp_path: Path, make_nats: MakeNats
) -> None:
    server = make_nats("")
    server.limit_storage(8 * MIB)
    await server.start()
    url = server.url
    async with registries(tmp_path, url) as (registry,), observer(url) as watching, fake_gateway(url) as gateway:
        await gateway.connect(record("a"), record("b"))
        jetstream = watching.nats.jetstream()
        await jetstream.add_stream(name="hoard", subjects=["hoard"])
        for _ in range(12):
            await watching.nats.request("hoard", b"x" * (MIB - 1024), timeout=5)
        async with reporting(gateway, "late") as task:
            fault = f"the stream {CLIENTS_STREAM} refuses messages (insufficient resources); NATS has no storage left"
            await until(lambda: fault in registry.log)
            assert "max_file_store" in (await health(tmp_path, url))[0]
            await jetstream.delete_stream("hoard")
            await asyncio.wait_for(task, HEALED_SECONDS)
        await gateway.disconnect(("default", "a"))
        await until(lambda: watching.lists("b", "late"))


async def test_stream_that_nats_keeps_dead_after_a_full_disk_is_named(tmp_path: Path, private_nats: NatsServer) -> None:
    """A limit on the size of its files stands for the full disk; NATS writes no more, even when it is gone."""
    url = private_nats.url
    async with registries(tmp_path, url) as (registry,), observer(url) as watching, fake_gateway(url) as gateway:
        await gateway.connect(record("a"))
        private_nats.limit_files(512)
        async with reporting(gateway, "late") as task:
            fault = f"the stream {CLIENTS_STREAM} takes no messages, though NATS answers"
            await until(lambda: fault in registry.log, 20)
            private_nats.limit_files(resource.RLIM_INFINITY)
            said, faults = await health(tmp_path, url)
            assert fault in said
            assert "restart nats-server" in faults[0]
            private_nats.stop()
            await private_nats.start()
            await asyncio.wait_for(task, 10)
        await until(lambda: watching.lists("a", "late"))
        assert (await health(tmp_path, url))[1] == []


async def test_record_that_is_too_large_for_the_bucket_is_stored_without_capabilities(
    tmp_path: Path, private_nats: NatsServer
) -> None:
    url = private_nats.url
    async with registries(tmp_path, url) as (registry,), observer(url) as watching, fake_gateway(url) as gateway:
        config = (await watching.nats.jetstream().stream_info(CLIENTS_STREAM)).config.as_dict() | {"max_msg_size": 4096}
        await watching.nats.request(f"$JS.API.STREAM.UPDATE.{CLIENTS_STREAM}", codec.encode(config), timeout=5)
        large = codec.encode([{"type": "function", "name": f"f{number}"} for number in range(400)])
        answer = await gateway.connect(record("small"), record("large", capabilities=large))
        assert json.loads(answer) == {"number": 1}
        await until(lambda: watching.lists("small", "large"))
        found = {each["clientId"]: each["capabilities"] for each in (await watching.ask("list"))["clients"]}
        assert found == {"small": [], "large": []}
        assert "records were stored without capabilities, the last of default.large" in registry.log


@pytest.mark.parametrize(("megabytes", "is_less"), [(1500, False), (8, True), (2, True)])
async def test_streams_fit_into_a_small_nats(
    tmp_path: Path, make_nats: MakeNats, megabytes: int, is_less: bool
) -> None:
    server = make_nats("")
    server.limit_storage(megabytes * MIB)
    await server.start()
    process = Process("registry", tmp_path, environment(server.url)).launch()
    try:
        await until(lambda: '"process": "registry"' in process.out, 10)
        assert ("too little room" in process.log) == is_less
    finally:
        process.end()


async def test_without_room_the_registry_ends_with_sizes_and_remedy(tmp_path: Path, make_nats: MakeNats) -> None:
    server = make_nats("")
    server.limit_storage(MIB // 2)
    await server.start()
    process = Process("registry", tmp_path, environment(server.url)).launch()
    try:
        assert await process.ended(10) == EXIT_CONFIGURATION
        assert "NATS has no room for the stream" in process.log
        assert "1048576 at least" in process.log
        assert "max_file_store" in process.log
    finally:
        process.end()
