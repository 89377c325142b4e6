"""Alarms that hardly ever go off, such as deadlines of commands: nearly all commands are answered long before.

A timer of the event loop takes about two microseconds to set and to cancel, and a command would pay for several. Here
alarms wait in slots of 20 ms, and one timer looks at the slots. Setting and cancelling an alarm costs a fifth of that,
and it goes off up to 20 ms late.
"""

import asyncio
from collections.abc import Callable

TICK_SECONDS = 0.02
ROUNDING_SECONDS = 0.001  # uvloop's clock; a look that came early would be repeated until the tick is there


class Alarm:
    """A call that will be made unless it is cancelled before."""

    __slots__ = ("_arguments", "_buckets", "_callback", "_tick")

    def __init__(
        self,
        buckets: dict[int, set["Alarm"]],
        tick: int,
        callback: Callable[..., object],
        arguments: tuple[object, ...],
    ) -> None:
        self._buckets = buckets
        self._tick = tick
        self._callback: Callable[..., object] | None = callback
        self._arguments = arguments

    def go_off(self) -> None:
        """Make the call, once."""
        callback, arguments = self._callback, self._arguments
        self._callback, self._arguments = None, ()
        if callback is not None:
            callback(*arguments)

    def cancel(self) -> None:
        """Do not make the call. Does nothing if it has been made."""
        self._callback, self._arguments = None, ()  # they may know their alarm, and only a collection breaks circles
        bucket = self._buckets.get(self._tick)
        if bucket is not None:
            bucket.discard(self)
            if not bucket:
                del self._buckets[self._tick]


class Alarms:
    """The alarms of one owner, on the running event loop. Times are the loop's, in seconds."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._buckets: dict[int, set[Alarm]] = {}
        self._past = 0
        self._timer: asyncio.TimerHandle | None = None

    def at(self, when: float, callback: Callable[..., object], *arguments: object) -> Alarm:
        """Call `callback` soon after a time, which may have passed."""
        if self._timer is None:
            self._past = int(self._loop.time() / TICK_SECONDS)
            self._wait()
        tick = max(int(when / TICK_SECONDS), self._past) + 1
        bucket = self._buckets.get(tick)
        if bucket is None:
            bucket = self._buckets[tick] = set()
        alarm = Alarm(self._buckets, tick, callback, arguments)
        bucket.add(alarm)
        return alarm

    def after(self, seconds: float, callback: Callable[..., object], *arguments: object) -> Alarm:
        """Call `callback` after a while."""
        return self.at(self._loop.time() + seconds, callback, *arguments)

    def _wait(self) -> None:
        self._timer = self._loop.call_at((self._past + 1) * TICK_SECONDS + ROUNDING_SECONDS, self._look)

    def _look(self) -> None:
        """Have the event loop make the calls that are due, each on its own."""
        now = int(self._loop.time() / TICK_SECONDS)
        for tick in range(self._past + 1, now + 1):
            for alarm in self._buckets.pop(tick, ()):
                self._loop.call_soon(alarm.go_off)
        self._past = max(self._past, now)
        self._timer = None
        if self._buckets:
            self._wait()
