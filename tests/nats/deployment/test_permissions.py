"""Every NATS user of the template against a real server: what it must be able to do, and what must be refused."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from conftest import MakeNats
from nats.aio.msg import Msg
from support.nats.clients_bucket import record
from support.nats.template import Template, as_agent
from support.played.callout import logins
from support.settings import admin_token, agent_token, settings_for
from support.wait import until

from protocol import codec, subjects
from protocol.audit import AuditFilter, AuditRecord
from protocol.errors import ConfigurationError, Unavailable
from protocol.runtime.clients.mirror import Mirror
from protocol.runtime.commands.audit_history import AuditHistory
from protocol.runtime.nats import agent_login
from protocol.runtime.nats.connection import Connection, connect
from protocol.runtime.nats.responder import Responder
from protocol.runtime.settings import Settings
from protocol.runtime.streams import jetstream
from protocol.runtime.streams.consumer import ConsumerOrder, OrderedConsumer
from protocol.runtime.streams.stores import audit_of, events_of, keys_of

MIRRORED = 5000
AGENT, ACME, LIMITED, ADMIN = "agent", "agent of acme", "limited agent", "admin"
TOKENS = {
    AGENT: agent_token(AGENT),
    ACME: agent_token(ACME, tenant="acme"),
    LIMITED: agent_token(LIMITED, limits={"users": ["ann"]}),
    ADMIN: admin_token(ADMIN),
}
AnyJson = msgspec.json.Decoder(dict)
STORES = [of(tenant) for of in (events_of, audit_of, keys_of) for tenant in ("default", "acme")]
RETIRED_KEYS = f"KV_{subjects.RETIRED_KEYS_BUCKET}"
As = Callable[[str], contextlib.AbstractAsyncContextManager[Connection]]


@pytest.fixture
async def as_user(make_nats: MakeNats) -> AsyncIterator[As]:
    """A server with the users of the template; `as_user("gateway")` connects as one of them, or as an agent."""
    template = Template()
    server = make_nats(template.config)
    await server.start()

    def enter(name: str) -> contextlib.AbstractAsyncContextManager[Connection]:
        if name not in TOKENS:
            return template.as_user(server.url, name)
        return as_agent(server.url, name, token=TOKENS[name], tenant="acme" if name == ACME else "default")

    async with logins(template, server.url):
        yield enter


def inbox_of(name: str) -> str:
    """Return the inbox prefix of one of the agents."""
    return agent_login.inbox_prefix("acme" if name == ACME else "default", name)


async def make_streams(registry: Connection) -> None:
    """Make what the registry makes at its start, as far as permissions are concerned."""
    made: list[tuple[str, list[str], dict[str, Any]]] = [
        *((store.stream, store.captured, {"allow_msg_ttl": True}) for store in STORES),
        (f"KV_{subjects.CLIENTS_BUCKET}", [f"$KV.{subjects.CLIENTS_BUCKET}.>"], {"max_msgs_per_subject": 1}),
        (RETIRED_KEYS, [f"$KV.{subjects.RETIRED_KEYS_BUCKET}.>"], {"allow_msg_ttl": True}),
    ]
    for name, captured, more in made:
        config = {"name": name, "subjects": captured, "allow_direct": True, "max_msgs_per_subject": -1, **more}
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
        (AGENT, "agentbridge.default.command.c1", "gateway", subjects.ALL_COMMANDS),
        (LIMITED, "agentbridge.default.command.c1", "gateway", subjects.ALL_COMMANDS),
        (ADMIN, "agentbridge.default.command.c1", "gateway", subjects.ALL_COMMANDS),
        (ACME, "agentbridge.acme.command.c1", "gateway", subjects.ALL_COMMANDS),
        ("gateway", "agentbridge.default.command.c1", "gateway", subjects.ALL_COMMANDS),
        ("api", "agentbridge._gateway.gw-1.disconnect", "gateway", "agentbridge._gateway.gw-1.disconnect"),
        ("api", "agentbridge._gateway.gw-1.ping", "gateway", "agentbridge._gateway.gw-1.ping"),
        ("gateway", "agentbridge._gateway.gw-1.ping", "gateway", "agentbridge._gateway.gw-1.ping"),
        ("registry", "agentbridge._gateway.gw-1.ping", "gateway", "agentbridge._gateway.gw-1.ping"),
        ("gateway", subjects.REGISTRY_REPORT, "registry", subjects.REGISTRY_REPORT),
        ("gateway", subjects.REGISTRY_STORES, "registry", subjects.REGISTRY_STORES),
        ("api", subjects.REGISTRY_STORES, "registry", subjects.REGISTRY_STORES),
        ("registry", subjects.REGISTRY_PEER_HEARD, "registry", subjects.REGISTRY_PEER_HEARD),
        ("api", "agentbridge.default.registry.list", "registry", subjects.ALL_REGISTRY_REQUESTS),
        (LIMITED, "agentbridge.default.registry.find", "registry", subjects.ALL_REGISTRY_REQUESTS),
        (AGENT, "agentbridge.default.registry.get", "registry", subjects.ALL_REGISTRY_REQUESTS),
        (ADMIN, "agentbridge.default.registry.audit", "registry", subjects.ALL_REGISTRY_REQUESTS),
        (ADMIN, "agentbridge.default.registry.disconnect", "registry", subjects.ALL_REGISTRY_REQUESTS),
    ],
)
async def test_request_is_answered(as_user: As, caller: str, subject: str, server: str, pattern: str) -> None:
    async with as_user(server) as serving, as_user(caller) as asking:
        await answer(serving, pattern)
        reply = await asking.request(subject, b"{}", 5)
        assert reply.data == server.encode()


@pytest.mark.parametrize("asker", ["registry", "api", ADMIN])
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
        as_user(AGENT) as agent,
        as_user(ACME) as stranger,
        as_user(ADMIN) as admin,
    ):
        await make_streams(registry)
        heard = [await tap(agent, "default"), await tap(admin, "default"), await tap(stranger, "acme")]
        event = subjects.event("default", "c1", "saved")
        assert await jetstream.publish(gateway, event, b"{}", {"Nats-Msg-Id": "default.c1.1"}) == 1
        await until(lambda: heard[0] == heard[1] == [event])
        assert not heard[2]


async def test_change_announced_by_a_registry_reaches_taps(as_user: As) -> None:
    async with as_user("registry") as registry, as_user(AGENT) as agent, as_user(ADMIN) as admin:
        heard = [await tap(agent, "default"), await tap(admin, "default")]
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


@pytest.mark.parametrize("user", ["gateway", "api", "registry"])
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
    subject, stream = subjects.idempotency_key("acme", "abc"), keys_of("acme").stream
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
        assert not await refused(writer)


@pytest.mark.parametrize("user", ["gateway", "api"])
async def test_entry_of_an_earlier_version_is_read_and_completed(as_user: As, user: str) -> None:
    subject = f"$KV.{subjects.RETIRED_KEYS_BUCKET}.default.abc"
    async with as_user("registry") as registry, as_user(user) as reader:
        await make_streams(registry)
        revision = await jetstream.publish(registry, subject, b"{}", {})
        stored = await jetstream.request(reader, f"STREAM.MSG.GET.{RETIRED_KEYS}", AnyJson, last_by_subj=subject)
        assert stored["message"]["subject"] == subject
        done = {jetstream.EXPECTED_REVISION_HEADER: str(revision), jetstream.TTL_HEADER: "600s"}
        await jetstream.publish(reader, subject, b'{"done":true}', done)
        assert not await refused(reader)


async def test_agent_api_reads_the_streams(as_user: As) -> None:
    async with as_user("registry") as registry, as_user("api") as api:
        await make_streams(registry)
        for store in (events_of("acme"), audit_of("acme")):
            consumer = OrderedConsumer(api, store.stream, ConsumerOrder(), lambda msg, place: None)
            async with consumer.deliver("agentbridge.acme.*.*.*", deliver_policy="all") as pending:
                assert pending == 0
        assert not await refused(api)


async def test_agent_api_gets_nothing_but_our_subjects_from_a_consumer(as_user: As) -> None:
    """A body that names another subject than the request's is refused by NATS."""
    async with as_user("registry") as registry, as_user("api") as api:
        await jetstream.request(registry, "STREAM.CREATE.foreign", AnyJson, name="foreign", subjects=["orders.*"])
        config = {"deliver_subject": api.new_inbox(), "ack_policy": "none", "name": "r", "filter_subject": "orders.*"}
        body = {"stream_name": "foreign", "config": config, "action": "create"}
        with pytest.raises(jetstream.JetStreamError):
            await jetstream.request(api, "CONSUMER.CREATE.foreign.r.agentbridge.x", AnyJson, **body)
        with pytest.raises(Unavailable):
            await jetstream.request(api, "CONSUMER.CREATE.foreign.r.orders.*", AnyJson, **body)


