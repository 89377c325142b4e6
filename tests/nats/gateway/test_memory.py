"""What ended sessions leave behind: nothing, and not only after a collection, for that comes seldom."""

import gc
from collections import Counter
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


async def test_ended_session_is_freed_without_a_collection(private_nats: NatsServer) -> None:
    async with running_gateway(private_nats.url) as url:
        gc.collect()
        before = _alive()  # what other tests have left lies about
        gc.disable()
        for _ in range(3):
            async with application(url, {"echo": lambda parameters: parameters}):
                assert _alive()["Session"] > before["Session"]
        await until(lambda: _alive() <= before, 5)


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
                assert _alive()["Session"] > before["Session"]
        await until(lambda: _alive() <= before, 15)


def _alive() -> Counter[str]:
    kinds = (LiveSession, Session, BoundedSocket)
    types = (type(found) for found in gc.get_objects())
    return Counter(kind.__name__ for each in types for kind in kinds if issubclass(each, kind))


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """Let the collector work again after the test."""
    yield
    gc.enable()
