"""Alarms that rarely go off, such as deadlines of commands, most of which are answered long before.

A timer of the event loop takes about 2 µs to set and cancel, and a command needs several. Here alarms wait in slots of
20 ms, and one timer checks the slots. Setting and cancelling an alarm costs a fifth of that, and it goes off up to 20
ms late.
"""

import asyncio
from collections.abc import Callable

TICK_SECONDS = 0.02
ROUNDING_SECONDS = 0.001  # of uvloop's clock; without it an early check would be repeated until the time has come


class Alarm:
    """A scheduled call that can be cancelled."""

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
        self._callback, self._arguments = None, ()  # break the reference cycle, if the callback refers to the alarm
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
        """Call `callback` at `when` or up to 20 ms later; soon, if `when` has passed."""
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
        """Call `callback` after `seconds`, or up to 20 ms later."""
        return self.at(self._loop.time() + seconds, callback, *arguments)

    def _wait(self) -> None:
        self._timer = self._loop.call_at((self._past + 1) * TICK_SECONDS + ROUNDING_SECONDS, self._look)

    def _look(self) -> None:
        """Pass the due calls to the event loop, one by one, so that an error in one does not stop the others."""
        now = int(self._loop.time() / TICK_SECONDS)
        for tick in range(self._past + 1, now + 1):
            for alarm in self._buckets.pop(tick, ()):
                self._loop.call_soon(alarm.go_off)
        self._past = max(self._past, now)
        self._timer = None
        if self._buckets:
            self._wait()
