"""Fixed endpoints on NATS: a bounded task for each request, one error boundary, announced as a micro service (ADR-32).

`$SRV.PING`, `$SRV.INFO` and `$SRV.STATS` answer for the process. The library's own micro service is not used, because
it sends `repr(error)` to callers, runs handlers inside the subscription, and stops without a drain.
"""

import asyncio
import contextlib
import datetime
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import NamedTuple

import msgspec
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from protocol import codec
from protocol.errors import BridgeError, Internal, Overloaded, Unavailable
from protocol.messages import ErrorResponse, error_headers
from protocol.runtime.log_throttle import LogThrottle
from protocol.runtime.nats.connection import Connection
from protocol.runtime.version import SERVICE_VERSION
from protocol.subjects import is_safe_reply

MAX_REQUESTS_AT_ONCE = 256
LOG_SECONDS = 1.0

log = logging.getLogger(__name__)
Answer = Callable[[Msg], Awaitable[bytes | None]]
Counters = Callable[[], dict[str, int]]


class _EndpointStats(msgspec.Struct):
    """Counters of one endpoint, named as ADR-32 names them; times are in nanoseconds."""

    name: str
    subject: str
    queue_group: str
    num_requests: int = 0
    num_errors: int = 0
    last_error: str = ""
    processing_time: int = 0
    average_processing_time: int = 0
    data: dict[str, int] | None = None

    def count(self, started_ns: int, error: str = "") -> None:
        self.num_requests += 1
        self.processing_time += time.perf_counter_ns() - started_ns
        self.average_processing_time = self.processing_time // self.num_requests
        if error:
            self.num_errors += 1
            self.last_error = error


class _Served:
    """The handler of one subject, and its number of running requests."""

    def __init__(self, answer: Answer, stats: _EndpointStats, at_once: int, connection: Connection) -> None:
        self.answer = answer
        self.stats = stats
        self.at_once = at_once
        self.connection = connection
        self.running = 0


class Accepting(NamedTuple):
    """An endpoint without a subscription: its owner passes it each message, to be accepted or refused with an error."""

    accept: Callable[[Msg], None]
    refuse: Callable[[Msg, BridgeError], None]


