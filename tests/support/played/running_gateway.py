"""A gateway inside the test's process, where a test may reach into it, or teach it another dialect."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from gateway.__main__ import serving
from gateway.dialects.choice import DIALECTS
from gateway.dialects.dialect import DialectKind
from gateway.settings import GatewaySettings
from protocol.runtime.nats.connection import connect
from support.settings import settings_for


@contextlib.asynccontextmanager
async def running_gateway(
    nats_url: str, dialects: Sequence[DialectKind] = DIALECTS, **more: object
) -> AsyncIterator[str]:
    """Run a gateway, with settings by their names, and give its URL.

    Its life is one task, because fixtures begin and end in different ones.
    """
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    serves: asyncio.Future[str] = loop.create_future()

    async def live() -> None:
        settings = settings_for(GatewaySettings, nats_url, **more)
        async with connect(settings, "gateway", "gateway") as connection:
            try:
                async with asyncio.TaskGroup() as tasks:
                    async with serving(settings, connection, tasks, dialects) as url:
                        serves.set_result(url)
                        await stop.wait()
                    raise _Over
            except* _Over:
                pass

    life = loop.create_task(live())
    first: list[asyncio.Future[object]] = [life, serves]  # type: ignore[list-item]  # futures are invariant
    await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
    if not serves.done():
        life.result()
    try:
        yield serves.result()
    finally:
        stop.set()
        await life


class _Over(Exception):
    """Ends the tasks of a gateway."""
