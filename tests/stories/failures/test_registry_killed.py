"""A registry is killed right after it has written to the bucket: readers of events are told all the same."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import nats
import pytest
from nats.aio.msg import Msg
from support.nats.events import Stream, reading
from support.nats.nats_server import NatsServer
from support.played.app import App
from support.processes.bridge import Bridge, running_bridge
from support.processes.child import Process
from support.wait import subscribed

from protocol import subjects

APPS = 10
OLD = {"name": "old"}
REPEATED_SECONDS = 30
Told = tuple[str, str, str | None]


def told_of_connecting(found: set[Told]) -> bool:
    """Tell whether a client is known as connected under its name, which a report that left early says afterwards."""
    return {"connected"} <= {change for change, _, _ in found} and "old" in {app for _, app, _ in found}


@pytest.mark.parametrize(
    ("change", "enough"),
    [
        ("connect", told_of_connecting),
        ("update", {("updated", "old", None)}.issubset),
        ("rename", {("updated", "old", "renamed"), ("updated", "new", None)}.issubset),
        ("close", {("disconnected", "old", "closed")}.issubset),
        ("lose the gateway", {("disconnected", "old", "gateway_lost")}.issubset),
    ],
    ids=["connect", "update", "rename", "close", "lose the gateway"],
)
async def test_change_is_told_though_the_registry_dies_between_writing_and_announcing_it(
    tmp_path: Path, private_nats: NatsServer, change: str, enough: Callable[[set[Told]], bool]
) -> None:
    async with (
        running_bridge(tmp_path, private_nats.url) as bridge,
        contextlib.AsyncExitStack() as stack,
        reading(bridge.http) as stream,
    ):
        apps = await connected(bridge, stack, 0 if change == "connect" else APPS)
        await told(stream, apps, told_of_connecting)
        async with killed_at_a_write(private_nats.url, bridge.registries[0]):
            apps += await make(change, bridge, stack, apps)
        await bridge.registries[0].start()
        await told(stream, apps, enough)


async def told(stream: Stream, apps: list[App], enough: Callable[[set[Told]], bool]) -> None:
    """Read until enough is told of each application."""
    found: dict[str, set[Told]] = {app.client_id: set() for app in apps}
    async with asyncio.timeout(REPEATED_SECONDS):
        while not all(enough(each) for each in found.values()):
            said = (await stream.next(REPEATED_SECONDS)).data
            found[said["clientId"]].add((said["change"], said["app"], said.get("reason")))


async def connected(bridge: Bridge, stack: contextlib.AsyncExitStack, count: int) -> list[App]:
    """Connect applications that call themselves `old`."""
    return [await stack.enter_async_context(bridge.app({"f": dict}, app=OLD)) for _ in range(count)]


async def make(change: str, bridge: Bridge, stack: contextlib.AsyncExitStack, apps: list[App]) -> list[App]:
    """Change all applications at once, and return those that are new."""
    match change:
        case "connect":
            return await connected(bridge, stack, APPS)
        case "update":
            await asyncio.gather(*(app.register(["f", "g"], app=OLD) for app in apps))
        case "rename":
            await asyncio.gather(*(app.register(["f"], app={"name": "new"}) for app in apps))
        case "close":
            await asyncio.gather(*(app.socket.close() for app in apps))
        case "lose the gateway":
            await bridge.gateways[0].kill()
    return []


@contextlib.asynccontextmanager
async def killed_at_a_write(url: str, registry: Process) -> AsyncIterator[None]:
    """Kill a registry as soon as a client's record is written, which is what is waited for at the end."""
    client = await nats.connect(url)
    try:

        async def kill(msg: Msg) -> None:
            registry.signal(signal.SIGKILL)

        await client.subscribe(f"$KV.{subjects.CLIENTS_BUCKET}.default.>", cb=kill)
        await subscribed(client)
        yield
        await registry.ended()
    finally:
        await client.close()
