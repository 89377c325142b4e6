"""A stream of changes ends when an administrator disconnects its agent, and no other agent's does."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import cast

from agent_api.mcp.callers import McpCaller
from agent_api.mcp.streams import ChangeStreams
from agent_api.tools.catalogue import ToolCatalogue
from agent_api.tools.views import Narrowing
from protocol import codec
from protocol.access import AGENT, Principal
from protocol.reports import AgentDenial
from protocol.runtime.clients.denied_agents import DeniedAgents
from protocol.runtime.clients.replica import ReplicaEntry
from protocol.subjects import agent_key

PATIENCE_SECONDS = 20


class Unchanging:
    """A catalogue that tells its beginning and nothing else."""

    async def changes(self, *_: object) -> AsyncIterator[None]:
        yield
        await asyncio.Event().wait()


def caller(sub: str) -> McpCaller:
    return McpCaller(Principal(sub, AGENT, "default", float("inf")), None, Narrowing())


async def test_stream_of_a_disconnected_agent_ends_and_no_other() -> None:
    denied = DeniedAgents(lambda: 0)
    streams = ChangeStreams(cast("ToolCatalogue", Unchanging()), denied)
    anns, bobs = streams.changes(caller("ann")), streams.changes(caller("bob"))
    await anext(anns)
    await anext(bobs)
    denied.observe(
        agent_key("default", "0f"), None, ReplicaEntry(1, data=codec.encode(AgentDenial("default", "ann", 1)))
    )
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await anext(anns, "ended") == "ended"
    async with asyncio.TaskGroup() as tasks:
        other = tasks.create_task(cast("Coroutine[None, None, object]", anext(bobs, "ended")))
        await asyncio.sleep(0)
        assert not other.done()
        other.cancel()
