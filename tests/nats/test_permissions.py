"""Every NATS user of the template against a real server: what it must be able to do, and what must be refused."""

import asyncio
import contextlib
import json
from collections.abc import Callable

import msgspec
import pytest
from conftest import MakeNats
from nats.aio.msg import Msg
from support.kv import record
from support.settings import settings_for
from support.wait import until

from agentbridge import nats_config
from protocol import codec, subjects
from protocol.audit import AuditFilter, AuditRecord
from protocol.errors import ConfigurationError
from protocol.runtime import jetstream
from protocol.runtime.audit_history import AuditHistory
from protocol.runtime.mirror import Mirror
from protocol.runtime.nats import Connection, connect
from protocol.runtime.responder import Responder
from protocol.runtime.settings import Settings

TENANTS = ("default", "acme")
MIRRORED = 5000
AnyJson = msgspec.json.Decoder(dict)
As = Callable[[str], contextlib.AbstractAsyncContextManager[Connection]]


@pytest.fixture
async def as_user(make_nats: MakeNats, monkeypatch: pytest.MonkeyPatch) -> As:
    """A server with the users of the template; `as_user("gateway")` connects as one of them."""
    passwords = {user.name: nats_config.new_password() for user in nats_config.users(TENANTS)}
    for user in nats_config.users(TENANTS):
        monkeypatch.setenv(user.password_variable, passwords[user.name])
    server = make_nats(nats_config.authorization(TENANTS))
    await server.start()

    def enter(name: str) -> contextlib.AbstractAsyncContextManager[Connection]:
        settings = settings_for(Settings, server.url, nats_user=name, nats_password=passwords[name])
        return connect(settings, name, name)

    return enter


async def make_streams(registry: Connection) -> None:
    """Make what the registry makes at its start, as far as permissions are concerned."""
    for name, subject, more in (
        (subjects.EVENTS_STREAM, subjects.ALL_EVENTS, {}),
        (subjects.AUDIT_STREAM, subjects.ALL_AUDIT, {}),
        (f"KV_{subjects.CLIENTS_BUCKET}", f"$KV.{subjects.CLIENTS_BUCKET}.>", {"max_msgs_per_subject": 1}),
        (f"KV_{subjects.IDEMPOTENCY_BUCKET}", f"$KV.{subjects.IDEMPOTENCY_BUCKET}.>", {"allow_msg_ttl": True}),
    ):
        config = {"name": name, "subjects": [subject], "allow_direct": True, "max_msgs_per_subject": -1, **more}
        await jetstream.request(registry, f"STREAM.CREATE.{name}", AnyJson, **config)


async def answer(connection: Connection, subject: str) -> None:
    """Have a user serve a subject with the name of the user."""

    async def reply(msg: Msg) -> None:
        await connection.publish(msg.reply, connection.name.encode())

    await connection.subscribe(subject, reply)
    await connection.flush()


async def refused(connection: Connection) -> bool:
    """Tell whether the server has refused anything so far."""
    try:
        await connection.verify_permissions()
    except ConfigurationError:
        return True
    return False


@pytest.mark.parametrize(
    ("caller", "subject", "server", "pattern"),
    [
        ("api", "agentbridge.default.command.c1", "gateway", subjects.ALL_COMMANDS),
        ("agent_default", "agentbridge.default.command.c1", "gateway", subjects.ALL_COMMANDS),
        ("agent_acme", "agentbridge.acme.command.c1", "gateway", subjects.ALL_COMMANDS),
        ("console", "agentbridge.acme.command.c1", "gateway", subjects.ALL_COMMANDS),
        ("gateway", "agentbridge.default.command.c1", "gateway", subjects.ALL_COMMANDS),
        ("api", "agentbridge._gateway.gw-1.disconnect", "gateway", "agentbridge._gateway.gw-1.disconnect"),
        ("api", "agentbridge._gateway.gw-1.ping", "gateway", "agentbridge._gateway.gw-1.ping"),
        ("gateway", "agentbridge._gateway.gw-1.ping", "gateway", "agentbridge._gateway.gw-1.ping"),
        ("registry", "agentbridge._gateway.gw-1.ping", "gateway", "agentbridge._gateway.gw-1.ping"),
        ("gateway", subjects.REGISTRY_REPORT, "registry", subjects.REGISTRY_REPORT),
        ("registry", subjects.REGISTRY_PEER_HEARD, "registry", subjects.REGISTRY_PEER_HEARD),
        ("api", "agentbridge.default.registry.list", "registry", subjects.ALL_REGISTRY_REQUESTS),
        ("agent_default", "agentbridge.default.registry.get", "registry", subjects.ALL_REGISTRY_REQUESTS),
        ("console", "agentbridge.acme.registry.find", "registry", subjects.ALL_REGISTRY_REQUESTS),
    ],
)
async def test_request_is_answered(as_user: As, caller: str, subject: str, server: str, pattern: str) -> None:
    async with as_user(server) as serving, as_user(caller) as asking:
        await answer(serving, pattern)
        reply = await asking.request(subject, b"{}", 5)
        assert reply.data == server.encode()


