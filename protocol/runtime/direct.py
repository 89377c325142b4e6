"""Subscriptions whose messages are handled where they arrive, without a queue and a task for each subscription.

The library gives each subscription a queue and a task, 5 KB that a gateway would pay for every client, and a wake-up
for every message. A handler that never waits needs neither: here it runs in the reading of the connection, so that the
messages of all such subscriptions are handled in the order in which the server sent them. The library's object is kept,
for reconnects and drains; only its queue is another one.
"""

import logging
from collections.abc import Callable

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

log = logging.getLogger(__name__)
DirectHandler = Callable[[Msg], None]


class HandOver:
    """Stands in the place of a subscription's queue, and hands each message over at once."""

    __slots__ = ("_handler",)

    def __init__(self, handler: DirectHandler) -> None:
        self._handler = handler

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


async def subscribe(client: Client, subject: str, handler: DirectHandler) -> Subscription:
    """Subscribe with a handler that never waits."""
    client._sid += 1  # noqa: SLF001  as the library's own subscribe does
    subscription = Subscription(client, client._sid, subject, pending_bytes_limit=0)  # noqa: SLF001  nothing pends
    subscription._pending_queue = HandOver(handler)  # type: ignore[assignment]  # noqa: SLF001
    client._subs[client._sid] = subscription  # noqa: SLF001
    await client._send_subscribe(subscription)  # noqa: SLF001
    return subscription
