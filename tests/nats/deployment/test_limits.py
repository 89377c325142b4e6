"""What the limits of the template stop, on a real server with its users."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from conftest import MakeNats
from support.nats.line import Line, connect_line, line_to
from support.nats.nats_jwt import Operator
from support.nats.nats_server import NatsServer
from support.nats.template import Template
from support.played.callout import logins
from support.settings import agent_token, settings_for

from protocol.errors import Overloaded
from protocol.runtime.nats.connection import connect
from protocol.runtime.settings import Settings

MAX_SUBSCRIPTIONS = 30_000
TEMPLATE = Template()
AGENT = {"auth_token": agent_token()}
OTHER = {"auth_token": agent_token("agent-2")}


@pytest.fixture
async def server(make_nats: MakeNats) -> AsyncIterator[NatsServer]:
    server = make_nats(TEMPLATE.config)
    await server.start()
    async with logins(TEMPLATE, server.url):
        yield server


@contextlib.asynccontextmanager
async def connected(server: NatsServer, who: dict[str, str]) -> AsyncIterator[Line]:
    async with line_to(server.port) as line:
        assert [told.split()[0] for told in await line.told(connect_line(**who))] == ["INFO"]
        yield line


def subscriptions(first: int, count: int) -> list[str]:
    return [f"SUB agentbridge.default.event.c{number}.paid {number}" for number in range(first, first + count)]


async def test_agent_has_a_bounded_number_of_subscriptions_and_others_have_their_own(server: NatsServer) -> None:
    async with connected(server, AGENT) as agent, connected(server, OTHER) as other:
        assert await agent.told(*subscriptions(1, MAX_SUBSCRIPTIONS)) == []
        refused = await agent.told(*subscriptions(MAX_SUBSCRIPTIONS + 1, 3))
        assert refused == ["-ERR 'maximum subscriptions exceeded'"] * 3
        assert await other.told(*subscriptions(1, 3)) == []
        freed = await agent.told("UNSUB 1", *subscriptions(MAX_SUBSCRIPTIONS + 1, 1))
        assert freed == [], "the connection goes on, and what is given back can be used again"


async def test_message_above_the_bound_ends_its_senders_connection_alone(server: NatsServer) -> None:
    async with connected(server, AGENT) as agent, connected(server, OTHER) as other:
        size = 1024 * 1024 + 1
        assert await agent.told(f"PUB agentbridge.default.command.c1 {size}") == ["-ERR 'Maximum Payload Violation'"]
        assert await other.told() == []


async def test_users_jwt_bounds_that_user_alone(make_nats: MakeNats, tmp_path: Path) -> None:
    """What a file of users cannot do for our own processes; `docs/scaling.md` names it as the way."""
    operator = Operator()
    server = make_nats(operator.config)
    await server.start()
    bounded = settings_for(Settings, server.url, nats_creds=operator.write_creds(tmp_path / "bounded.creds", subs=2))
    free = settings_for(Settings, server.url, nats_creds=operator.write_creds(tmp_path / "free.creds"))
    async with connect(bounded, "tests", "tests") as one, connect(free, "tests", "tests") as other:
        for number in range(2):
            await one.subscribe_confirmed(f"a.{number}", print)
        with pytest.raises(Overloaded, match="no more subscriptions"):
            await one.subscribe_confirmed("a.2", print)
        for number in range(20):
            await other.subscribe_confirmed(f"a.{number}", print)
