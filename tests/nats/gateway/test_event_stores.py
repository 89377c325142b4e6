"""Events whose tenant has no stream, or has one no more; with real registries."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import msgspec
import pytest
from support.nats.nats_server import NatsServer
from support.nats.stores import stores_of
from support.played.sessions import session
from support.processes.registry import observer, registries
from support.settings import settings_for
from support.wait import until

from gateway import events as module
from gateway.events import Events
from gateway.sessions.core.session import Session
from gateway.sessions.live import LiveSession
from protocol import subjects
from protocol.access import APP, Principal
from protocol.errors import Overloaded
from protocol.frames import AckFrame, ErrorFrame, EventFrame, ServerFrame
from protocol.runtime.nats.connection import connect
from protocol.runtime.settings import Settings
from protocol.runtime.streams.stores import events_of

SILENCE_SECONDS = 0.3


class Sender:
    """A session as far as events know it."""

    def __init__(self, core: Session) -> None:
        self.core = core
        self.key = core.client_id
        self.events_in_flight = 0
        self.frames: list[ServerFrame] = []

    def send(self, frame: ServerFrame) -> None:
        self.frames.append(frame)

    @property
    def live(self) -> LiveSession:
        return cast("LiveSession", self)


def event(ident: str | None, size: int = 1) -> EventFrame:
    return EventFrame("e", id=ident, data=msgspec.Raw(b'"%s"' % (b"x" * size)))


def sender(tenant: str = "default", sub: str = "user-1") -> Sender:
    core = session()
    core.adopt(Principal(sub, APP, tenant, float("inf")))
    return Sender(core)


@contextlib.asynccontextmanager
async def events_on(url: str) -> AsyncIterator[Events]:
    async with connect(settings_for(Settings, url), "test", "test") as connection:
        events = Events(connection, await stores_of(connection), SILENCE_SECONDS)
        await events.start()
        yield events


async def test_stream_that_is_deleted_while_somebody_taps_the_events_is_made_again(
    tmp_path: Path, private_nats: NatsServer
) -> None:
    """Beside a tap NATS does not answer *no responders*, so silence alone tells that the stream is gone."""
    url, client = private_nats.url, sender()
    async with registries(tmp_path, url), observer(url) as watching, events_on(url) as events:
        events.publish(client.live, event("1"))
        await until(lambda: client.frames, 10)
        assert client.frames == [AckFrame("1")]
        await watching.nats.subscribe("agentbridge.*.event.>")
        await watching.nats.jetstream().delete_stream(events_of("default").stream)
        events.publish(client.live, event("2"))
        await until(lambda: len(client.frames) == 2, 10)
        refused = client.frames[1]
        assert isinstance(refused, ErrorFrame)
        assert (refused.id, refused.code) == ("2", "unavailable")
        events.publish(client.live, event("2"))
        await until(lambda: client.frames[2:] == [AckFrame("2")], 10)


async def test_events_of_many_new_tenants_wait_within_one_bound(
    private_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No registry answers, so each tenant's first events wait; the first event of a tenant has no privilege."""
    monkeypatch.setattr(module, "MAX_WAITING_BYTES", 100_000)
    async with observer(private_nats.url) as watching, events_on(private_nats.url) as events:
        await watching.nats.subscribe(subjects.REGISTRY_STORES)  # stands for a registry that is frozen
        await watching.nats.flush()
        refused = 0
        for number in range(20):
            try:
                events.publish(sender(f"tenant-{number}").live, event(None, 20_000))
            except Overloaded:
                refused += 1
        assert refused > 10
        assert events.counters()["eventsOverloaded"] == refused
