"""An agent that uses the to-do page: `python examples/todo/agent.py --via http`, or `--via nats`.

Either way it needs only a URL and a token. Over HTTP the standard library is enough, over NATS any client of any
language. If `agentbridge up` runs here, both come from it.
"""

import argparse
import asyncio
import contextlib
import json
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.subscription import Subscription

from agentbridge.cli.credentials import user_of
from agentbridge.deployment import data_folder
from protocol.errors import ConfigurationError
from protocol.runtime.settings import environment
from protocol.runtime.tokens import mint

AGENT = "todo-agent"
TENANT = "default"
TIMEOUT_SECONDS = 30
EVENT_SECONDS = 3
TOKEN_SECONDS = 600
CHANGES = 4


class Refused(Exception):
    """The bridge or the page refused; the text is a sentence for the user of this program."""


class Bridge(Protocol):
    """The two things that an agent needs: find clients, and call one."""

    async def find(self, target: str) -> list[str]:
        """Return the ids of the clients that offer a function or a component."""

    async def call(self, client_id: str, target: str, action: str | None = None, **parameters: Any) -> Any:
        """Call a client and return its result; raise `Refused` if it refuses."""


class Access(NamedTuple):
    """The URL of the bridge and the agent's token."""

    api_url: str
    nats_url: str
    token: str | None


def bearer(token: str | None) -> dict[str, str]:
    """Return the header that carries the token, on HTTP and NATS alike; empty if the bridge needs none."""
    return {"Authorization": f"Bearer {token}"} if token else {}


# --- over HTTP ---


class HttpBridge:
    """The agent API: two routes are all that it takes."""

    def __init__(self, access: Access) -> None:
        self._url = access.api_url
        self._headers = {"Content-Type": "application/json"} | bearer(access.token)
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the bridge is on this machine

    async def find(self, target: str) -> list[str]:
        """Ask `GET /api/clients`, and leave out those that have lost their connection, as a page that was closed."""
        found = await self._ask(f"/api/clients?name={target}")
        return [client["clientId"] for client in found if client["state"] == "active"]

    async def call(self, client_id: str, target: str, action: str | None = None, **parameters: Any) -> Any:
        """Send `POST /api/command`."""
        command = {"target": target, "action": action, "parameters": parameters}
        answer = await self._ask("/api/command", {"clientId": client_id, "command": command})
        return answer["result"]

    async def _ask(self, path: str, body: object = None) -> Any:
        return await asyncio.to_thread(self._ask_blocking, path, None if body is None else json.dumps(body).encode())

    def _ask_blocking(self, path: str, body: bytes | None) -> Any:
        request = urllib.request.Request(self._url + path, body, self._headers)
        try:
            with self._opener.open(request, timeout=TIMEOUT_SECONDS + 5) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as exc:
            problem = json.load(exc)
            raise Refused(f"{problem['message']} ({problem['code']})") from exc
        except OSError as exc:
            raise Refused(f"no agent API answers at {self._url}: start `agentbridge up`") from exc


# --- over NATS ---


class NatsBridge:
    """The subjects of the bridge, with nothing but a NATS client."""

    def __init__(self, client: Client, token: str | None) -> None:
        self._client = client
        self._headers = bearer(token)

    async def find(self, target: str) -> list[str]:
        """Ask the registry."""
        found = await self._ask(f"agentbridge.{TENANT}.registry.find", {"target": target}, "no registry runs")
        return [record["clientId"] for record in found["clients"]]

    async def call(self, client_id: str, target: str, action: str | None = None, **parameters: Any) -> Any:
        """Ask the client itself: its session is a subject."""
        command = {"target": target, "action": action, "parameters": parameters, "timeoutMs": TIMEOUT_SECONDS * 1000}
        answer = await self._ask(f"agentbridge.{TENANT}.command.{client_id}", command, "the page is gone")
        return answer["result"]

    async def listen(self, client_id: str) -> Subscription:
        """Subscribe to all events of a client."""
        subscription = await self._client.subscribe(f"agentbridge.{TENANT}.event.{client_id}.>")
        await self._client.flush()
        return subscription

    async def _ask(self, subject: str, body: object, nobody: str) -> Any:
        try:
            reply = await self._client.request(
                subject, json.dumps(body).encode(), timeout=TIMEOUT_SECONDS + 5, headers=self._headers
            )
        except nats.errors.NoRespondersError as exc:
            raise Refused(nobody) from exc
        except nats.errors.TimeoutError as exc:
            raise Refused("no answer came in time") from exc
        answer = json.loads(reply.data)
        if answer.get("status") == "error":
            raise Refused(f"{answer['error']['message']} ({answer['error']['code']})")
        return answer


