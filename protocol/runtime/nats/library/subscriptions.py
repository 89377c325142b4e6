"""Direct subscriptions: their handlers run as messages arrive, without a queue and a task for each subscription.

nats-py gives each subscription a queue and a task. That is 5 KB for every client of a gateway, and a wake-up for every
message. A handler that never waits needs neither. Here it runs in the connection's reader, so the messages of all
direct subscriptions are handled in the server's order. The library's `Subscription` stays, for reconnects and drains,
with another object as its queue.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

log = logging.getLogger(__name__)
DirectHandler = Callable[[Msg], None]
Drops = Callable[[bytes, bytes], bool]  # gets the subject and the raw headers; True drops the message


class HandOver:
    """A subscription's queue that holds nothing: it calls the handler at once with each message."""

    __slots__ = ("_handler", "drops")

    def __init__(self, handler: DirectHandler, drops: Drops | None = None) -> None:
        self._handler = handler
        self.drops = drops

    def put_nowait(self, msg: Msg) -> None:
        """Call the handler. Its errors are logged, because one that escapes would stop the connection's reader."""
        try:
            self._handler(msg)
        except Exception:
            log.exception("the handler of %s failed", msg.subject)

    def qsize(self) -> int:
        """Return 0: no message ever waits."""
        return 0

    def empty(self) -> bool:
        """Return True: no message ever waits."""
        return True

    async def join(self) -> None:
        """Return at once: all messages are handled."""


async def subscribe(
    client: Client, subject: str, handler: DirectHandler, queue: str = "", drops: Drops | None = None
) -> Subscription:
    """Subscribe with a handler that never waits. Messages for which `drops` returns true are not decoded."""
    client._sid += 1  # noqa: SLF001  as the library's own subscribe does
    subscription = Subscription(client, client._sid, subject, queue, pending_bytes_limit=0)  # noqa: SLF001  nothing pends
    subscription._pending_queue = HandOver(handler, drops)  # type: ignore[assignment]  # noqa: SLF001
    client._subs[client._sid] = subscription  # noqa: SLF001
    await client._send_subscribe(subscription)  # noqa: SLF001
    return subscription


async def leave(client: Client, subscriptions: Sequence[Subscription], flush: Callable[[], Awaitable[None]]) -> None:
    """End direct subscriptions in one round trip, and handle the messages that the server has already sent.

    Raises the errors of `flush`. The subscriptions have ended even then.
    """
    try:
        for subscription in subscriptions:
            await client._send_unsubscribe(subscription._id)  # noqa: SLF001  as the library's own drain does
        await flush()
    finally:
        for subscription in subscriptions:
            subscription._closed = True  # noqa: SLF001
            client._remove_sub(subscription._id)  # noqa: SLF001
