"""Sessions on the move between gateways in the test's process: what they bring along, and who may have them kept."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import nats.errors
import pytest
from nats.aio.msg import Msg
from support.load.resuming_app import ResumingApp, resuming_application
from support.nats.nats_server import NatsServer
from support.played.app import never, socket_of
from support.played.running_gateway import running_gateway
from support.processes.gateways import Agent, agent
from support.settings import agent_token, app_token
from support.wait import subscribed, until

from gateway.capabilities import contracts
from gateway.sessions import resumable, table
from gateway.sessions.core import snapshots
from gateway.sessions.core.resume import MAX_KEPT
from gateway.sessions.moved_lists import MovedLists
from protocol.records import Rate
from protocol.subjects import PEERS, gateway

ADOPT = gateway(PEERS, "adopt")
LOST, UNAVAILABLE = "client_lost", "unavailable"


class Gateway:
    """A gateway in this process."""

    def __init__(self, url: str) -> None:
        self.url = url


@pytest.fixture
async def gateways(private_nats: NatsServer) -> AsyncIterator[list[Gateway]]:
    """Two gateways."""
    async with running_gateway(private_nats.url) as one, running_gateway(private_nats.url) as other:
        yield [Gateway(one), Gateway(other)]


@pytest.fixture
async def caller(private_nats: NatsServer) -> AsyncIterator[Agent]:
    async with agent(private_nats.url) as connected:
        yield connected


def echo(parameters: dict[str, Any]) -> dict[str, Any]:
    return parameters


async def code_of(caller: Agent, client_id: str, target: str = "echo", **more: Any) -> str:
    """Return the code of a command's error, `success` without one, or that nobody is there."""
    try:
        answer = await caller.call(client_id, target, **more)
    except nats.errors.NoRespondersError:
        return "nobody"
    return str(answer.get("error", {}).get("code", answer["status"]))


async def _code_is(caller: Agent, client_id: str, wanted: str) -> bool:
    return await code_of(caller, client_id, timeoutMs=200) == wanted  # a command to a client that is away may wait


# --- capability lists ---