@pytest.mark.parametrize("user", ["api", "registry"])
async def test_audit_is_read_backwards(as_user: As, user: str) -> None:
    async with as_user("registry") as registry, as_user("gateway") as gateway, as_user(user) as reader:
        await make_streams(registry)
        record = AuditRecord(
            at="2026-01-01T00:00:00.000Z", tenant="acme", agent="a", outcome="success", duration_ms=1, by="gateway"
        )
        await jetstream.publish(gateway, subjects.audit("acme", "c1", "success"), codec.encode(record), {})
        history = AuditHistory(reader)
        await history.start()
        page = await history.page("acme", AuditFilter(), 10)
        assert [found.record for found in page.found] == [record]
        assert not await refused(reader)


async def test_agent_apis_tell_each_other_and_nobody_else_tells_them(as_user: As) -> None:
    heard: list[bytes] = []
    async with as_user("api") as one, as_user("api") as other, as_user("gateway") as gateway:
        await one.subscribe_directly(subjects.API_MCP_CANCEL, lambda msg: heard.append(msg.data))
        await one.flush()
        await gateway.publish(subjects.API_MCP_CANCEL, b"forged")
        assert await refused(gateway)
        await other.publish(subjects.API_MCP_CANCEL, b"told")
        await until(lambda: heard, 5)
        assert heard == [b"told"]
        assert not await refused(one)
        assert not await refused(other)


