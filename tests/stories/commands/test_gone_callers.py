"""An application is told that nobody waits for its answer any more, also where no cancel could be."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from support.nats.nats_server import NatsServer
from support.played.app import App, never
from support.processes.bridge import Bridge, running_bridge

from gateway.sessions.core.session import ABANDONED_SECONDS

NOTICED_SECONDS = ABANDONED_SECONDS + 10
TIMEOUT_MS = 120_000  # which is not what ends the command
Call = asyncio.Task[httpx.Response | None]


@contextlib.asynccontextmanager
async def waiting_call(folder: Path, server: NatsServer) -> AsyncIterator[tuple[Bridge, App, Call]]:
    """Run a bridge whose application has a command that it never answers; give all three."""
    async with (
        running_bridge(folder, server.url) as bridge,
        bridge.app({"never": never}) as app,
        asyncio.TaskGroup() as tasks,
    ):

        async def call() -> httpx.Response | None:
            try:
                return await bridge.call(app.client_id, "never", timeout_ms=TIMEOUT_MS)
            except httpx.TransportError:
                return None

        await bridge.listed(app.client_id)
        task = tasks.create_task(call())
        await app.received(type="command", target="never")
        yield bridge, app, task


async def test_command_of_a_killed_agent_api_is_cancelled(tmp_path: Path, private_nats: NatsServer) -> None:
    async with waiting_call(tmp_path, private_nats) as (bridge, app, call):
        await bridge.agent_apis[0].kill()
        cancel = await app.received(NOTICED_SECONDS, type="cancel")
        assert cancel["reason"] == "the caller is gone"
        assert await call is None


@pytest.mark.parametrize("leaves", ["while NATS is frozen", "lost"])
async def test_command_whose_cancel_is_lost_is_cancelled_all_the_same(
    tmp_path: Path, private_nats: NatsServer, leaves: str
) -> None:
    async with waiting_call(tmp_path, private_nats) as (_, app, call):
        private_nats.freeze()
        try:
            if leaves == "lost":
                answer = await call
                assert answer is not None
                assert answer.json()["code"] == "client_lost"
            else:
                call.cancel()
            await asyncio.sleep(4)  # the very thing: until every process has left the frozen server
        finally:
            private_nats.thaw()
        await app.received(NOTICED_SECONDS, type="cancel")


async def test_command_that_is_asked_after_goes_on(tmp_path: Path, private_nats: NatsServer) -> None:
    async with waiting_call(tmp_path, private_nats) as (_, app, call):
        with pytest.raises(TimeoutError):
            await app.received(ABANDONED_SECONDS + 2, type="cancel")
        assert not call.done()
        call.cancel()
        await app.received(type="cancel")
