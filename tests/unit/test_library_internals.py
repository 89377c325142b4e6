"""What we rely on inside libraries, which promise nothing about it: a failure here says what a new version has moved.

`pyproject.toml` bounds these libraries by their next major version, for the sake of the insides that correctness needs.
Fast paths run with the versions in `TESTED` only (`protocol/runtime/version.py`).
"""

import ast
import asyncio
import re
import tomllib
from collections.abc import Iterator
from importlib import metadata

import jwt
import pytest
import uvicorn
from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport
from support.paths import ROOT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState
from websockets.asyncio.server import ServerConnection
from websockets.server import ServerProtocol

from protocol.runtime.version import TESTED

PACKAGES = ("protocol", "gateway", "agent_api", "registry", "agentbridge")
OWNERS = {"Client", "client", "_client", "subscription", "transport", "_reader"}
CLIENT = {
    "_send_unsubscribe": "protocol/runtime/nats/library/subscriptions.py ends many by one round trip",
    "_remove_sub": "protocol/runtime/nats/library/subscriptions.py ends many by one round trip",
    "_parse_header_lines": "protocol/runtime/nats/library/client.py parses headers by it",
    "_pending": "protocol/runtime/nats/library/outgoing.py writes into it",
    "_pending_data_size": "protocol/runtime/nats/library/outgoing.py keeps it true",
    "_ps": "protocol/runtime/nats/library/incoming.py asks its parser whether it is in the middle of something",
    "_resp_map": "protocol/runtime/nats/library/losses.py fails the requests in it",
    "_server_info": "protocol/runtime/nats/library/transport.py reads what the server demands",
    "_sid": "protocol/runtime/nats/library/subscriptions.py numbers its subscriptions by it",
    "_subs": "protocol/runtime/nats/library/subscriptions.py adds its subscriptions to it",
    "_transport": "protocol/runtime/nats/library/transport.py puts its own there",
    "_send_subscribe": "protocol/runtime/nats/library/subscriptions.py subscribes by it",
}
OVERRIDDEN = {
    "_process_err": "protocol/runtime/nats/library/client.py overrides it to outlive a refused subscription",
    "_error_cb": "protocol/runtime/nats/library/client.py tells of it by this",
    "_process_connect_init": "protocol/runtime/nats/library/client.py begins credits anew after it",
    "_process_msg": "protocol/runtime/nats/library/client.py overrides it to outlive odd messages",
    "_process_pong": "protocol/runtime/nats/library/client.py overrides it to outlive a flush that was given up",
    "_pongs": "protocol/runtime/nats/library/client.py takes the given-up ones out",
    "_pings_outstanding": "protocol/runtime/nats/library/client.py notes that the server lives",
}
SUBSCRIPTION = {
    "_pending_queue": "protocol/runtime/nats/library/subscriptions.py puts its own there",
    "_id": "protocol/runtime/nats/library/subscriptions.py ends many by one round trip",
    "_closed": "protocol/runtime/nats/library/subscriptions.py notes that one has ended",
}
TRANSPORT = {
    "_io_reader": "protocol/runtime/nats/library/incoming.py stands before it",
    "_io_writer": "protocol/runtime/nats/library/transport.py and others reach the socket by it",
}
READER = {
    "_waiter": "protocol/runtime/nats/library/incoming.py asks it whether the library waits for data",
    "_paused": "protocol/runtime/nats/library/incoming.py asks it whether the library wants no more just now",
    "_buffer": "protocol/runtime/nats/library/incoming.py takes what the library has not read yet",
}
SOCKET = {
    "process_event": "protocol/runtime/websocket/connection.py overrides it to take messages",
    "pending_pings": "protocol/runtime/websocket/connection.py adds its pings to it",
}
PARSER = {
    "at_eof": "protocol/runtime/websocket/framing.py overrides it, for the parser calls it between two frames",
    "buffer": "protocol/runtime/websocket/framing.py takes it over",
}
HTTP = {
    "cycle": "agent_api/http/connections.py answers the request of it",
    "flow": "agent_api/http/connections.py lets the next request in by it",
    "pipeline": "agent_api/http/connections.py looks whether another request waits",
    "server_state": "agent_api/http/connections.py counts answers in it",
}
JWKS = {"cooldown_duration": "without it a flood of unknown key ids is a flood of fetches"}


def require(thing: object, names: dict[str, str], library: str) -> None:
    """Fail with a sentence for each name that the thing lacks."""
    missing = [f"`{type(thing).__name__}.{name}`: {why}" for name, why in names.items() if not hasattr(thing, name)]
    assert not missing, f"{library} {metadata.version(library)} lacks " + "; ".join(missing)


async def test_nats_has_the_insides_that_we_use() -> None:
    client = Client()
    require(client, CLIENT | OVERRIDDEN, "nats-py")
    assert asyncio.iscoroutinefunction(client._process_err)
    assert isinstance(client._pending, list)
    assert isinstance(client._subs, dict)
    assert asyncio.iscoroutinefunction(client._send_subscribe)
    require(Subscription(client, 1, "a"), SUBSCRIPTION, "nats-py")
    require(TcpTransport(), TRANSPORT, "nats-py")
    require(asyncio.StreamReader(), READER, "nats-py")


async def test_websockets_has_the_insides_that_we_use() -> None:
    connection = ServerConnection(ServerProtocol(), _NoServer())  # type: ignore[arg-type]
    require(connection, SOCKET, "websockets")
    assert isinstance(connection.pending_pings, dict)
    require(ServerProtocol().reader, PARSER, "websockets")


async def test_uvicorn_has_the_insides_that_we_use() -> None:
    config = uvicorn.Config(_never_served, interface="asgi3", log_config=None)
    config.load()
    connection = HttpToolsProtocol(config, ServerState(), {})
    require(connection, HTTP, "uvicorn")  # what is used of a cycle, tests/unit/agent_api/http/test_writing.py uses


async def test_jwt_pauses_between_fetches_of_the_key_set() -> None:
    require(jwt.PyJWKClient("http://127.0.0.1:1"), JWKS, "PyJWT")


def test_what_is_missing_is_named_with_who_needs_it() -> None:
    told = r"nats-py \d+\.\d+\S* lacks `object\._sid`: protocol/runtime/nats/library/subscriptions\.py"
    with pytest.raises(AssertionError, match=told):
        require(object(), {"_sid": CLIENT["_sid"]}, "nats-py")


def test_insides_that_we_use_are_listed_here() -> None:
    used = {name for name in _private_names() if re.match("_[^_]", name)}
    assert used == CLIENT.keys() | SUBSCRIPTION.keys() | TRANSPORT.keys() | READER.keys()


@pytest.mark.parametrize("name", TESTED)
def test_libraries_whose_insides_we_use_are_bounded_by_their_next_major_version(name: str) -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (bounds,) = re.findall(rf"^{name}(?:\[\w+\])?>=([\d.]+),<([\d.]+)$", "\n".join(dependencies), re.MULTILINE)
    assert bounds == (TESTED[name], str(int(TESTED[name].partition(".")[0]) + 1))


def _private_names() -> Iterator[str]:
    """Yield what our modules reach for inside a client, a subscription or a transport of nats-py."""
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Attribute(value=owner, attr=name) if ast.unparse(owner).rpartition(".")[2] in OWNERS:
                    yield name
                case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=str(name)), *_]):
                    yield name


async def _never_served(scope: object, receive: object, send: object) -> None:
    """Be an application."""


class _NoServer:
    """Stands where a connection wants its server, which it only keeps."""