@pytest.mark.parametrize("asker", ["registry", "api", "console"])
async def test_all_three_processes_answer_as_micro_services(as_user: As, asker: str) -> None:
    async with (
        as_user("gateway") as gateway,
        as_user("registry") as registry,
        as_user("api") as api,
        as_user(asker) as asking,
        asyncio.TaskGroup() as tasks,
    ):
        for connection in (gateway, registry, api):
            await Responder(connection, tasks, connection.name, {}, connection.name).announce()
            await connection.verify_permissions()
        names: set[str] = set()

        async def note(msg: Msg) -> None:
            names.add(json.loads(msg.data)["name"])

        inbox = asking.new_inbox()
        await asking.subscribe(inbox, note)
        await asking.publish("$SRV.PING", b"", reply=inbox)
        await until(lambda: names == {"gateway", "registry", "api"})


async def test_event_is_stored_with_an_acknowledgement_and_reaches_taps(as_user: As) -> None:
    async with (
        as_user("registry") as registry,
        as_user("gateway") as gateway,
        as_user("agent_default") as agent,
        as_user("agent_acme") as stranger,
        as_user("console") as console,
    ):
        await make_streams(registry)
        heard = [await tap(agent, "default"), await tap(console, "*"), await tap(stranger, "acme")]
        event = subjects.event("default", "c1", "saved")
        assert await jetstream.publish(gateway, event, b"{}", {"Nats-Msg-Id": "default.c1.1"}) == 1
        await until(lambda: heard[0] == heard[1] == [event])
        assert not heard[2]


async def test_change_announced_by_a_registry_reaches_taps(as_user: As) -> None:
    async with as_user("registry") as registry, as_user("agent_default") as agent, as_user("console") as console:
        heard = [await tap(agent, "default"), await tap(console, "*")]
        change = subjects.client_change("default", "c1", "connected")
        await registry.publish(change, b"{}")
        await until(lambda: heard == [[change], [change]])


async def tap(connection: Connection, tenant: str) -> list[str]:
    """Subscribe to a tenant's events and changes; return the list that their subjects join."""
    heard: list[str] = []

    async def note(msg: Msg) -> None:
        heard.append(msg.subject)

    for kind in ("event", "client"):
        await connection.subscribe(f"agentbridge.{tenant}.{kind}.>", note)
    await connection.flush()
    return heard


@pytest.mark.parametrize("user", ["gateway", "api"])
async def test_audit_is_stored(as_user: As, user: str) -> None:
    async with as_user("registry") as registry, as_user(user) as auditing:
        await make_streams(registry)
        assert await jetstream.publish(auditing, subjects.audit("default", "c1", "success"), b"{}", {}) == 1


async def test_mirror_of_many_clients_fills(as_user: As) -> None:
    async with as_user("registry") as registry, as_user("api") as api, asyncio.TaskGroup() as tasks:
        await make_streams(registry)
        for client_id in (f"c{number}" for number in range(MIRRORED)):
            body = codec.encode(record(client_id, metadata={"padding": "x" * 2000}))
            await registry.publish(f"$KV.{subjects.CLIENTS_BUCKET}.default.{client_id}", body)
        await until(lambda: all_stored(registry))

        mirror = Mirror(api)
        running = tasks.create_task(mirror.run())
        async with asyncio.timeout(20):
            await mirror.filled.wait()
        assert len(mirror.clients("default")) == MIRRORED

        await registry.publish(f"$KV.{subjects.CLIENTS_BUCKET}.default.c0", b"", headers={"KV-Operation": "DEL"})
        await until(lambda: mirror.get("default", "c0") is None)
        assert not await refused(api)
        running.cancel()


async def all_stored(registry: Connection) -> bool:
    info = await jetstream.stream_info(registry, f"KV_{subjects.CLIENTS_BUCKET}")
    return info is not None and info.state.last_seq == MIRRORED


