"""What ended sessions leave behind: nothing, and not only after a collection, for that comes seldom."""

import gc
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from support.load.resuming_app import resuming_application
from support.nats.nats_server import NatsServer
from support.played.app import application
from support.played.running_gateway import running_gateway
from support.wait import until

from gateway.sessions.core.session import Session
from gateway.sessions.live import LiveSession
from protocol.runtime.websocket.connection import BoundedSocket

FREED_SECONDS = 30


async def test_ended_session_is_freed_without_a_collection(private_nats: NatsServer) -> None:
    async with running_gateway(private_nats.url) as url:
        gc.collect()
        before = _alive()  # what other tests have left lies about
        gc.disable()
        for _ in range(3):
            async with application(url, {"echo": lambda parameters: parameters}):
                assert _sessions(before)
        await _all_freed(before, FREED_SECONDS)


async def test_session_that_the_clock_has_looked_at_last_is_freed_without_a_collection(
    private_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks: list[None] = []

    def counted(self: LiveSession, now: float) -> None:
        tick(self, now)
        ticks.append(None)

    tick = LiveSession.tick
    monkeypatch.setattr(LiveSession, "tick", counted)
    async with running_gateway(private_nats.url) as url:
        gc.collect()
        before = _alive()
        gc.disable()
        async with application(url, {"echo": lambda parameters: parameters}):
            await until(lambda: ticks, FREED_SECONDS)
        await _all_freed(before, FREED_SECONDS)


class Gateway(NamedTuple):
    """Where an application connects."""

    url: str


async def test_ended_session_that_was_resumed_is_freed_without_a_collection(private_nats: NatsServer) -> None:
    async with running_gateway(private_nats.url) as url:
        gc.collect()
        before = _alive()
        gc.disable()
        for _ in range(3):
            async with resuming_application([Gateway(url)], {"echo": lambda parameters: parameters}) as app:
                app.cut()
                assert (await app.connected(2))["resumed"] is True
                assert _sessions(before)
        await _all_freed(before, FREED_SECONDS)


def _alive() -> set[int]:
    """Return the identities of the sessions and sockets that are not freed."""
    return {id(found) for found in _all_of_ours()}


def _all_of_ours() -> list[object]:
    kinds = (LiveSession, Session, BoundedSocket)
    return [found for found in gc.get_objects() if issubclass(type(found), kinds)]


def _sessions(before: set[int]) -> list[object]:
    return [found for found in _all_of_ours() if isinstance(found, Session) and id(found) not in before]


async def _all_freed(before: set[int], seconds: float) -> None:
    """Wait until all new ones are freed. If they are not, say what holds them."""
    try:
        await until(lambda: _alive() <= before, seconds)
    except TimeoutError:
        left = [found for found in _all_of_ours() if id(found) not in before]
        holders = [(type(found).__name__, [_shown(each) for each in gc.get_referrers(found)]) for found in left]
        pytest.fail(f"not freed, each with its holders: {holders}")


def _shown(holder: object) -> str:
    return f"{type(holder).__name__} {str(holder)[:200]}"


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """Let the collector work again after the test."""
    yield
    gc.enable()
