"""Administrators read their tenant's audit records on NATS, through a registry that is a real process."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeNats
from support.nats.nats_server import NatsServer
from support.nats.stores import stores_of
from support.nats.template import Template, as_agent
from support.settings import admin_token, agent_token, app_token, bearer

from protocol import codec, subjects
from protocol.audit import AuditRecord
from protocol.runtime.nats.connection import Connection
from protocol.runtime.streams import jetstream
from protocol.runtime.streams.stores import audit_of

ADMIN = admin_token("boss")


@pytest.fixture
async def server(tmp_path: Path, make_nats: MakeNats) -> AsyncIterator[NatsServer]:
    """A server with a registry; seven records of two tenants, and one that is none of ours, are stored."""
    template = Template()
    server = make_nats(template.config)
    await server.start()
    async with template.registries(tmp_path, server.url), template.as_user(server.url, "gateway") as gateway:
        stores = await stores_of(gateway)
        for tenant in ("default", "acme"):
            await stores.ensure(audit_of(tenant))
        for number in range(6):
            await store(gateway, "default", f"r{number}", "success" if number % 2 else "timeout")
        await store(gateway, "acme", "theirs", "success")
        await jetstream.publish(gateway, subjects.audit("default", "c1", "success"), b"\xff", {})
        yield server


@pytest.fixture
async def admin(server: NatsServer) -> AsyncIterator[Connection]:
    async with as_agent(server.url, "boss", token=ADMIN) as connection:
        yield connection


async def store(gateway: Connection, tenant: str, request_id: str, outcome: str) -> None:
    at = f"2026-01-01T00:00:0{request_id[-1]}.000Z" if request_id[-1].isdigit() else "2026-01-01T00:00:00.000Z"
    record = AuditRecord(
        at=at, tenant=tenant, outcome=outcome, duration_ms=1, by="gateway", client_id="c1", request_id=request_id
    )
    await jetstream.publish(gateway, subjects.audit(tenant, "c1", outcome), codec.encode(record), {})


async def ask(connection: Connection, body: Any, token: str = ADMIN, tenant: str = "default") -> dict[str, Any]:
    subject = subjects.registry(tenant, "audit")
    answer: dict[str, Any] = json.loads(
        (await connection.request(subject, json.dumps(body).encode(), 5, bearer(token))).data
    )
    return answer


def ids(page: dict[str, Any]) -> list[str | None]:
    return [each["record"] and each["record"]["requestId"] for each in page["records"]]


async def test_pages_are_newest_first_lead_to_each_other_and_hold_the_tenants_own(admin: Connection) -> None:
    first = await ask(admin, {"limit": 4})
    assert (ids(first), first["more"]) == (["r5", "r4", "r3", "r2"], True)
    second = await ask(admin, {"limit": 4, "before": first["reached"]})
    assert (ids(second), second.get("more", False)) == (["r1", "r0"], False)


async def test_fields_narrow(admin: Connection) -> None:
    assert ids(await ask(admin, {"wanted": {"outcome": "timeout"}})) == ["r4", "r2", "r0"]
    assert ids(await ask(admin, {"wanted": {"clientId": "c2"}})) == []
    assert ids(await ask(admin, {"wanted": {"since": "2026-01-01T00:00:04Z"}})) == ["r5", "r4"]


async def test_what_follows_a_sequence_is_told_in_order_with_what_is_no_record(admin: Connection) -> None:
    page = await ask(admin, {"first": 5, "limit": 10})
    assert ids(page) == ["r4", "r5", None]
    assert [each["sequence"] for each in page["records"]] == [5, 6, 7]
    assert page["lastSequence"] == 7


@pytest.mark.parametrize("token", [agent_token("boss"), app_token("boss")])
async def test_others_may_not(admin: Connection, token: str) -> None:
    assert (await ask(admin, {}, token))["error"]["code"] == "permission_denied"


async def test_administrator_of_another_tenant_sees_its_own_alone(server: NatsServer) -> None:
    token = admin_token("boss", tenant="acme")
    async with as_agent(server.url, "boss", token=token, tenant="acme") as other:
        assert ids(await ask(other, {}, token, "acme")) == ["theirs"]
        assert (await ask(other, {}, ADMIN, "acme"))["error"]["code"] == "permission_denied"


@pytest.mark.parametrize(
    "body",
    [
        {"limit": 0},
        {"limit": 1001},
        {"before": -1},
        {"wanted": {"clientId": ">"}},
        {"wanted": {"clientId": "*"}},
        {"wanted": {"outcome": "*"}},
        {"wanted": {"outcome": "a.b"}},
        {"wanted": {"since": "soon"}},
        {"wanted": {"client_id": "c1"}},
        {"limits": 1},
        [],
    ],
)
async def test_what_would_widen_or_means_nothing_is_refused(admin: Connection, body: Any) -> None:
    assert (await ask(admin, body))["error"]["code"] == "invalid_request"
