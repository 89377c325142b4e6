"""Turns of the event loop, shared out among the sockets of a process, so that nobody's input holds up the others'.

A socket's callback keeps what was read, stops reading, and asks for a turn. One pump a process handles that input in
slices, for some milliseconds in each turn of the loop. Tenants take turns, then the users of a tenant, then the sockets
of a user: 100 sockets of one stranger hold the loop no longer than one.
"""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Protocol, TypeVar

# Of a turn of the loop, both; a slice that has begun ends. While nobody waits there is nobody to hold up, and input
# that is handled where it arrives costs less. Once somebody waits, a neighbour waits for a few turns of the loop.
AT_ONCE_SECONDS = 0.002
BUDGET_SECONDS = 0.0005

Share = tuple[str, str]  # a tenant and a `sub`
STRANGERS: Share = ("", "")  # sockets without a token are one tenant together

log = logging.getLogger(__name__)
R = TypeVar("R")


class Source(Protocol):
    """A socket with input that waits."""

    share: Share

    def take_slice(self) -> bool:
        """Handle the next slice of the input; return whether more of it waits."""


class Turns:
    """The pump of one process. `call_soon` is the loop's; `clock` counts seconds, finer than uvloop's milliseconds."""

    def __init__(self, call_soon: Callable[[Callable[[], None]], object], clock: Callable[[], float]) -> None:
        self._call_soon = call_soon
        self._clock = clock
        self._tenants: OrderedDict[str, OrderedDict[str, deque[Source]]] = OrderedDict()
        self._scheduled = False
        self._until = 0.0
        self._at_once = False

    def at_once(self) -> bool:
        """Tell whether input may be handled where it arrives: nobody waits, and this turn of the loop has time left."""
        if self._tenants:
            return False
        now = self._clock()
        if not self._at_once:
            self._at_once, self._until = True, now + AT_ONCE_SECONDS
            self._schedule()
        return now < self._until

    def charge(self, seconds: float) -> None:
        """Count work that a slice has begun and that is done later in this turn, such as a request's task."""
        self._until -= seconds

    def add(self, source: Source) -> None:
        """Give a source turns until its input is handled; it must not be waiting already."""
        tenant, sub = source.share
        self._tenants.setdefault(tenant, OrderedDict()).setdefault(sub, deque()).append(source)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._call_soon(self._run)

    def _run(self) -> None:
        """Handle slices until nothing waits or the time of this turn is up."""
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
        """Handle a slice of the source whose turn it is; its tenant and its user go to the end of their lines."""
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
    """A function that is called when its turn has come; it must not raise."""

    def __init__(self, share: Share, work: Callable[[], None]) -> None:
        self.share = share
        self._work = work

    def take_slice(self) -> bool:
        """Call it."""
        self._work()
        return False


async def take_turn(turns: Turns, share: Share, work: Callable[[], R]) -> R:
    """Return what `work` returns, or raise what it raises: at once if nobody waits, else when its turn has come."""
    if turns.at_once():
        return work()
    result: asyncio.Future[R] = asyncio.get_running_loop().create_future()

    def act() -> None:
        if result.done():  # nobody waits for it any more
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
    except Exception:  # one socket's fault must not end the turns of all others
        log.exception("the input of a socket could not be handled")
        return False
