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

from protocol.runtime.nats.library.credit import Credit
from protocol.runtime.nats.library.outgoing import header_block

log = logging.getLogger(__name__)
DirectHandler = Callable[[Msg], None]
NewCredit = Callable[[int], Credit]  # by the id of the subscription
Drops = Callable[[bytes, bytes], bool]  # by the subject and the block of headers


class HandOver:
    """A subscription's queue that holds nothing: it calls the handler at once with each message."""

    __slots__ = ("_handler", "credit", "drops")

    def __init__(self, handler: DirectHandler, drops: Drops | None = None) -> None:
        self._handler = handler
        self.drops = drops
        self.credit: Credit | None = None

    def put_nowait(self, msg: Msg) -> None:
        """Handle a message that the library has read, unless it is to be dropped."""
        if self.credit is not None:
            self.count(self.credit)
        if self.drops is not None and self.drops(msg.subject.encode(), header_block(msg.headers or {})):
            return
        self.handle(msg)

    def count(self, credit: Credit) -> None:
        """Count a message, handled or dropped, and ask for more before the credit is used up."""
        credit.received += 1
        if credit.received >= credit.renew_at:
            credit.renew()

    def handle(self, msg: Msg) -> None:
        """Handle a message; an error that escaped would end the reading of the whole connection."""
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
    client: Client,
    subject: str,
    handler: DirectHandler,
    queue: str = "",
    drops: Drops | None = None,
    new_credit: NewCredit | None = None,
) -> Subscription:
    """Subscribe with a handler that never waits; what `drops` drops is not even decoded.

    `new_credit` makes the credit of a subscription from its id; without it the server sends without a limit.
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
    """Have the library not repeat a subscription on the next connection."""
    client._remove_sub(subscription._id)  # noqa: SLF001


def begin_credits_anew(client: Client) -> None:
    """Forget what was granted on a connection that is lost."""
    for credit in _credits(client):
        credit.begin_anew()


def renew_credits(client: Client) -> None:
    """Grant credit on a connection on which the library has repeated all subscriptions."""
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
        for subscription in subscriptions:
            subscription._closed = True  # noqa: SLF001
            client._remove_sub(subscription._id)  # noqa: SLF001
