"""Turns for making overviews: each agent makes one at a time, and all agents alternate, one step each.

A step takes a few milliseconds of the event loop at most, and other work comes between two of them. So an agent that
asks for overviews without end delays others' by a step, and their commands not at all.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from weakref import WeakValueDictionary

Share = tuple[str, str]


class OverviewTurns:
    """The turns of a process."""

    def __init__(self) -> None:
        self._step = asyncio.Lock()
        self._agents: WeakValueDictionary[Share, asyncio.Lock] = WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def of(self, share: Share) -> AsyncIterator[asyncio.Lock]:
        """Wait until the agent makes no other overview. Yield the lock to hold during each step."""
        agent = self._agents.get(share)
        if agent is None:
            agent = self._agents[share] = asyncio.Lock()
        async with agent:
            yield self._step
