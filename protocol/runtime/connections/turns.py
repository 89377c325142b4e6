"""Fair turns of the event loop for the sockets of a process, so that one peer's input cannot delay the others'.

A socket's callback keeps the bytes that it has read, pauses reading, and asks for a turn. One pump per process handles
the input in slices, for 0.5 ms in each turn of the loop. Tenants take turns, then the users of a tenant, then the
sockets of a user. So 100 sockets of one user hold the loop no longer than one socket.
"""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Protocol, TypeVar

# The time for input in one turn of the loop; a slice that has begun is finished. If no socket of another tenant waits,
# input is handled in the socket's callback, which costs less, for up to 1 ms. What waits is handled by the pump, for
# 0.5 ms, so that a neighbour waits for only a few turns of the loop.
AT_ONCE_SECONDS = 0.001
BUDGET_SECONDS = 0.0005

Share = tuple[str, str]  # a tenant and a `sub`
STRANGERS: Share = ("", "")  # all sockets without a token count as one tenant

log = logging.getLogger(__name__)
R = TypeVar("R")


class Source(Protocol):
    """A socket with waiting input."""

    share: Share

    def take_slice(self) -> bool:
        """Handle the next slice of the input. Return whether more of it waits."""


class Turns:
    """The pump of one process. `call_soon` is the loop's. `clock` returns seconds and is finer than a millisecond."""

    def __init__(self, call_soon: Callable[[Callable[[], None]], object], clock: Callable[[], float]) -> None:
        self._call_soon = call_soon
        self._clock = clock
        self._tenants: OrderedDict[str, OrderedDict[str, deque[Source]]] = OrderedDict()
        self._scheduled = False
        self._until = 0.0
        self._at_once = False

    def at_once(self, share: Share) -> bool:
        """Tell whether a socket of `share` may handle its input in its callback.

        It may if no socket of another tenant waits, and the millisecond is not over.
        """
        if self._tenants and (len(self._tenants) > 1 or share[0] not in self._tenants):
            return False
        now = self._clock()
        if not self._at_once:
            self._at_once, self._until = True, now + AT_ONCE_SECONDS
            self._schedule()
        return now < self._until

    def charge(self, seconds: float) -> None:
        """Count time that a slice causes later in this turn of the loop, such as a request's task."""
        self._until -= seconds

    def add(self, source: Source) -> None:
        """Give a source turns until its input is handled. It must not be waiting already."""
        tenant, sub = source.share
        self._tenants.setdefault(tenant, OrderedDict()).setdefault(sub, deque()).append(source)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._call_soon(self._run)

    def _run(self) -> None:
        """Handle slices until no source waits or the time of this turn is up."""
        self._scheduled = self._at_once = False
        if not self._tenants:
            return
        self._until = self._clock() + BUDGET_SECONDS
        while self._tenants:
            self._handle_one()
            if self._clock() >= self._until:
                break
        if self._tenants:
            self._schedule()

    def _handle_one(self) -> None:
        """Handle a slice of the next source, and move its tenant and its user to the end of their queues."""
        tenant, subs = next(iter(self._tenants.items()))
        self._tenants.move_to_end(tenant)
        sub, sources = next(iter(subs.items()))
        subs.move_to_end(sub)
        source = sources.popleft()
        if _has_more(source):
            sources.append(source)
        if not sources:
            del subs[sub]
        if not subs:
            del self._tenants[tenant]


class Work:
    """A function that waits for a turn. It must not raise."""

    def __init__(self, share: Share, work: Callable[[], None]) -> None:
        self.share = share
        self._work = work

    def take_slice(self) -> bool:
        """Call it."""
        self._work()
        return False


async def take_turn(turns: Turns, share: Share, work: Callable[[], R]) -> R:
    """Call `work`, at once if no source waits, else in a turn of `share`. Return its result or raise its error."""
    if turns.at_once(share):
        return work()
    result: asyncio.Future[R] = asyncio.get_running_loop().create_future()

    def act() -> None:
        if result.done():  # the caller was cancelled
            return
        try:
            result.set_result(work())
        except Exception as exc:
            result.set_exception(exc)

    turns.add(Work(share, act))
    return await result


def _has_more(source: Source) -> bool:
    try:
        return source.take_slice()
    except Exception:  # one socket's fault must not stop the pump for all others
        log.exception("the input of a socket could not be handled")
        return False
