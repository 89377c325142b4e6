"""An administrator disconnects agents on NATS, through registries that are real processes."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats
import pytest
from conftest import MakeNats
from support.nats.line import Line, connect_line, line_to, refusal
from support.nats.nats_server import NatsServer
from support.nats.template import Template, agent_options, as_agent
from support.processes.child import Process
from support.processes.registry import registries as running_registries
from support.settings import admin_token, agent_token, bearer, environment
from support.wait import until

from protocol import subjects
from protocol.runtime.nats.connection import Connection

ASK_SECONDS = 20
HERE = subjects.registry("default", "disconnect")
ADMIN = admin_token("boss")


@pytest.fixture
def template() -> Template:
    return Template()


@pytest.fixture
async def server(template: Template, make_nats: MakeNats) -> NatsServer:
    server = make_nats(template.config)
    await server.start()
    return server


@pytest.fixture
async def registries(tmp_path: Path, template: Template, server: NatsServer) -> AsyncIterator[list[Process]]:
    async with template.registries(tmp_path, server.url, 2) as running:
        yield running


@pytest.fixture
async def admin(registries: list[Process], server: NatsServer) -> AsyncIterator[Connection]:
    async with as_agent(server.url, "boss", token=ADMIN) as connection:
        yield connection


@contextlib.asynccontextmanager
async def agent(server: NatsServer, sub: str, **claims: Any) -> AsyncIterator[Line]:
    """An agent's connection, which does not come back by itself."""
    async with line_to(server.port) as line:
        said = await line.told(connect_line(auth_token=agent_token(sub, **claims)))
        assert [told.split()[0] for told in said] == ["INFO"]
        yield line


async def ended(*agents: Line) -> bool:
    """Tell whether the server has ended all of these connections."""
    return not any([await each.answers() for each in agents])


async def disconnect(
    admin: Connection, sub: str, *, seconds: int | None = None, token: str = ADMIN, subject: str = HERE
) -> dict[str, Any]:
    body = {"sub": sub} | ({} if seconds is None else {"seconds": seconds})
    answer: dict[str, Any] = json.loads(
        (await admin.request(subject, json.dumps(body).encode(), ASK_SECONDS, bearer(token))).data
    )
    return answer


async def enters(server: NatsServer, token: str) -> bool:
    return not await refusal(server.port, auth_token=token)


async def test_all_connections_of_an_agent_end_and_no_other(admin: Connection, server: NatsServer) -> None:
    async with agent(server, "ann") as one, agent(server, "ann") as two, agent(server, "bob") as other:
        answer = await disconnect(admin, "ann")
        assert (answer["sub"], answer["natsConnections"]) == ("ann", 2)
        assert await ended(one, two)
        assert await other.answers()
    assert admin.connected


async def test_agent_of_another_tenant_with_the_same_name_stays(admin: Connection, server: NatsServer) -> None:
    async with agent(server, "ann", tenant="acme") as stranger:
        assert (await disconnect(admin, "ann"))["natsConnections"] == 0
        assert await stranger.answers()


async def test_it_is_kept_out_for_so_long_and_let_in_by_the_last_word(admin: Connection, server: NatsServer) -> None:
    token = agent_token("ann")
    await disconnect(admin, "ann", seconds=600)
    assert not await enters(server, token)
    assert not await enters(server, agent_token("ann", permissions=["other"])), "whatever token it has"
    assert await enters(server, agent_token("bob"))
    await disconnect(admin, "ann", seconds=0)
    assert await until(lambda: enters(server, token))


async def test_client_that_may_come_back_at_once_is_ended_once(admin: Connection, server: NatsServer) -> None:
    stubborn = await nats.connect(server.url, reconnect_time_wait=0, max_reconnect_attempts=-1, **agent_options("ann"))
    try:
        answer = await disconnect(admin, "ann", seconds=0)
        assert answer.get("natsConnections") == 1, answer
        assert await until(lambda: stubborn.stats["reconnects"] == 1 and stubborn.is_connected)
    finally:
        await stubborn.close()


async def test_denial_ends_by_itself(admin: Connection, server: NatsServer) -> None:
    await disconnect(admin, "ann", seconds=2)
    assert await until(lambda: enters(server, agent_token("ann")), 15)


async def test_why_it_is_refused_stands_in_the_log(
    admin: Connection, registries: list[Process], server: NatsServer
) -> None:
    await disconnect(admin, "ann", seconds=600)
    assert not await enters(server, agent_token("ann"))
    reason = "an administrator has disconnected this agent until"
    assert await until(lambda: any(reason in process.log for process in registries))


