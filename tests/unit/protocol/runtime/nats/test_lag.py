"""How late NATS is, measured only while somebody asks."""

import asyncio

import pytest

from protocol.errors import Unavailable
from protocol.runtime.nats.lag import FRESH_SECONDS, QueueLag


class Server:
    """Answers flushes when the test says so."""

    def __init__(self) -> None:
        self.flushes: list[asyncio.Future[None]] = []

    async def flush(self) -> None:
        self.flushes.append(asyncio.get_running_loop().create_future())
        await self.flushes[-1]


@pytest.fixture
def server() -> Server:
    return Server()


async def test_lag_is_as_long_as_the_answer_has_been_waited_for(server: Server) -> None:
    lag, now = QueueLag(server.flush), asyncio.get_running_loop().time()
    assert server.flushes == []
    assert lag.seconds(now) == 0
    await asyncio.sleep(0)
    assert lag.seconds(now + 0.25) == pytest.approx(0.25)
    assert len(server.flushes) == 1


async def test_last_measurement_holds_for_a_moment(server: Server) -> None:
    loop = asyncio.get_running_loop()
    lag = QueueLag(server.flush)
    lag.seconds(loop.time() - 1)
    await asyncio.sleep(0)
    server.flushes[0].set_result(None)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert lag.seconds(loop.time()) >= 1
    assert lag.seconds(loop.time() + 10 * FRESH_SECONDS) == 0
    await asyncio.sleep(0)
    assert len(server.flushes) == 2


async def test_server_that_goes_away_is_not_late(server: Server) -> None:
    loop = asyncio.get_running_loop()
    lag = QueueLag(server.flush)
    lag.seconds(loop.time() - 1)
    await asyncio.sleep(0)
    server.flushes[0].set_exception(Unavailable("gone"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert lag.seconds(loop.time()) == 0
