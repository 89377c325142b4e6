"""The subscriptions for agents' questions: one wildcard for all tenants, or one for each tenant during a flood.

A wildcard cannot leave out one tenant. So if the questions of one tenant come faster than they can be dropped, each
known tenant gets a subscription of its own, except the flooded one, which gets *no responders* meanwhile. A tenant is
known if it has a client or its agents have asked lately; all others get *no responders*, too.
"""

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from functools import partial

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from protocol import subjects
from protocol.errors import BridgeError
from protocol.runtime.clients.mirror import Mirror
from protocol.runtime.log_throttle import LogThrottle
from protocol.runtime.nats.connection import Connection
from protocol.runtime.nats.lag import QueueLag
from protocol.runtime.nats.library.subscriptions import Drops
from protocol.runtime.subject_floods import SubjectFloods

QUEUE = "registry"
MAX_APART = 3_000  # tenants; each needs a subscription for each kind of question
MAX_ASKERS = 1_000  # remembered tenants whose agents have asked
AT_ONCE = 100  # subscriptions in one turn of the loop
UNKNOWN = ""  # stands for all unknown tenants
RETRY_SECONDS = 0.5
TRIAL_SECONDS = 0.2  # for a flood that goes on to be noticed
# Questions that NATS may send before they are handled. By the wildcard so many that the tenants are served apart before
# they are used up, also if this process has to wait for a core; of one tenant some 10 ms of a flood.
CREDIT, CREDIT_APART = 50_000, 2_000
END_SECONDS = 0.3  # for the server to send the last questions
LOG_SECONDS = 1.0

log = logging.getLogger(__name__)
Handlers = Mapping[str, Callable[[Msg], None]]


