"""Credit-based flow control: the server sends a subscription no more messages than we have granted.

NATS queues up to 64 MB for a connection that reads too slowly, and the messages of all tenants wait in that queue. So a
subscription that strangers can flood is made with a limit, `UNSUB sid max`, which a larger one extends while it is in
force. We extend it as messages are handled. A flood that comes faster uses the credit up: the server ends the
subscription by itself, and the queue holds no more than the credit.

The server does not say that a limit was reached. After each extension we wait for the answer to a flush: if exactly as
many messages have come by then as were granted before, the extension may have come too late.
"""

import asyncio
import sys
from collections.abc import Callable

from protocol.errors import Unavailable

MAX_COUNTED = 900_000_000  # the server reads nine digits, and ends a subscription whose limit has ten


class Credit:
    """The credit of one subscription, of `messages` that may come before they are handled.

    `write` posts a line to the server, and `flush` begins a round trip. `on_used_up` is called once if the server may
    have ended the subscription. A member of a queue group is not extended: `on_used_up` is called when half is used, so
    that another member takes its place. Two members get no message twice, and leave no gap.
    """

    __slots__ = (
        "_flush",
        "_granted",
        "_is_of_group",
        "_messages",
        "_on_used_up",
        "_sid",
        "_write",
        "received",
        "renew_at",
    )

    def __init__(
        self,
        sid: int,
        messages: int,
        write: Callable[[bytes], None],
        flush: Callable[[], asyncio.Future[None]],
        on_used_up: Callable[[], None],
        *,
        is_of_group: bool = False,
    ) -> None:
        self.received = 0  # on this connection
        self.renew_at = sys.maxsize
        self._granted = sys.maxsize  # none yet: `grant()` follows the SUB
        self._sid = sid
        self._messages = messages
        self._write = write
        self._flush = flush
        self._is_of_group = is_of_group
        self._on_used_up = on_used_up

    @property
    def limit(self) -> int:
        """The messages that the server may send in all."""
        return self._granted

    def begin_anew(self) -> None:
        """Count from 0 and without a limit: the library is about to repeat the subscription on another connection."""
        self.received, self._granted, self.renew_at = 0, sys.maxsize, sys.maxsize

    def stop(self) -> None:
        """Never call `on_used_up` any more: the subscription is ended."""
        self._granted, self.renew_at = -1, sys.maxsize

    def renew(self) -> None:
        """Extend the limit, or have a member of a queue group replaced."""
        if self._is_of_group or self.received > MAX_COUNTED:
            self.renew_at = sys.maxsize
            self._on_used_up()
        else:
            self.grant()

    def grant(self) -> None:
        """Extend the limit, and find out whether the server has heard of it in time."""
        before, self._granted = self._granted, self.received + self._messages
        self.renew_at = sys.maxsize
        try:
            self._write(b"UNSUB %d %d\r\n" % (self._sid, self._granted))
        except Unavailable:  # the next connection begins anew
            return
        # In another turn, behind the flush of whoever makes the subscription: it must know of it before it is used up.
        asyncio.get_running_loop().call_soon(self._verify, before, self._granted)

    def _verify(self, before: int, granted: int) -> None:
        if granted == self._granted:
            self._flush().add_done_callback(lambda flushed: self._confirm(flushed, before, granted))

    def _confirm(self, flushed: asyncio.Future[None], before: int, granted: int) -> None:
        if flushed.cancelled() or flushed.exception() is not None or granted != self._granted:
            return
        # Behind an unlimited subscription the first limit may have been passed before the server heard of it.
        if self.received in (before, granted) or self.received > granted:
            self.renew_at = sys.maxsize
            self._on_used_up()
            return
        self.renew_at = granted - self._messages // 2
        if self.received >= self.renew_at:
            self.renew()
