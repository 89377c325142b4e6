"""Agents log in to NATS by their token, through registries that are real processes."""

import asyncio
import contextlib
import itertools
import json
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import nats
import pytest
from conftest import MakeNats
from nats.errors import NoRespondersError
from support.load.load import ending_tasks
from support.nats.line import Line, connect_line, line_to, refusal
from support.nats.nats_server import NatsServer
from support.nats.template import Template, agent_options, as_agent
from support.played.callout import logins
from support.processes.child import Process
from support.settings import admin_token, agent_token, app_token, bearer, settings_for
from support.wait import until

from protocol import subjects
from protocol.errors import CredentialsRefused, Unavailable
from protocol.runtime.nats.agent_login import user_name
from protocol.runtime.nats.connection import Connection, connect
from protocol.runtime.nats.login_keys import new_seeds
from protocol.runtime.settings import Settings
from protocol.runtime.tokens import mint

LIST = subjects.registry("default", "list")
AGENTS, FLOODERS, CROWD = 100, 16, 1000
PATIENT: dict[str, Any] = {"connect_timeout": 5, "allow_reconnect": False}


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
    """Two registries that let agents in."""
    async with template.registries(tmp_path, server.url, 2) as running:
        yield running


async def enters(server: NatsServer, **options: Any) -> bool:
    """Tell whether somebody is let in."""
    said = await refusal(server.port, **options)
    assert said in ("", "-ERR 'Authorization Violation'")
    return not said


# --- who comes in ---


@pytest.mark.parametrize("as_what", ["token", "password"])
async def test_token_logs_in_however_the_client_sends_it(
    registries: list[Process], server: NatsServer, as_what: str
) -> None:
    token = agent_token("ann")
    prefix = agent_options("ann")["inbox_prefix"]
    how = {"token": token} if as_what == "token" else {"user": "anything", "password": token}
    async with await nats.connect(server.url, inbox_prefix=prefix, **PATIENT, **how) as agent:
        reply = await agent.request(LIST, b"{}", headers=bearer(token))
        assert reply.data == b'{"clients":[]}'


