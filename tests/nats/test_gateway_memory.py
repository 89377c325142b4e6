"""What ended sessions leave behind: nothing, and not only after a collection, for that comes seldom."""

import asyncio
import gc
import json
from collections import Counter
from collections.abc import Iterator

import pytest
from support.app import application
from support.nats_server import NatsServer
from support.settings import settings_for
from support.wait import until

from gateway.__main__ import start
from gateway.session import Session
from gateway.sessions import LiveSession
from gateway.settings import GatewaySettings
from protocol.runtime.nats import connect
from protocol.runtime.sockets import BoundedSocket


class _Done(Exception):
    """Ends the task group of the gateway."""


async def test_ended_session_is_freed_without_a_collection(
    private_nats: NatsServer, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_for(GatewaySettings, private_nats.url)
    async with connect(settings, "gateway", "gateway") as connection:
        try:
            async with asyncio.TaskGroup() as tasks:
                gateway = await start(settings, connection, tasks)
                url = json.loads(capsys.readouterr().out)["url"]
                gc.collect()
                before = _alive()  # what other tests have left lies about
                gc.disable()
                for _ in range(3):
                    async with application(url, {"echo": lambda parameters: parameters}):
                        assert _alive()["Session"] > before["Session"]
                await until(lambda: _alive() <= before, 5)
                await gateway.drain()
                raise _Done
        except* _Done:
            pass


def _alive() -> Counter[str]:
    kinds = (LiveSession, Session, BoundedSocket)
    types = (type(found) for found in gc.get_objects())
    return Counter(kind.__name__ for each in types for kind in kinds if issubclass(each, kind))


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """Let the collector work again after the test."""
    yield
    gc.enable()