async def test_registries_that_start_later_know_of_it(
    admin: Connection, registries: list[Process], server: NatsServer
) -> None:
    await disconnect(admin, "ann", seconds=600)
    for process in registries:
        await process.kill()
    for process in registries:
        await process.start()
    assert not await enters(server, agent_token("ann"))
    assert await enters(server, agent_token("bob"))


async def test_questions_of_an_agent_that_is_kept_out_are_refused(admin: Connection) -> None:
    """Whoever lets it use another connection: the token speaks for the agent."""
    await disconnect(admin, "ann", seconds=600)
    reply = await admin.request(subjects.registry("default", "list"), b"{}", 5, bearer(agent_token("ann")))
    assert json.loads(reply.data)["error"]["code"] == "permission_denied"


async def test_it_is_recorded(admin: Connection) -> None:
    await disconnect(admin, "ann")
    asked = json.dumps({"wanted": {"agent": "boss"}}).encode()
    answer = await admin.request(subjects.registry("default", "audit"), asked, 5, bearer(ADMIN))
    [found] = json.loads(answer.data)["records"]
    told = {name: found["record"].get(name) for name in ("by", "agent", "role", "disconnected", "outcome", "target")}
    assert told == {
        "by": "registry",
        "agent": "boss",
        "role": "admin",
        "disconnected": "ann",
        "outcome": "success",
        "target": None,
    }


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_request"),
        (b"{}", "invalid_request"),
        (b'{"sub":""}', "invalid_request"),
        (b'{"sub":"ann","seconds":-1}', "invalid_request"),
        (b'{"sub":"ann","seconds":86401}', "invalid_request"),
        (b'{"sub":"ann","second":60}', "invalid_request"),
    ],
)
async def test_what_makes_no_sense_is_refused(admin: Connection, server: NatsServer, body: bytes, code: str) -> None:
    reply = await admin.request(HERE, body, 5, bearer(ADMIN))
    assert json.loads(reply.data)["error"]["code"] == code
    assert await enters(server, agent_token("ann"))


async def test_agents_may_not(admin: Connection, server: NatsServer) -> None:
    token = agent_token("mallory")
    async with as_agent(server.url, "mallory", token=token) as mallory, agent(server, "ann") as ann:
        answer = await disconnect(mallory, "ann", token=token)
        assert answer["error"]["code"] == "permission_denied"
        assert await ann.answers()


async def test_administrators_of_another_tenant_may_not(
    registries: list[Process], template: Template, server: NatsServer
) -> None:
    """As a service user, whom NATS lets ask for any tenant."""
    async with template.as_user(server.url, "api") as api, agent(server, "ann") as ann:
        answer = await disconnect(api, "ann", token=admin_token(tenant="acme"))
        assert answer["error"]["code"] == "permission_denied"
        assert await ann.answers()


async def test_without_the_system_user_the_agent_is_kept_out_and_the_answer_says_what_was_not_done(
    tmp_path: Path, template: Template, server: NatsServer
) -> None:
    settings = {**template.login("registry"), "nats_system_password": ""}
    async with (
        running_registries(tmp_path, server.url, 1, **settings),
        as_agent(server.url, "boss", token=ADMIN) as admin,
        agent(server, "ann") as ann,
    ):
        error = (await disconnect(admin, "ann", seconds=600))["error"]
        assert error["code"] == "unavailable"
        assert "AGENTBRIDGE_NATS_SYSTEM_PASSWORD" in error["message"]
        assert await ann.answers()
        assert not await enters(server, agent_token("ann"))


async def test_registry_whose_system_user_is_refused_says_which_setting_to_mend(
    tmp_path: Path, template: Template, server: NatsServer
) -> None:
    settings = {**template.login("registry"), "nats_system_password": "wrong"}
    process = Process("registry", tmp_path, environment(server.url, **settings))
    process.launch()
    try:
        await until(lambda: "AGENTBRIDGE_NATS_SYSTEM_PASSWORD" in process.log, 20)
    finally:
        process.end()


async def test_many_connections_of_one_agent_end_within_seconds(admin: Connection, server: NatsServer) -> None:
    async with contextlib.AsyncExitStack() as stack:
        clients = await asyncio.gather(*(stack.enter_async_context(agent(server, "ann")) for _ in range(100)))
        assert (await disconnect(admin, "ann"))["natsConnections"] == len(clients)
        assert await ended(*clients)
