"""Streams of changes in the list of tools: bounds their number and their rate, and ends them."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator

from agent_api.http.readers import valid_seconds
from agent_api.mcp.callers import McpCaller
from agent_api.tools.catalogue import ToolCatalogue
from protocol.errors import AGENT_LIMIT, Overloaded, Unavailable
from protocol.runtime.clients.denied_agents import DeniedAgents
from protocol.shares import Holder, Shares

MAX_STREAMS = 10_000
MAX_OF_AGENT = 64
PAUSE_SECONDS = 1.0


class ChangeStreams:
    """The streams of this process."""

    def __init__(self, catalogue: ToolCatalogue, denied: DeniedAgents, max_streams: int = MAX_STREAMS) -> None:
        self._catalogue = catalogue
        self._denied = denied
        self._places = Shares(max_streams, "too many streams are open; try again in a moment")
        self._of_agent: Counter[Holder] = Counter()
        self._open: set[asyncio.Timeout] = set()
        self._draining = False
        self._clock = asyncio.get_running_loop().time

    def counters(self) -> dict[str, int]:
        """Return the counter of `/metrics`: the used part of the room for streams."""
        return {"sharesUsedPercent:streams": self._places.used_percent}

    @contextlib.contextmanager
    def place(self, caller: McpCaller) -> Iterator[None]:
        """Hold the place of a stream. Raises `Overloaded` if the agent has too many, `Unavailable` while draining."""
        holder = (caller.principal.tenant, caller.principal.sub)
        if self._draining:
            raise Unavailable("this process is shutting down; try again in a moment")
        if self._of_agent[holder] >= MAX_OF_AGENT:
            sentence = f"this agent has {MAX_OF_AGENT} streams open here; close one of them"
            raise Overloaded(sentence, details={"limit": AGENT_LIMIT})
        piece = self._places.ask(holder, 1)
        self._of_agent[holder] += 1
        try:
            yield
        finally:
            piece.release()
            self._of_agent[holder] -= 1
            if not self._of_agent[holder]:
                del self._of_agent[holder]

    async def changes(self, caller: McpCaller) -> AsyncIterator[None]:
        """Yield once at the beginning, then after each change of the caller's list.

        Ends if an administrator disconnects the agent; then the client is refused when it comes back. Raises
        `Unauthenticated` when the token expires.
        """
        end = asyncio.timeout(valid_seconds(caller.principal))
        try:
            async with end:
                self._open.add(end)
                changing = self._catalogue.changes(caller.principal, caller.narrowing, PAUSE_SECONDS)
                with self._denied.watching(caller.principal, lambda _: end.reschedule(self._clock())):
                    async with contextlib.aclosing(changing) as changes:
                        async for _ in changes:
                            yield
        except TimeoutError:
            if not end.expired():
                raise
        finally:
            self._open.discard(end)

    @contextlib.asynccontextmanager
    async def open_to_agents(self) -> AsyncIterator[None]:
        """On a regular exit end every stream, so that its client comes back to another process."""
        yield
        self._draining = True
        for end in self._open:
            end.reschedule(self._clock())