@pytest.mark.parametrize("user", ["gateway", "api"])
async def test_idempotency_entry_is_created_read_and_completed_by_revision(as_user: As, user: str) -> None:
    subject = f"$KV.{subjects.IDEMPOTENCY_BUCKET}.default.abc"
    stream = f"KV_{subjects.IDEMPOTENCY_BUCKET}"
    async with as_user("registry") as registry, as_user(user) as writer:
        await make_streams(registry)
        new = {jetstream.EXPECTED_REVISION_HEADER: "0", jetstream.TTL_HEADER: "600s"}
        revision = await jetstream.publish(writer, subject, b"{}", new)
        done = {jetstream.EXPECTED_REVISION_HEADER: str(revision), jetstream.TTL_HEADER: "600s"}
        await jetstream.publish(writer, subject, b'{"done":true}', done)
        with pytest.raises(jetstream.WrongRevision):
            await jetstream.publish(writer, subject, b"{}", new)

        direct = await writer.request(f"$JS.API.DIRECT.GET.{stream}.{subject}", b"", 5)
        assert direct.data == b'{"done":true}'
        stored = await jetstream.request(writer, f"STREAM.MSG.GET.{stream}", AnyJson, last_by_subj=subject)
        assert stored["message"]["subject"] == subject
        assert await jetstream.stream_info(writer, stream) is not None
        assert not await refused(writer)


async def test_agent_api_reads_the_streams(as_user: As) -> None:
    async with as_user("registry") as registry, as_user("api") as api:
        await make_streams(registry)
        for stream in (subjects.EVENTS_STREAM, subjects.AUDIT_STREAM):
            config = {"deliver_subject": api.new_inbox(), "ack_policy": "none", "name": "reader"}
            body = {"stream_name": stream, "config": config}
            await jetstream.request(api, f"CONSUMER.CREATE.{stream}.reader", AnyJson, **body)
            await jetstream.request(api, f"CONSUMER.DELETE.{stream}.reader", AnyJson)
        assert not await refused(api)


@pytest.mark.parametrize("user", ["api", "console"])
async def test_audit_is_read_backwards(as_user: As, user: str) -> None:
    async with as_user("registry") as registry, as_user("gateway") as gateway, as_user(user) as reader:
        await make_streams(registry)
        record = AuditRecord(
            at="2026-01-01T00:00:00.000Z", tenant="acme", outcome="success", duration_ms=1, by="gateway"
        )
        await jetstream.publish(gateway, subjects.audit("acme", "c1", "success"), codec.encode(record), {})
        history = AuditHistory(reader)
        await history.start()
        page = await history.page("acme", AuditFilter(), 10)
        assert [found.record for found in page.found] == [record]
        assert not await refused(reader)