async def test_list_that_is_refused_at_the_new_gateway_is_unavailable_until_it_is_read(
    gateways: list[Gateway], caller: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with resuming_application(gateways, {"echo": echo}) as app:
        with monkeypatch.context() as busy:
            busy.setattr(contracts, "EFFORT", Rate(per_second=1, burst=0))
            app.cut()
            assert (await app.connected(2))["resumed"] is True
            assert await code_of(caller, app.client_id) == UNAVAILABLE
        await until(lambda: _code_is(caller, app.client_id, "success"))
        assert len(app.connections) == 2


async def test_session_whose_list_has_no_room_to_wait_ends_and_may_come_again(
    private_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resumable, "MovedLists", partial(MovedLists, max_unread_bytes=1))
    async with (
        running_gateway(private_nats.url) as one,
        running_gateway(private_nats.url) as other,
        resuming_application([Gateway(one), Gateway(other)], {"echo": echo}) as app,
    ):
        with monkeypatch.context() as busy:
            busy.setattr(contracts, "EFFORT", Rate(per_second=1, burst=0))
            app.cut()
            await until(lambda: 4029 in app.close_codes)
        again = await app.connected(3)
        assert (again["clientId"], again["resumed"]) == (app.connections[0]["clientId"], False)


# --- grants ---


async def test_session_that_is_too_large_to_move_begins_anew_and_its_commands_are_lost_once(
    gateways: list[Gateway], caller: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "MAX_GRANT_BYTES", 300)
    answers: list[Msg] = []
    async with resuming_application(gateways, {"slow": never, "echo": echo}) as app:
        await _listen(caller, "_INBOX.answers", answers)
        await caller.tell(app.client_id, {"target": "slow", "requestId": "r1"}, reply="_INBOX.answers")
        await app.received(type="command")
        client_id = app.client_id
        app.cut()
        again = await app.connected(2)
        assert (again["clientId"], again["resumed"]) == (client_id, False)
        assert await code_of(caller, client_id) == "success"
        assert [json.loads(msg.data)["error"]["code"] for msg in answers] == [LOST]


async def _listen(caller: Agent, subject: str, heard: list[Msg]) -> None:
    async def hear(msg: Msg) -> None:
        heard.append(msg)

    await caller.nats.subscribe(subject, cb=hear)
    await subscribed(caller.nats)


# --- commands that wait for the end of a claim ---


async def test_one_agents_commands_leave_room_for_another_while_a_session_moves(
    private_nats: NatsServer, caller: Agent
) -> None:
    """Nobody answers the claim, so that it takes 1.6 seconds."""
    claims: list[Msg] = []
    async with running_gateway(private_nats.url) as url, resuming_application([Gateway(url)], {"echo": echo}) as app:
        client_id, token = app.client_id, app.resume_token
        subject = f"agentbridge.default.command.{client_id}"
    await _listen(caller, subject, claims)  # a tap is interest, so NATS has no proof that nobody is there
    flooded: list[Msg] = []
    answered: list[Msg] = []
    await _listen(caller, "_INBOX.flood.*", flooded)
    await _listen(caller, "_INBOX.few.*", answered)
    path = f"/ws?resume={token}"
    async with running_gateway(private_nats.url) as url, socket_of(url, app_token(), path) as socket:
        await until(lambda: any(b'"stage":"claim"' in msg.data for msg in claims))
        for number in range(MAX_KEPT + 100):
            await _send(caller, client_id, f"_INBOX.flood.{number}", "flooder")
        for number in range(5):
            await _send(caller, client_id, f"_INBOX.few.{number}", "neighbour")
        assert json.loads(await socket.recv())["clientId"] == client_id
        await until(lambda: len(answered) == 5)
        assert {json.loads(msg.data)["error"]["code"] for msg in answered} <= {UNAVAILABLE, LOST}
        assert 0 < len(flooded) < MAX_KEPT


async def _send(caller: Agent, client_id: str, reply: str, sub: str) -> None:
    headers = {"Authorization": f"Bearer {agent_token(sub)}"}
    body = json.dumps({"target": "echo", "requestId": reply}).encode()
    await caller.nats.publish(f"agentbridge.default.command.{client_id}", body, reply, headers)


# --- gateways that shut down ---


class Peer:
    """A gateway that would keep sessions, is asked for them, and says nothing more."""

    def __init__(self) -> None:
        self.asked = 0

    async def hear(self, msg: Msg) -> None:
        if msg.data:
            self.asked += 1
        else:
            await msg.respond(b"{}")


async def away(app: ResumingApp, caller: Agent) -> None:
    """Lose the connection and stay away."""
    app.returns.clear()
    app.cut()
    await until(lambda: _code_is(caller, app.client_id, UNAVAILABLE))


async def test_peers_are_asked_so_many_at_a_time_and_not_for_ever(
    private_nats: NatsServer, caller: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resumable, "ADOPTIONS_AT_ONCE", 2)
    monkeypatch.setattr(resumable, "HANDOVER_SECONDS", 0.3)
    peer = Peer()
    async with contextlib.AsyncExitStack() as apps:
        async with running_gateway(private_nats.url) as url:
            for _ in range(5):
                app = await apps.enter_async_context(resuming_application([Gateway(url)], {"echo": echo}))
                await away(app, caller)
            monkeypatch.setattr(resumable, "ADOPT_SECONDS", 60)
            await caller.nats.subscribe(ADOPT, "adopt", peer.hear)
            await subscribed(caller.nats)
            ending = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - ending < 5
    assert peer.asked == 2


async def test_gateway_that_keeps_nothing_for_others_ends_without_a_long_linger(
    private_nats: NatsServer, caller: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has got the session, so nobody has to be told again."""
    monkeypatch.setattr(table, "LINGER_SECONDS", 60)
    async with contextlib.AsyncExitStack() as apps:
        async with running_gateway(private_nats.url) as url:
            app = await apps.enter_async_context(resuming_application([Gateway(url)], {"echo": echo}))
            await away(app, caller)
            ending = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - ending < 5
