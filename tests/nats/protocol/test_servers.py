"""Which servers a process works with: new enough, and with users unless they are on this machine."""

import asyncio
from typing import Any

import pytest
from conftest import MakeNats
from nats.aio.client import Client, ServerVersion
from support.nats.nats_server import NatsServer
from support.settings import settings_for
from support.wait import until

from protocol.errors import ConfigurationError
from protocol.runtime.nats import servers
from protocol.runtime.nats.connection import connect
from protocol.runtime.nats.library.transport import knows_its_users
from protocol.runtime.settings import Settings

ELSEWHERE = "192.0.2.1"
USERS = 'authorization { users = [ { user: bob, password: "secret-of-bob" } ] }'
BOB = {"nats_user": "bob", "nats_password": "secret-of-bob"}


def settings(url: str, **values: Any) -> Settings:
    return settings_for(Settings, url, **values)


@pytest.mark.parametrize(
    ("config", "values", "refusal"),
    [
        ("", {}, r"lets everybody in and is not on this machine: give it users"),
        (USERS, BOB | {"auth": "off", "jwt_secret": None}, r"AGENTBRIDGE_AUTH=off is for loopback only, but NATS at "),
        (USERS, BOB, None),
    ],
)
async def test_server_elsewhere_must_have_users_and_we_authentication(
    make_nats: MakeNats, monkeypatch: pytest.MonkeyPatch, config: str, values: dict[str, Any], refusal: str | None
) -> None:
    monkeypatch.setattr(servers, "peer_address", lambda client: ELSEWHERE)
    server = make_nats(config)
    await server.start()
    async with asyncio.timeout(10):
        if refusal is None:
            async with connect(settings(server.url, **values), "tests", "bob") as connection:
                await connection.flush()
        else:
            with pytest.raises(ConfigurationError, match=refusal):
                async with connect(settings(server.url, **values), "tests", "bob"):
                    pass


async def test_server_that_knows_its_clients_by_their_certificates_has_users() -> None:
    client = Client()
    for info, knows in (({"tls_verify": True}, True), ({"auth_required": True}, True), ({"tls_required": True}, False)):
        client._server_info = info
        assert knows_its_users(client) is knows


async def test_loopback_by_another_name_needs_no_users(private_nats: NatsServer) -> None:
    url = private_nats.url.replace("127.0.0.1", "localhost")
    async with (
        asyncio.timeout(10),
        connect(settings(url, auth="off", jwt_secret=None), "tests", "tests") as connection,
    ):
        await connection.flush()


@pytest.mark.parametrize(
    ("address", "ours"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
        ("fe80::1", False),
        ("::ffff:10.0.0.1", False),
    ],
)
def test_loopback_addresses(address: str, ours: bool) -> None:
    assert servers.is_loopback(address) is ours


async def test_return_to_a_server_elsewhere_that_lets_everybody_in_is_fatal(
    private_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect(settings(private_nats.url), "tests", "tests") as connection:
        private_nats.stop()
        await until(lambda: not connection.connected)
        monkeypatch.setattr(servers, "peer_address", lambda client: ELSEWHERE)
        await private_nats.start()
        async with asyncio.timeout(10):
            await connection.failed
        assert not connection.connected


@pytest.mark.parametrize(("version", "fits"), [("2.10.29", False), ("1.4.1", False), ("2.11.0", True), ("3.0.0", True)])
def test_server_before_2_11_is_refused(version: str, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "connected_server_version", property(lambda self: ServerVersion(version)))
    if fits:
        servers.require_version(Client())
    else:
        with pytest.raises(ConfigurationError, match=r"nats-server is \d\.\d+, but 2\.11 or newer is needed"):
            servers.require_version(Client())


async def test_connection_that_broke_as_it_was_made_is_no_reason_to_give_up(
    private_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket of such a connection has no peer any more; the next one is looked at again."""
    monkeypatch.setattr(asyncio.StreamWriter, "get_extra_info", lambda *_: None)
    async with asyncio.timeout(10), connect(settings(private_nats.url), "tests", "tests") as connection:
        await connection.flush()