FORBIDDEN_TO_PUBLISH = {
    "gateway": [
        "$KV.agentbridge_clients.default.c1",
        "$JS.API.STREAM.MSG.GET.KV_agentbridge_clients",
        "$JS.API.STREAM.CREATE.mine",
        "$JS.API.STREAM.DELETE.KV_agentbridge_idempotency",
        "$JS.API.STREAM.PURGE.agentbridge_events",
        "agentbridge.default.client.c1.connected",
        "agentbridge.default.registry.list",
        "$SRV.PING",
    ],
    "registry": [
        "agentbridge.default.event.c1.saved",
        "agentbridge.default.command.c1",
        "agentbridge.default.audit.c1.success",
    ],
    "api": [
        "$KV.agentbridge_clients.default.c1",
        "$JS.API.STREAM.CREATE.mine",
        "$JS.API.STREAM.UPDATE.agentbridge_events",
        "$JS.API.STREAM.DELETE.KV_agentbridge_clients",
        "$JS.API.STREAM.PURGE.agentbridge_audit",
        "$JS.API.STREAM.MSG.DELETE.agentbridge_audit",
        "agentbridge.default.event.c1.saved",
        "agentbridge.default.client.c1.connected",
        "agentbridge._gateway.gw-1.sync",
        "agentbridge._registry.report",
    ],
    "agent_default": [
        "agentbridge.default.event.c1.saved",
        "agentbridge.default.client.c1.connected",
        "agentbridge.default.audit.c1.success",
        "agentbridge.acme.command.c1",
        "agentbridge.acme.registry.list",
        "agentbridge._registry.report",
        "agentbridge._gateway.gw-1.disconnect",
        "$JS.API.INFO",
        "$JS.API.STREAM.NAMES",
        "$JS.API.DIRECT.GET.KV_agentbridge_clients.$KV.agentbridge_clients.default.c1",
        "$KV.agentbridge_clients.default.c1",
        "$KV.agentbridge_idempotency.default.abc",
        "$SRV.PING",
        "_INBOX.api.1",
        "_INBOX.agent_default.1",
    ],
    "console": [
        "$KV.agentbridge_clients.default.c1",
        "$JS.API.STREAM.NAMES",
        "$JS.API.STREAM.INFO.agentbridge_events",
        "$JS.API.DIRECT.GET.agentbridge_events",
        "$JS.API.STREAM.PURGE.agentbridge_audit",
        "$JS.API.STREAM.MSG.DELETE.agentbridge_audit",
        "agentbridge.default.audit.c1.success",
        "agentbridge.default.event.c1.saved",
        "agentbridge.default.client.c1.connected",
        "agentbridge._registry.report",
        "agentbridge._gateway.gw-1.disconnect",
        "_INBOX.api.1",
    ],
}
FORBIDDEN_TO_SUBSCRIBE = {
    "gateway": ["agentbridge.*.registry.*", "agentbridge.*.event.>", "agentbridge._registry.>", "_INBOX.api.>", ">"],
    "registry": ["agentbridge.*.command.*", "agentbridge.*.event.>", "agentbridge._gateway.*.*", "_INBOX.>", ">"],
    "api": ["agentbridge.*.command.*", "agentbridge.*.registry.*", "agentbridge.*.event.>", "$KV.>", "_INBOX.>", ">"],
    "agent_default": [
        "agentbridge.default.command.*",
        "agentbridge.default.command.c1",
        "agentbridge.*.command.*",
        "agentbridge.default.registry.*",
        "agentbridge.default.audit.>",
        "agentbridge.acme.event.>",
        "agentbridge.*.event.>",
        "agentbridge.default.>",
        "agentbridge.>",
        "$JS.>",
        "$KV.agentbridge_clients.>",
        "$SRV.>",
        "_INBOX.agent_acme.>",
        "_INBOX.gateway.>",
        "_INBOX.*.*",
        "_INBOX.>",
        ">",
    ],
    "console": ["agentbridge.*.command.*", "agentbridge.*.registry.*", "agentbridge.>", "$KV.>", "_INBOX.>", ">"],
}


@pytest.mark.parametrize("user", FORBIDDEN_TO_PUBLISH)
async def test_publish_is_refused(as_user: As, user: str) -> None:
    for subject in FORBIDDEN_TO_PUBLISH[user]:
        async with as_user(user) as connection:
            await connection.publish(subject, b"{}")
            assert await refused(connection), subject


@pytest.mark.parametrize("user", FORBIDDEN_TO_SUBSCRIBE)
async def test_subscription_is_refused(as_user: As, user: str) -> None:
    async def ignore(msg: Msg) -> None:
        pass

    for subject in FORBIDDEN_TO_SUBSCRIBE[user]:
        async with as_user(user) as connection:
            await connection.subscribe(subject, ignore)
            assert await refused(connection), subject


async def test_reply_subject_cannot_make_a_gateway_write_a_record(as_user: As) -> None:
    """A requester chooses where the answer goes; the gateway's user lacks what it would take to do harm there."""
    async with as_user("gateway") as gateway, as_user("registry") as registry, as_user("agent_default") as agent:
        await make_streams(registry)
        await answer(gateway, subjects.ALL_COMMANDS)
        forged = f"$KV.{subjects.CLIENTS_BUCKET}.default.victim"
        await agent.publish("agentbridge.default.command.c1", b"{}", reply=forged)
        await agent.flush()
        assert await until(lambda: refused(gateway))
        info = await jetstream.stream_info(registry, f"KV_{subjects.CLIENTS_BUCKET}")
        assert info is not None
        assert info.state.last_seq == 0


async def test_wrong_password_is_refused_with_a_sentence(as_user: As, make_nats: MakeNats) -> None:
    server = make_nats(nats_config.authorization(TENANTS))
    await server.start()
    settings = settings_for(Settings, server.url, nats_user="gateway", nats_password="p-wrong")
    with pytest.raises(ConfigurationError, match="AGENTBRIDGE_NATS_PASSWORD"):
        async with connect(settings, "gateway", "gateway"):
            pass