@contextlib.asynccontextmanager
async def nats_bridge(access: Access) -> AsyncIterator[NatsBridge]:
    """Log in to NATS by the token, which opens an inbox that is this agent's alone."""
    try:
        client = await nats.connect(
            access.nats_url,
            token=access.token,
            inbox_prefix=f"_INBOX.{user_of(access.token)}",
            allow_reconnect=False,
        )
    except (OSError, nats.errors.Error) as exc:
        raise Refused("NATS does not answer, or refuses this token: start `agentbridge up`") from exc
    try:
        yield NatsBridge(client, access.token)
    finally:
        await client.close()


# --- the agent's work, over either way ---


async def drive(bridge: Bridge, client_id: str) -> None:
    """Use the functions of the page, then its text field and its button."""
    milk = await step(bridge, client_id, "addTodo", title="Buy oat milk")
    await step(bridge, client_id, "addTodo", title="Call grandma")
    await step(bridge, client_id, "completeTodo", id=milk["id"])
    await step(bridge, client_id, "titleInput", "setText", text="Water the plants")
    await step(bridge, client_id, "addButton", "click")
    print("\nThe list now:")
    for todo in await bridge.call(client_id, "listTodos"):
        print(f"  [{'x' if todo['done'] else ' '}] {todo['title']}")


async def step(bridge: Bridge, client_id: str, target: str, action: str | None = None, **parameters: Any) -> Any:
    """Call, and print the call and its result."""
    result = await bridge.call(client_id, target, action, **parameters)
    called = ".".join(filter(None, (target, action)))
    shown = " ".join(f"{name}={value!r}" for name, value in parameters.items())
    print(f"  {called} {shown}".rstrip(), "->", json.dumps(result, ensure_ascii=False))
    return result


async def choose(bridge: Bridge, wanted: str | None) -> str:
    """Return the one page that is open, or the one that was asked for."""
    found = await bridge.find("addTodo")
    if not found:
        raise Refused("no to-do page is connected: run `python examples/todo/serve.py` and open the page that it names")
    if wanted is not None and wanted not in found:
        raise Refused(f"no to-do page has the id {wanted}; connected are {', '.join(found)}")
    if wanted is None and len(found) > 1:
        raise Refused(f"{len(found)} to-do pages are connected; say which by --client: {', '.join(found)}")
    return wanted or found[0]


async def tell_events(events: Subscription) -> None:
    """Print the events of the page."""
    print("\nEvents that the page told:")
    with contextlib.suppress(nats.errors.TimeoutError):
        for _ in range(CHANGES):
            event = json.loads((await events.next_msg(timeout=EVENT_SECONDS)).data)
            print(f"  {event['event']}: {event['data']['title']} (by {event['data']['by']})")


async def over_http(access: Access, wanted: str | None) -> None:
    """Drive the page by HTTP."""
    bridge = HttpBridge(access)
    client_id = await choose(bridge, wanted)
    print(f"Found the to-do page {client_id} over HTTP.")
    await drive(bridge, client_id)


async def over_nats(access: Access, wanted: str | None) -> None:
    """Drive the page over NATS, and listen to its events."""
    async with nats_bridge(access) as bridge:
        client_id = await choose(bridge, wanted)
        print(f"Found the to-do page {client_id} over NATS.")
        events = await bridge.listen(client_id)
        await drive(bridge, client_id)
        await tell_events(events)


def access_to_running_bridge(token: str | None) -> Access:
    """Return the access to the `agentbridge up` that runs here; raise `Refused` if none does."""
    folder = Path(environment().get("AGENTBRIDGE_DATA_DIR") or "./.agentbridge")
    running = data_folder.read(folder)
    if running is None:
        raise Refused("no bridge runs here: start `agentbridge up` in this folder, or set AGENTBRIDGE_DATA_DIR")
    if token is None and running.jwt_secret is not None:
        audience = running.jwt_audience or "agentbridge"
        token = mint(running.jwt_secret, AGENT, "agent", TOKEN_SECONDS, audience=audience, issuer=running.jwt_issuer)
    return Access(running.api_url, running.nats_url, token)


def main() -> None:
    """Drive the page; any failure is printed as a sentence."""
    parser = argparse.ArgumentParser(description="Use the to-do page as an agent would.")
    parser.add_argument("--via", choices=["http", "nats"], default="http", help="how to reach the bridge (http)")
    parser.add_argument("--client", help="id of the page, where several are open")
    parser.add_argument("--token", help="an agent's token (one is made for the bridge that runs here)")
    given = parser.parse_args()
    over = over_http if given.via == "http" else over_nats
    try:
        asyncio.run(over(access_to_running_bridge(given.token), given.client))
    except (Refused, ConfigurationError) as exc:
        sys.exit(f"agent: {exc}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
