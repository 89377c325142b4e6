"""Subscriptions whose messages are handled where they arrive, without a queue and a task for each subscription.

The library gives each subscription a queue and a task, 5 KB that a gateway would pay for every client, and a wake-up
for every message. A handler that never waits needs neither: here it runs in the reading of the connection, so that the
messages of all such subscriptions are handled in the order in which the server sent them. The library's object is kept,
for reconnects and drains; only its queue is another one.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

log = logging.getLogger(__name__)
DirectHandler = Callable[[Msg], None]
Drops = Callable[[bytes, bytes], bool]  # by the subject and the block of headers


class HandOver:
    """Stands in the place of a subscription's queue, and hands each message over at once, unless it `drops` it."""

    __slots__ = ("_handler", "drops")

    def __init__(self, handler: DirectHandler, drops: Drops | None = None) -> None:
        self._handler = handler
        self.drops = drops

    def put_nowait(self, msg: Msg) -> None:
        """Handle a message; an error that escaped would end the reading of the whole connection."""
        try:
            self._handler(msg)
        except Exception:
            log.exception("the handler of %s failed", msg.subject)

    def qsize(self) -> int:
        """Return how many messages wait: none ever does."""
        return 0

    def empty(self) -> bool:
        """Tell that no message waits."""
        return True

    async def join(self) -> None:
        """Wait until all messages are handled: they are."""


async def subscribe(
    client: Client, subject: str, handler: DirectHandler, queue: str = "", drops: Drops | None = None
) -> Subscription:
    """Subscribe with a handler that never waits; what `drops` drops is not even decoded."""
    client._sid += 1  # noqa: SLF001  as the library's own subscribe does
    subscription = Subscription(client, client._sid, subject, queue, pending_bytes_limit=0)  # noqa: SLF001  nothing pends
    subscription._pending_queue = HandOver(handler, drops)  # type: ignore[assignment]  # noqa: SLF001
    client._subs[client._sid] = subscription  # noqa: SLF001
    await client._send_subscribe(subscription)  # noqa: SLF001
    return subscription


async def leave(client: Client, subscriptions: Sequence[Subscription], flush: Callable[[], Awaitable[None]]) -> None:
    """End direct subscriptions by one round trip; what the server has sent before is handled.

    Raises what `flush` raises. They have ended all the same: a server that is away sends nothing more.
    """
    try:
        for subscription in subscriptions:
            await client._send_unsubscribe(subscription._id)  # noqa: SLF001  as the library's own drain does
        await flush()
    finally:
        for subscription in subscriptions:
            subscription._closed = True  # noqa: SLF001
            client._remove_sub(subscription._id)  # noqa: SLF001