class QuestionSubjects:
    """The subscriptions of one registry for questions; its task lives in `tasks`."""

    def __init__(self, connection: Connection, tasks: asyncio.TaskGroup, mirror: Mirror) -> None:
        loop = asyncio.get_running_loop()
        self._left = 0
        self._connection = connection
        self._tasks = tasks
        self._mirror = mirror
        self._handlers: Handlers = {}
        self._drops: Drops | None = None
        self._clock = loop.time
        self._floods = SubjectFloods(QueueLag(connection.flush).seconds)
        self._askers: OrderedDict[str, None] = OrderedDict()
        self._until: dict[str, float] = {}  # by flooded tenant: when it is served again
        self._seconds: dict[str, float] = {}  # by flooded tenant that is still subscribed: how long to leave it out
        self._wide: list[Subscription] = []
        self._apart: dict[str, list[Subscription]] = {}
        self._is_apart = False
        self._changed = asyncio.Event()
        self._lines = LogThrottle(LOG_SECONDS, loop.time)

    async def serve(self, handlers: Handlers, drops: Drops) -> None:
        """Subscribe to the questions of all tenants, each kind with its handler. `drops` filters them first."""
        self._handlers, self._drops = handlers, drops
        self._wide = await self._subscribed("*")

    @contextlib.asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        """On a regular exit take no more questions, and handle those that the server has sent, within a bound."""
        yield
        self._handlers = {}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await self._connection.leave_subscriptions([*self._wide, *_flat(self._apart.values())])

    def counters(self) -> dict[str, int]:
        """Return the counters of `/metrics`: whether agents can ask now, and how often a tenant was left out."""
        return {"questionsConnected": int(self._connection.connected), "subjectsLeft": self._left}

    def asked(self, tenant: str) -> None:
        """Note that an agent of a tenant has asked, so that the tenant is known for a while."""
        self._askers[tenant] = None
        self._askers.move_to_end(tenant)
        if len(self._askers) > MAX_ASKERS:
            self._askers.popitem(last=False)

    def dropped(self, tenant: str, count: int = 1) -> None:
        """Count dropped questions, and leave their tenant out if there are too many."""
        now = self._clock()
        flooded = tenant if self._knows(tenant) else UNKNOWN
        seconds = self._floods.dropped(flooded, now, count)
        if not seconds or flooded in self._until:
            return
        self._until[flooded] = now + seconds
        self._seconds[flooded] = seconds
        self._left += 1
        if count := self._lines.due():
            whose = f"tenant {tenant}" if flooded else "tenants without clients"
            log.warning("no longer answering %d tenants, the last for %.1f s: %s flooded", count, seconds, whose)
        self._changed.set()
        if not self._is_apart:
            self._is_apart = True
            self._tasks.create_task(self._serve_apart(), name="serve tenants apart")

    def _knows(self, tenant: str) -> bool:
        return tenant in self._askers or bool(self._mirror.clients(tenant))

    async def _serve_apart(self) -> None:
        """Serve each known tenant by itself, except the flooded ones, until there are none."""
        while self._handlers and self._until:
            self._changed.clear()  # before the subscriptions change: another tenant may be flooded meanwhile
            try:
                await self._divide()
            except (BridgeError, nats.errors.Error) as exc:
                log.info("cannot serve tenants apart yet: %s", exc)
            await self._sleep(min(self._until.values()) - self._clock())
            now = self._clock()
            self._until = {tenant: until for tenant, until in self._until.items() if until > now}
            if not self._until:
                await self._try_wide()
        await self._unite()

    async def _try_wide(self) -> None:
        """Serve all tenants by the wildcard, too; a flood that goes on is noticed while the others are still apart."""
        with contextlib.suppress(BridgeError, nats.errors.Error):  # `_unite()` tries again
            self._changed.clear()
            self._wide = await self._subscribed("*")
            await self._sleep(TRIAL_SECONDS)

    async def _divide(self) -> None:
        for tenant in [*self._askers, *self._mirror.tenants()]:
            if tenant not in self._apart and tenant not in self._until and len(self._apart) < MAX_APART:
                self._apart[tenant] = await self._subscribed(tenant)
                if len(self._apart) % AT_ONCE == 0:
                    await asyncio.sleep(0)
        left = [self._apart.pop(tenant) for tenant in self._until if tenant in self._apart]
        seconds, self._seconds = self._seconds, {}
        ended, self._wide = [*self._wide, *_flat(left)], []
        await self._connection.leave_subscriptions(ended)  # after the new ones: the server keeps the order
        now = self._clock()  # the queue is handled, so the time begins now
        self._until |= {tenant: now + each for tenant, each in seconds.items() if tenant in self._until}

    async def _unite(self) -> None:
        """Serve all tenants by the wildcard again."""
        while self._handlers and not self._wide:
            try:
                self._wide = await self._subscribed("*")
            except (BridgeError, nats.errors.Error) as exc:
                log.info("cannot serve all tenants yet: %s", exc)
                await asyncio.sleep(RETRY_SECONDS)
        apart, self._apart = self._apart, {}
        self._is_apart = False  # before the wait, because a flood that goes on makes it long
        await self._connection.leave_subscriptions(_flat(apart.values()))

    async def _subscribed(self, tenant: str) -> list[Subscription]:
        return [await self._subscribe(tenant, name) for name in self._handlers]

    async def _subscribe(self, tenant: str, name: str) -> Subscription:
        subject = subjects.registry(tenant, name)
        handler, used_up = self._handlers[name], partial(self._on_used_up, tenant, name)
        credit = CREDIT if tenant == "*" else CREDIT_APART
        return await self._connection.subscribe_directly(
            subject, handler, queue=QUEUE, drops=self._drops, credit=credit, on_used_up=used_up
        )

    def _on_used_up(self, tenant: str, name: str) -> None:
        """Subscribe again at once: if it is a flood, its messages are counted, and its tenant is left."""
        self._tasks.create_task(self._replace(tenant, name), name="subscribe to questions again")

    async def _replace(self, tenant: str, name: str) -> None:
        if name not in self._handlers:  # the registry is about to end
            return
        try:
            made = await self._subscribe(tenant, name)
        except nats.errors.Error as exc:
            log.info("cannot serve `%s` again yet: %s", name, exc)
            return
        place = self._wide if tenant == "*" else self._apart.get(tenant)
        former = [each for each in place or () if each.subject == made.subject]
        if place is None or not former:  # the tenant was left meanwhile
            await self._connection.leave_subscriptions([made])
            return
        place[place.index(former[0])] = made
        await self._connection.leave_subscriptions(former)

    async def _sleep(self, seconds: float) -> None:
        """Sleep, but wake up if another tenant is flooded."""
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._changed.wait()
        except TimeoutError:
            pass


def _flat(lists: Iterable[list[Subscription]]) -> list[Subscription]:
    return [each for subscriptions in lists for each in subscriptions]