class Responder:
    """The endpoints of a process. Its tasks live in `tasks`.

    `$SRV.STATS` has `counters()` as the `data` of the process, and under `faults` a sentence for each stream that
    refuses the process's messages.
    """

    def __init__(
        self,
        connection: Connection,
        tasks: asyncio.TaskGroup,
        service: str,
        metadata: dict[str, str],
        ident: str,
        counters: Counters | None = None,
    ) -> None:
        self._connection = connection
        self._tasks = tasks
        about = {"host": socket.gethostname(), **metadata}
        self._identity = {"name": service, "id": ident, "version": SERVICE_VERSION, "metadata": about}
        self._started = datetime.datetime.now(datetime.UTC)
        self._stats: list[_EndpointStats] = []
        self._counters: dict[str, Counters] = {}
        self._own_counters = counters
        self._subscriptions: list[Subscription] = []
        self._running = 0
        self._ignored_lines = LogThrottle(LOG_SECONDS, asyncio.get_running_loop().time)
        self._idle = asyncio.Event()
        self._idle.set()

    async def announce(self) -> None:
        """Answer `$SRV.PING`, `INFO` and `STATS`, addressed to all services, to this name, or to this process.

        The subscriptions are in place when this returns, or, if NATS has just left, when it is back.
        """
        name, ident = self._identity["name"], self._identity["id"]
        for verb, answer in (("PING", self._ping), ("INFO", self._info), ("STATS", self._describe_stats)):
            for subject in (f"$SRV.{verb}", f"$SRV.{verb}.{name}", f"$SRV.{verb}.{name}.{ident}"):
                handler = partial(self._answer_service, answer)
                self._subscriptions.append(await self._connection.subscribe(subject, handler))
        with contextlib.suppress(Unavailable):  # the library repeats the subscriptions on the next connection
            await self._connection.flush()

    async def endpoint(
        self,
        name: str,
        subject: str,
        answer: Answer,
        *,
        queue: str = "",
        counters: Counters | None = None,
        at_once: int | None = None,
    ) -> None:
        """Serve a subject. `answer` returns the reply's body, None for no reply, or raises a `BridgeError`.

        `$SRV.STATS` has `counters()` as the endpoint's `data`. Above `at_once` running requests (default 256) further
        ones get `overloaded`. The bound is per endpoint, so that a busy one does not block the others.
        """
        endpoint = self.accepting(name, subject, answer, queue=queue, counters=counters, at_once=at_once)
        self._subscriptions.append(await self._connection.subscribe_directly(subject, endpoint.accept, queue=queue))

    def accepting(
        self,
        name: str,
        subject: str,
        answer: Answer,
        *,
        queue: str = "",
        counters: Counters | None = None,
        at_once: int | None = None,
        connection: Connection | None = None,
    ) -> Accepting:
        """Make an endpoint like `endpoint()`, but leave subscribing to the caller.

        Answers go out over `connection`, by default that of the process.
        """
        stats = _EndpointStats(name, subject, queue)
        if counters is not None:
            self._counters[name] = counters
        self._stats.append(stats)
        served = _Served(answer, stats, at_once or MAX_REQUESTS_AT_ONCE, connection or self._connection)
        return Accepting(partial(self._accept, served), partial(self._refuse, served))

    @contextlib.asynccontextmanager
    async def serving(self, drain_seconds: float) -> AsyncIterator[None]:
        """Let endpoints serve. On a regular exit drain them, for at most `drain_seconds`."""
        yield
        await self.drain(drain_seconds)

    async def drain(self, timeout_seconds: float) -> None:
        """Take no more requests and wait for the running ones. Raises `TimeoutError` after `timeout_seconds`."""
        # First the subscriptions: they hand over the requests that NATS has sent already. Then wait for all.
        await self._connection.end_subscriptions(self._subscriptions)
        async with asyncio.timeout(timeout_seconds):
            await self._idle.wait()

    def _accept(self, endpoint: _Served, msg: Msg) -> None:
        if msg.reply and not is_safe_reply(msg.reply):
            # Not even a refusal: an answer to this subject could be taken for somebody's event.
            if count := self._ignored_lines.due():
                log.warning("ignored %d requests, the last on %s: their reply is not an inbox", count, msg.subject)
        elif endpoint.running >= endpoint.at_once:
            self._refuse(endpoint, msg, Overloaded("too many requests at once; try again in a moment"))
        else:
            self._begin(endpoint, msg)

    def _begin(self, endpoint: _Served, msg: Msg) -> None:
        # The library's callback must not wait, so each request gets a task. `at_once` bounds their number.
        serving = self._serve(endpoint, msg)
        try:
            self._tasks.create_task(serving, name=f"answer {endpoint.stats.name}")
        except RuntimeError:  # the tasks of this process are over, and its connection is about to be drained
            serving.close()
            self._refuse(endpoint, msg, Unavailable("this process ends; try again in a moment"))
            return
        self._running += 1
        endpoint.running += 1
        self._idle.clear()

    async def _serve(self, endpoint: _Served, msg: Msg) -> None:
        started = time.perf_counter_ns()
        try:
            error = await self._boundary(endpoint, msg)
            endpoint.stats.count(started, error)
        finally:
            self._running -= 1
            endpoint.running -= 1
            if not self._running:
                self._idle.set()

    async def _boundary(self, endpoint: _Served, msg: Msg) -> str:
        """Answer one request. Return the error's code, or "" for success."""
        try:
            body = await endpoint.answer(msg)
            if msg.reply and body is not None:
                endpoint.connection.publish_now(msg.reply, body)
        except BridgeError as exc:
            self._refuse(endpoint, msg, exc)
            return exc.code.value
        except Exception:
            # An error that left this task would end the task group, and with it the process.
            log.exception("a request on %s failed", msg.subject)
            self._refuse(endpoint, msg, Internal("the request failed; the log of the process says why"))
            return Internal.code.value
        return ""

    def _refuse(self, endpoint: _Served, msg: Msg, error: BridgeError) -> None:
        if not is_safe_reply(msg.reply):
            return
        body = error.body()
        try:
            endpoint.connection.publish_now(msg.reply, codec.encode(ErrorResponse(body)), headers=error_headers(body))
        except Unavailable:
            log.debug("could not refuse a request on %s: NATS is away", msg.subject)

    async def _answer_service(self, answer: Callable[[], dict[str, object]], msg: Msg) -> None:
        if is_safe_reply(msg.reply) and self._connection.connected:
            await self._connection.publish(msg.reply, codec.encode(answer()))

    def _ping(self) -> dict[str, object]:
        return {"type": "io.nats.micro.v1.ping_response", **self._identity}

    def _info(self) -> dict[str, object]:
        endpoints = [
            {"name": e.name, "subject": e.subject, "queue_group": e.queue_group, "metadata": {}} for e in self._stats
        ]
        return {"type": "io.nats.micro.v1.info_response", **self._identity, "description": "", "endpoints": endpoints}

    def _describe_stats(self) -> dict[str, object]:
        for stats in self._stats:
            counters = self._counters.get(stats.name)
            stats.data = counters() if counters is not None else None
        started = self._started.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return {
            "type": "io.nats.micro.v1.stats_response",
            **self._identity,
            "started": started,
            "endpoints": self._stats,
            "faults": self._connection.stores.sentences(),
            **({} if self._own_counters is None else {"data": self._own_counters()}),
        }