REFUSED = {
    "an application's": app_token(),
    "an expired one": agent_token(ttl_seconds=-1),
    "one with another secret": mint("another-secret-that-only-tests-use-0123", "ann", "agent", 60),
    "one for another audience": agent_token(audience="somebody else"),
    "a changed one": agent_token()[:-8] + "AAAAAAAA",
    "none at all": "",
    "no token": "abc",
    "one with three parts": "a.b.c",
    "a service user's name": "gateway",
    "one that is too long": agent_token(permissions=["x" * 100] * 100),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_any_other_token_is_refused(registries: list[Process], server: NatsServer, what: str) -> None:
    assert not await enters(server, auth_token=REFUSED[what])
    assert await enters(server, auth_token=agent_token())


async def test_password_of_a_service_user_is_not_asked_about(registries: list[Process], server: NatsServer) -> None:
    for user in ("gateway", "registry", "api", "system"):
        assert not await enters(server, user=user, **{"pass": agent_token()})


async def test_long_token_logs_in(registries: list[Process], server: NatsServer) -> None:
    token = agent_token("ann", permissions=[f"permission-{number}" for number in range(280)])
    assert 6000 < len(token) < 8192
    async with as_agent(server.url, "ann", token=token) as agent:
        assert (await agent.request(LIST, b"{}", 5, bearer(token))).data == b'{"clients":[]}'


async def test_refusal_is_told_where_an_operator_looks(registries: list[Process], server: NatsServer) -> None:
    assert not await enters(server, auth_token=agent_token(ttl_seconds=-1))
    reason = "the token has expired"
    assert await until(lambda: reason in server.log)
    assert await until(lambda: any(reason in process.log for process in registries))
    assert not any(agent_token().partition(".")[2] in process.log for process in registries)


async def test_logins_are_counted(registries: list[Process], template: Template, server: NatsServer) -> None:
    assert await enters(server, auth_token=agent_token())
    assert not await enters(server, auth_token=app_token())
    async with template.as_user(server.url, "api") as api:
        stats = json.loads((await api.request("$SRV.STATS.agentbridge-registry", b"", 5)).data)
    assert stats["metadata"]["logins"] == "on"
    refused = {"loginsRefused:permission_denied": 1, "loginsRefused:unauthenticated": 0}
    counted = {"loginsAdmitted": 1, **refused, "loginsUnreadable": 0, "loginsDropped": 0}
    assert counted.items() <= stats["data"].items()


async def test_agent_is_told_that_the_token_is_refused(registries: list[Process], server: NatsServer) -> None:
    with pytest.raises(CredentialsRefused, match="refuses the token"):
        async with as_agent(server.url, token=app_token()):
            pass


async def test_without_authentication_everybody_is_an_administrator(template: Template, server: NatsServer) -> None:
    async with logins(template, server.url, auth="off", jwt_secret=None) as serving:
        options = agent_options("anonymous") | {"token": None}
        async with await nats.connect(server.url, **PATIENT, **options) as agent:
            await agent.subscribe("agentbridge.default.audit.>")
            await agent.flush()
            assert agent.last_error is None
        assert serving.counters()["loginsAdmitted"] == 1


# --- two agents ---


async def test_agents_of_one_tenant_cannot_read_each_others_replies(
    registries: list[Process], server: NatsServer
) -> None:
    ann, bob = agent_options("ann"), agent_options("bob")
    refused: list[str] = []
    overheard: list[bytes] = []

    async def note(error: Exception) -> None:
        refused.append(str(error))

    async def overhear(msg: Any) -> None:
        overheard.append(msg.data)

    async with (
        await nats.connect(server.url, **ann, **PATIENT) as one,
        await nats.connect(server.url, **bob, **PATIENT, error_cb=note) as other,
    ):
        await other.subscribe(f"{ann['inbox_prefix']}.>", cb=overhear)
        await until(lambda: refused)
        assert (await one.request(LIST, b"{}", headers=bearer(ann["token"]))).data
        await other.flush()
    assert "permissions violation for subscription" in refused[0].lower()
    assert not overheard


# --- how long ---


async def test_nats_ends_the_connection_when_the_token_expires(registries: list[Process], server: NatsServer) -> None:
    token = agent_token(ttl_seconds=2)
    expires_at = jwt.decode(token, options={"verify_signature": False})["exp"]
    async with line_to(server.port) as line:
        assert len(await line.told(connect_line(auth_token=token))) == 1
        said = [line async for line in told_until_the_end(line)]
    assert "-ERR 'User Authentication Expired'" in said
    assert time.time() >= expires_at
    assert not await enters(server, auth_token=token)


async def told_until_the_end(line: Line) -> AsyncIterator[str]:
    """Yield what a server says until it closes the connection."""
    while said := await line.next():
        yield said


async def test_connection_of_ours_goes_on_with_a_fresh_token(registries: list[Process], server: NatsServer) -> None:
    """The command line mints its own tokens: it may watch for longer than one of them lasts."""
    tokens = [agent_token("ann", ttl_seconds=2), agent_token("ann")]
    user = user_name("default", "ann")
    async with connect(settings_for(Settings, server.url), "agent", user, token=lambda: tokens.pop(0)) as agent:
        await until(lambda: agent.reconnects == 1 and agent.connected, 10)
        assert (await agent.request(LIST, b"{}", 5, bearer(agent_token("ann")))).data


# --- registries that die ---


async def test_services_log_in_and_work_without_any_registry(
    registries: list[Process], template: Template, server: NatsServer
) -> None:
    for process in registries:
        await process.kill()
    for user in ("gateway", "registry", "api", "system"):
        async with template.as_user(server.url, user) as connection:
            assert await connection.answers(5)
    assert not await enters(server, auth_token=agent_token())
    await registries[0].start()
    assert await enters(server, auth_token=agent_token())


async def test_agents_come_in_while_one_of_two_registries_is_dead(
    registries: list[Process], server: NatsServer
) -> None:
    await registries[0].kill()
    assert all([await enters(server, auth_token=agent_token(f"agent-{number}")) for number in range(10)])


async def test_frozen_registry_keeps_nobody_waiting_while_another_runs(
    registries: list[Process], server: NatsServer
) -> None:
    registries[0].freeze()
    entered = [await enters(server, auth_token=agent_token(f"agent-{number}")) for number in range(20)]
    registries[0].thaw()
    assert all(entered)


async def test_agents_come_in_again_after_a_registry_thaws(registries: list[Process], server: NatsServer) -> None:
    for process in registries:
        process.freeze()
    assert not await enters(server, auth_token=agent_token())
    for process in registries:
        process.thaw()
    assert await until(lambda: enters(server, auth_token=agent_token()))


async def test_a_hundred_agents_come_back_at_once_after_a_restart(
    registries: list[Process], template: Template, server: NatsServer
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        logins = [stack.enter_async_context(as_agent(server.url, f"agent-{number}")) for number in range(AGENTS)]
        agents = await asyncio.gather(*logins)
        server.kill()
        await server.start()
        await until(lambda: all(agent.reconnects and agent.connected for agent in agents), 20)
        token = bearer(agent_token("agent-0"))
        assert await until(lambda: answered(agents[0], token))


async def test_a_thousand_logins_at_once_are_each_let_in_or_refused_and_in_soon_after(
    registries: list[Process], server: NatsServer
) -> None:
    """As after a restart of NATS: who is refused, because its login would come too late, tries again."""
    started = time.monotonic()
    waits: list[float] = []

    async def come_in(number: int) -> float:
        while True:
            tried = time.monotonic()
            try:
                said = await refusal(server.port, auth_token=agent_token(f"agent-{number}"))
            except ConnectionResetError:  # the server gave up before it had read the login, so its words are lost
                said = "-ERR 'Authentication Timeout'"
            waits.append(time.monotonic() - tried)
            assert said in ("", "-ERR 'Authorization Violation'", "-ERR 'Authentication Timeout'")
            if not said:
                return time.monotonic() - started

    async with asyncio.timeout(120):
        came_in = sorted(await asyncio.gather(*(come_in(number) for number in range(CROWD))))
    print(  # noqa: T201  for docs/performance.md
        f"{CROWD} at once: {len(waits) - CROWD} refused on the way; in after {came_in[0]:.2f} to {came_in[-1]:.2f} s, "
        f"half within {came_in[CROWD // 2]:.2f} s; the longest single login took {max(waits):.2f} s"
    )
    assert len(came_in) == CROWD
    assert not any("loginsUnreadable" in process.log for process in registries)


async def answered(agent: Connection, headers: dict[str, str]) -> bool:
    """Tell whether a registry answers; it may have come back later than the agent."""
    try:
        return bool((await agent.request(LIST, b"{}", 1, headers)).data)
    except (Unavailable, NoRespondersError, TimeoutError):
        return False


async def test_flood_of_forged_tokens_stops_neither_logins_nor_questions(
    registries: list[Process], server: NatsServer
) -> None:
    good = agent_token("ann")

    async def flood(flooder: int) -> None:
        for number in itertools.count():
            assert await refusal(server.port, auth_token=f"{good}{flooder}x{number}")

    async with ending_tasks() as tasks, as_agent(server.url, "ann", token=good) as agent:
        flooders = [tasks.create_task(flood(number)) for number in range(FLOODERS)]
        for _ in range(10):
            assert await enters(server, auth_token=good)
            assert (await agent.request(LIST, b"{}", 2, bearer(good))).data == b'{"clients":[]}'
        assert not any(flooder.done() for flooder in flooders)


async def test_login_that_a_slow_key_set_holds_up_gives_its_place_back(template: Template, server: NatsServer) -> None:
    connections: list[asyncio.StreamWriter] = []

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as slow:
        url = f"http://127.0.0.1:{slow.sockets[0].getsockname()[1]}/keys"
        async with logins(template, server.url, jwt_secret=None, jwt_jwks_url=url) as serving:
            assert not await enters(server, auth_token=agent_token())
            assert await until(lambda: serving.counters()["loginsDropped"] == 1)
        for writer in connections:
            writer.close()


# --- keys ---


async def test_keys_are_rotated_while_agents_log_in(tmp_path: Path, make_nats: MakeNats) -> None:
    """The new pair goes to the registries beside the old one, then to the servers, then the old one goes."""
    old, new = Template(), Template()
    new.passwords = old.passwords
    server = make_nats(old.config)
    await server.start()
    both = Template()
    both.passwords = old.passwords
    both.account_seed = f"{old.account_seed},{new.account_seed}"
    both.xkey_seed = f"{old.xkey_seed},{new.xkey_seed}"
    async with logins(both, server.url):
        assert await enters(server, auth_token=agent_token())
        server.stop()
        server.configure(new.config)
        await server.start()
        assert await until(lambda: enters(server, auth_token=agent_token()))
    async with logins(new, server.url):
        assert await enters(server, auth_token=agent_token())


async def test_registry_with_other_keys_than_the_servers_lets_nobody_in_and_says_so(
    template: Template, server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    other = Template()
    other.passwords = template.passwords
    with caplog.at_level(logging.ERROR):
        async with logins(other, server.url) as serving:
            assert not await enters(server, auth_token=agent_token())
            assert serving.counters()["loginsUnreadable"] >= 1
    assert "NATS has other keys than this registry" in caplog.text


@pytest.mark.parametrize("seeds", [("", ""), new_seeds()], ids=["none", "others"])
async def test_registry_without_the_servers_keys_leaves_logins_to_others(
    template: Template, server: NatsServer, seeds: tuple[str, str]
) -> None:
    without = Template()
    without.passwords = template.passwords
    without.account_seed, without.xkey_seed = seeds
    async with logins(without, server.url), logins(template, server.url):
        assert all([await enters(server, auth_token=admin_token()) for _ in range(10)])
