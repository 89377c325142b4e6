"""Direct subscriptions: the handler runs as each message arrives, without a queue or a task.

nats-py gives each subscription a queue and a task: 5 KB for each client of a gateway, and a wake-up for each message. A
handler that never waits needs neither. Here the connection's reader calls it, so messages are handled in the server's
order, across all direct subscriptions. The library's `Subscription` object stays, because reconnects and drains need
it. Only its queue is replaced.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from protocol.runtime.nats.library.credit import Credit
from protocol.runtime.nats.library.outgoing import header_block

log = logging.getLogger(__name__)
DirectHandler = Callable[[Msg], None]
NewCredit = Callable[[int], Credit]  # by the id of the subscription
Drops = Callable[[bytes, bytes], bool]  # by the subject and the block of headers


class HandOver:
    """Stands in for a subscription's queue. It stores nothing, and calls the handler with each message."""

    __slots__ = ("_handler", "credit", "drops")

    def __init__(self, handler: DirectHandler, drops: Drops | None = None) -> None:
        self._handler = handler
        self.drops = drops
        self.credit: Credit | None = None

    def put_nowait(self, msg: Msg) -> None:
        """Handle a message from the library's own reader, unless the filter `drops` it."""
        if self.credit is not None:
            self.count(self.credit)
        if self.drops is not None and self.drops(msg.subject.encode(), header_block(msg.headers or {})):
            return
        self.handle(msg)

    def count(self, credit: Credit) -> None:
        """Count a received message, handled or dropped. Near the end of the credit, ask the server for more."""
        credit.received += 1
        if credit.received >= credit.renew_at:
            credit.renew()

    def handle(self, msg: Msg) -> None:
        """Call the handler. An error is logged, and the next message is handled as usual."""
        try:
            self._handler(msg)
        except Exception:
            # If the error escaped, it would end the library's reader, and with it the whole connection.
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
    client: Client,
    subject: str,
    handler: DirectHandler,
    queue: str = "",
    drops: Drops | None = None,
    new_credit: NewCredit | None = None,
) -> Subscription:
    """Subscribe with a handler that never waits. If `drops` returns True, the message is not even decoded.

    `new_credit` makes the subscription's credit from its id. Without it the server sends without a limit.
    """
    client._sid += 1  # noqa: SLF001  as the library's own subscribe does
    subscription = Subscription(client, client._sid, subject, queue, pending_bytes_limit=0)  # noqa: SLF001  nothing pends
    hand_over = HandOver(handler, drops)
    subscription._pending_queue = hand_over  # type: ignore[assignment]  # noqa: SLF001
    if new_credit is not None:
        hand_over.credit = new_credit(subscription._id)  # noqa: SLF001
    client._subs[client._sid] = subscription  # noqa: SLF001
    await client._send_subscribe(subscription)  # noqa: SLF001
    if hand_over.credit is not None:
        hand_over.credit.grant()
    return subscription


def forget(client: Client, subscription: Subscription) -> None:
    """Remove a subscription from the library, so that it is not repeated after a reconnect."""
    client._remove_sub(subscription._id)  # noqa: SLF001


def begin_credits_anew(client: Client) -> None:
    """Reset all credits, because the server of the lost connection knew them and the next one does not."""
    for credit in _credits(client):
        credit.begin_anew()


def renew_credits(client: Client) -> None:
    """Grant all credits on a new connection, after the library has repeated the subscriptions."""
    for credit in _credits(client):
        credit.grant()


def _credits(client: Client) -> list[Credit]:
    queues = [subscription._pending_queue for subscription in client._subs.values()]  # noqa: SLF001
    return [queue.credit for queue in queues if isinstance(queue, HandOver) and queue.credit is not None]


async def leave(client: Client, subscriptions: Sequence[Subscription], flush: Callable[[], Awaitable[None]]) -> None:
    """End direct subscriptions in one round trip, and handle the messages that the server has already sent.

    Raises the errors of `flush`. The subscriptions have ended even then.
    """
    try:
        for subscription in subscriptions:
            queue = subscription._pending_queue  # noqa: SLF001
            if isinstance(queue, HandOver) and queue.credit is not None:
                queue.credit.stop()
            await client._send_unsubscribe(subscription._id)  # noqa: SLF001  as the library's own drain does
        await flush()
    finally:
        # Only now: until the flush returns, messages still arrive for these ids and must find their handlers.
        for subscription in subscriptions:
            subscription._closed = True  # noqa: SLF001
            client._remove_sub(subscription._id)  # noqa: SLF001