LOGINS_OF_AGENTS = ["$SYS.REQ.USER.AUTH", "$SYS._INBOX.x.y"]
NOT_FOR_AGENTS = [
    "agentbridge.default.event.c1.saved",
    "agentbridge.default.client.c1.connected",
    "agentbridge.default.audit.c1.success",
    "agentbridge._registry.report",
    "agentbridge._registry.peer.heard",
    "agentbridge._gateway.gw-1.disconnect",
    "agentbridge._gateway.gw-1.ping",
    "$JS.API.INFO",
    "$JS.API.STREAM.NAMES",
    "$JS.API.STREAM.INFO.agentbridge_events_default",
    "$JS.API.CONSUMER.CREATE.agentbridge_events_default",
    "$JS.API.CONSUMER.CREATE.agentbridge_events_default.reader.agentbridge.default.>",
    "$JS.API.DIRECT.GET.agentbridge_keys_default.agentbridge.default.key.abc",
    "$JS.API.DIRECT.GET.agentbridge_audit__strangers",
    "$JS.API.DIRECT.GET.agentbridge_audit_acme",
    "$JS.API.STREAM.INFO.agentbridge_audit_acme",
    "$JS.API.STREAM.PURGE.agentbridge_audit_default",
    "$JS.API.DIRECT.GET.KV_agentbridge_clients.$KV.agentbridge_clients.default.c1",
    "$JS.ACK.agentbridge_events_default.c.1.1.1.1.1",
    "$JS.FC.agentbridge_events_default.c.1",
    "agentbridge.default.key.abc",
    "agentbridge._registry.stores",
    "$KV.agentbridge_clients.default.c1",
    "$KV.agentbridge_idempotency.default.abc",
    *LOGINS_OF_AGENTS,
    "$SYS.REQ.SERVER.PING",
    "_INBOX.api.1",
    f"{inbox_of(AGENT)}.1",
    f"{inbox_of(ACME)}.1",
]
OF_ADMINISTRATORS = ["$SRV.PING", "$JS.API.STREAM.INFO.agentbridge_audit_default"]
OF_ACME = ["agentbridge.acme.command.c1", "agentbridge.acme.registry.list", "agentbridge.acme.event.c1.saved"]
FORBIDDEN_TO_PUBLISH = {
    "gateway": [
        "$KV.agentbridge_clients.default.c1",
        "$JS.API.STREAM.MSG.GET.KV_agentbridge_clients",
        "$JS.API.STREAM.CREATE.mine",
        "$JS.API.STREAM.DELETE.agentbridge_keys_default",
        "$JS.API.STREAM.PURGE.agentbridge_events_default",
        "$JS.API.STREAM.INFO.agentbridge_keys_default",
        "$JS.API.DIRECT.GET.agentbridge_events_default",
        "$JS.API.DIRECT.GET.agentbridge_events_default.agentbridge.default.event.c1.saved",
        "agentbridge.default.client.c1.connected",
        "agentbridge.default.registry.list",
        "$SRV.PING",
        *LOGINS_OF_AGENTS,
    ],
    "registry": [
        "agentbridge.default.event.c1.saved",
        "agentbridge.default.command.c1",
        "$SYS.REQ.SERVER.PING.CONNZ",
    ],
    "api": [
        "$KV.agentbridge_clients.default.c1",
        "$JS.API.STREAM.CREATE.mine",
        "$JS.API.STREAM.UPDATE.agentbridge_events_default",
        "$JS.API.CONSUMER.CREATE.agentbridge_events_default",
        "$JS.API.CONSUMER.CREATE.orders.reader.orders.>",
        "$JS.API.STREAM.DELETE.KV_agentbridge_clients",
        "$JS.API.STREAM.PURGE.agentbridge_audit_default",
        "$JS.API.STREAM.MSG.DELETE.agentbridge_audit_default",
        "agentbridge.default.event.c1.saved",
        "agentbridge.default.client.c1.connected",
        "agentbridge._gateway.gw-1.sync",
        "agentbridge._registry.report",
    ],
    AGENT: [*NOT_FOR_AGENTS, *OF_ACME, *OF_ADMINISTRATORS],
    LIMITED: [*NOT_FOR_AGENTS, *OF_ACME, *OF_ADMINISTRATORS],
    ADMIN: [*NOT_FOR_AGENTS, *OF_ACME],
}
NOT_HEARD_BY_AGENTS = [
    "agentbridge.default.command.*",
    "agentbridge.default.command.c1",
    "agentbridge.*.command.*",
    "agentbridge.default.registry.*",
    "agentbridge.acme.event.>",
    "agentbridge.acme.client.>",
    "agentbridge.acme.audit.>",
    "agentbridge.*.event.>",
    "agentbridge.*.audit.>",
    "agentbridge.default.>",
    "agentbridge.default.*.>",
    "agentbridge._gateway.>",
    "agentbridge._registry.>",
    "agentbridge.>",
    "*.>",
    "$JS.>",
    "$JS.API.>",
    "$KV.>",
    "$KV.agentbridge_clients.>",
    "$SRV.>",
    "$SYS.>",
    "$SYS.REQ.USER.AUTH",
    f"{inbox_of('another agent')}.>",
    f"{inbox_of(ACME)}.>",
    "_INBOX.gateway.>",
    "_INBOX.*.*",
    "_INBOX.*.>",
    "_INBOX.>",
    ">",
]
FORBIDDEN_TO_SUBSCRIBE = {
    "gateway": [
        "agentbridge.*.registry.*",
        "agentbridge.*.event.>",
        "agentbridge._registry.>",
        "_INBOX.api.>",
        "$SYS.REQ.USER.AUTH",
        ">",
    ],
    "registry": ["agentbridge.*.command.*", "agentbridge.*.event.>", "agentbridge._gateway.*.*", "_INBOX.>", ">"],
    "api": [
        "agentbridge.*.command.*",
        "agentbridge.*.registry.*",
        "agentbridge.*.event.>",
        "$KV.>",
        "_INBOX.>",
        "$SYS.REQ.USER.AUTH",
        ">",
    ],
    AGENT: [*NOT_HEARD_BY_AGENTS, "agentbridge.default.audit.>"],
    LIMITED: [
        *NOT_HEARD_BY_AGENTS,
        "agentbridge.default.audit.>",
        "agentbridge.default.event.>",
        "agentbridge.default.event.c1.saved",
        "agentbridge.default.client.>",
    ],
    ADMIN: NOT_HEARD_BY_AGENTS,
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
    async with as_user("gateway") as gateway, as_user("registry") as registry, as_user(AGENT) as agent:
        await make_streams(registry)
        await answer(gateway, subjects.ALL_COMMANDS)
        forged = f"$KV.{subjects.CLIENTS_BUCKET}.default.victim"
        await agent.publish("agentbridge.default.command.c1", b"{}", reply=forged)
        await agent.flush()
        assert await until(lambda: refused(gateway))
        info = await jetstream.stream_info(registry, f"KV_{subjects.CLIENTS_BUCKET}")
        assert info is not None
        assert info.state.last_seq == 0


async def test_wrong_password_is_refused_with_a_sentence(make_nats: MakeNats) -> None:
    server = make_nats(Template().config)
    await server.start()
    settings = settings_for(Settings, server.url, nats_user="gateway", nats_password="p-wrong")
    with pytest.raises(ConfigurationError, match="AGENTBRIDGE_NATS_PASSWORD"):
        async with connect(settings, "gateway", "gateway"):
            pass
