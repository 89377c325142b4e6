"""Applications that send as fast as they can: they are refused, and their neighbours and the gateway do not notice."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.nats.nats_server import NatsServer
from support.played.app import App, application
from support.played.flooder import Flooder, flooder
from support.processes.child import Process
from support.processes.gateways import gateway_process
from support.processes.registry import Observer, observer, registries
from support.settings import app_token
from support.wait import until

FLOOD_SECONDS = 2
EACH_SECONDS = 0.05
SMALL, LARGE = 10, 900_000


class Neighbourhood:
    """A gateway with a registry, somebody who floods, and somebody at whom it is not aimed."""

    def __init__(self, gateway: Process, watching: Observer, rude: Flooder) -> None:
        self.gateway = gateway
        self.watching = watching
        self.rude = rude

    async def flood(self, app: App, frame: dict[str, Any]) -> int:
        """Flood, while the neighbour tells an event now and then; return how many that were."""
        flood = asyncio.create_task(self.rude.flood(frame, FLOOD_SECONDS))  # noqa: TID251  awaited below
        events = 0
        while not flood.done():
            events += 1
            await app.send({"type": "event", "event": "honest", "id": f"honest-{events}"})
            await asyncio.sleep(EACH_SECONDS)
        await flood
        return events


@pytest.fixture
async def here(tmp_path: Path, private_nats: NatsServer) -> AsyncIterator[Neighbourhood]:
    url = private_nats.url
    async with (
        registries(tmp_path, url),
        gateway_process(tmp_path / "gateway", url) as gateway,
        observer(url) as watching,
        flooder(gateway.url, app_token("rude")) as rude,
    ):
        yield Neighbourhood(gateway, watching, rude)
        assert "Traceback" not in gateway.log


@pytest.mark.parametrize("tenant", ["default", "elsewhere"])
@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_flood_of_events_is_refused_and_the_neighbour_s_are_stored(
    here: Neighbourhood, tenant: str, size: int
) -> None:
    async with application(here.gateway.url, token=app_token("honest", tenant=tenant), capabilities=["x"]) as app:
        events = await here.flood(app, {"type": "event", "event": "rude", "data": "x" * size})
        await until(lambda: len(answers(app)) == events, 20)
        assert Counter(answers(app).values()) == {"ack": events}
        await until(lambda: any(error["code"] == "rate_limited" for error in here.rude.errors), 10)
        assert not here.rude.closed
        if tenant == "default":
            assert app.client_id in await here.watching.listed()
    assert "gateway_lost" not in here.watching.announced.reasons().values()
    assert "NATS" not in here.gateway.log


async def test_flooder_is_told_in_part_and_how_many_that_stands_for(here: Neighbourhood) -> None:
    """The metric counts the same frames as the errors do, the last ones within a second."""
    await here.rude.flood({"type": "event", "event": "rude"}, FLOOD_SECONDS)
    told = here.rude.errors
    await until(lambda: refused(told) and refused(told) == limited(here.gateway.url), 20)
    assert {error["code"] for error in told} == {"rate_limited"}
    assert len(told) < 400 < refused(told)


def answers(app: App) -> dict[str, str]:
    """Return what the neighbour's events were answered with."""
    return {
        frame["id"]: frame.get("code", "ack") for frame in app.frames if str(frame.get("id", "")).startswith("honest-")
    }


def refused(errors: list[dict[str, Any]]) -> int:
    """Return how many frames these errors stand for."""
    return sum(error["details"].get("refused", 1) for error in errors)


def limited(url: str) -> int:
    """Return how many events the gateway has counted as refused for their rate."""
    text = httpx.get(url.replace("ws://", "http://").replace("/ws", "/metrics")).text
    return int(float(text.split("\nagentbridge_gateway_events_rate_limited_total ")[1].split()[0]))
