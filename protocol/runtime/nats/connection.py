"""The connection of a process to NATS, hardened: it never gives up and never buffers in silence.

nats-py's defaults give up, block or lose messages in several situations. This module decides each of them once:

- Lost server: reconnect for ever, with a wait of about 0.25 s.
- Frozen server: pings every second notice it within three seconds.
- Vanished host: `TCP_USER_TIMEOUT` breaks the connection after three seconds.
- Publish while the server is away: fails at once, and the unwritten bytes are bounded.
- Closed for good, by the library: `failed` is set, and the process ends.
- Permission violation while the process starts: `ConfigurationError`, because it would look like a timeout otherwise.
"""

import asyncio
import contextlib
import logging
import random
import secrets
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from protocol.errors import ConfigurationError, CredentialsRefused, Overloaded, PayloadTooLarge, Unavailable
from protocol.runtime.clock import SharedClock
from protocol.runtime.log_throttle import LogThrottle
from protocol.runtime.nats.credentials import UserCredentials
from protocol.runtime.nats.flushes import Flushes
from protocol.runtime.nats.library import incoming, losses, subscriptions, transport
from protocol.runtime.nats.library.client import TooManySubscriptionsError, new_client
from protocol.runtime.nats.library.credit import Credit
from protocol.runtime.nats.library.outgoing import (
    Outgoing,
    framed,
    framed_for_stream,
    header_block,
    size_of,
)
from protocol.runtime.nats.library.subscriptions import DirectHandler, Drops
from protocol.runtime.nats.servers import require_acceptable, shown
from protocol.runtime.settings import Settings
from protocol.runtime.store_faults import StoreFaults
from protocol.runtime.version import allows_fast_path

RECONNECT_WAIT_SECONDS = 0.25
PING_INTERVAL_SECONDS = 1
MAX_OUTSTANDING_PINGS = 2
TCP_USER_TIMEOUT_MS = 3000
FLUSH_TIMEOUT_SECONDS = 5
FIRST_CONNECT_LOG_SECONDS = 5
LOG_SECONDS = 1.0
DRAIN_TIMEOUT_SECONDS = 5
CLOSE_TIMEOUT_SECONDS = 1
LAST_ANSWER_SECONDS = 1.0  # how long the end of a process waits for a silent server
EVIDENCE_AFTER_SECONDS = 1.5  # of an unbroken connection, before silence or *no responders* proves that a peer is gone

log = logging.getLogger(__name__)
Handler = Callable[[Msg], Awaitable[None]]


class Connection:
    """A process's connection to NATS. Make one with `connect()`."""

    def __init__(
        self, name: str, inbox_prefix: str, settings: Settings, token: Callable[[], str] | None = None
    ) -> None:
        self.name = name
        self._token = token
        self.inbox_prefix = inbox_prefix
        self._settings = settings
        self._reads_fast = allows_fast_path("nats_in", settings.fast_paths)
        self.client = new_client()
        self.reconnects = 0
        # The number of lost connections. Messages for this process may be lost with each.
        self.breaks = 0
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self.clock = SharedClock(self._loop.time)
        self._away_since: float | None = self._loop.time()
        self._up_since = 0.0
        self._waiting_lines = LogThrottle(FIRST_CONNECT_LOG_SECONDS, self._loop.time)
        self._full_lines = LogThrottle(LOG_SECONDS, self._loop.time)
        self._returned = asyncio.Event()
        self._violations: list[str] = []
        self._refused_subscriptions = 0
        self._refused_lines = LogThrottle(LOG_SECONDS, self._loop.time)
        self._token_lines = LogThrottle(FIRST_CONNECT_LOG_SECONDS, self._loop.time)
        self._started = False
        self._leaving = False
        self.stores = StoreFaults(self._loop.time)
        self._outbox = Outgoing()
        self._flushes = Flushes(self._round_trip)
        self._listeners: list[Callable[[], None]] = []

    # --- is it there? ---

    @property
    def connected(self) -> bool:
        """Whether the server seems to be there. A frozen server is noticed within three seconds."""
        return self._away_since is None and self.client.is_connected

    def away_seconds(self) -> float:
        """Return for how long the server has been away; 0 while it is there."""
        return 0.0 if self._away_since is None else self._loop.time() - self._away_since

    def unbroken_seconds(self) -> float:
        """Return for how long the present connection has held; 0 while there is none."""
        return self._loop.time() - self._up_since if self._away_since is None else 0.0

    def counters(self) -> dict[str, int]:
        """Return the counters of `/metrics`: connected (0 or 1), reconnects, clock skew in ms, unsent bytes."""
        return {
            "natsConnected": int(self.connected),
            "natsReconnects": self.reconnects,
            "clockSkewMs": self.clock.skew_ms,
            "natsUnsentBytes": self.unsent_bytes if self.connected else 0,
        }

    async def wait_connected(self, timeout_seconds: float) -> None:
        """Wait for the server to return; raise `Unavailable` after `timeout_seconds`."""
        if not self.client.is_connected:
            # The library notices a loss before it calls `_on_disconnect()`.
            self._returned.clear()
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._returned.wait()
        except TimeoutError as exc:
            raise Unavailable("NATS is away; try again in a moment") from exc

    def end_with(self, other: "Connection") -> None:
        """Set `failed` if another connection of this process closes for good."""
        other.failed.add_done_callback(lambda failed: None if failed.cancelled() else self._fail())

    def on_reconnect(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each reconnect, when all subscriptions are in place again."""
        self._listeners.append(listener)

    # --- use ---

    def publish_now(
        self, subject: str, payload: bytes, *, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Publish without yielding, so that a socket's callback can answer a command on the spot.

        Raises `Unavailable` if the server is away or more than 16 MiB wait to be written to it, and `PayloadTooLarge`
        if the message is larger than its `max_payload`.
        """
        if self._away_since is not None:
            raise Unavailable("NATS is away; try again in a moment")
        self._outbox.post(self.client, subject, payload, reply, headers)

    @property
    def max_payload(self) -> int:
        """The largest message in bytes that the server takes, headers included. A reconnect may lower it."""
        return self.client.max_payload

    @property
    def posted_bytes(self) -> int:
        """The bytes published since the start. The newest `unsent_bytes` of them are not written yet."""
        return self._outbox.posted_bytes

    @property
    def unsent_bytes(self) -> int:
        """The bytes that wait to be written to the server."""
        return self._outbox.unsent_bytes(self.client)

    def framed(self, subject: str, payload: bytes, *, reply: str = "", headers: dict[str, str] | None = None) -> bytes:
        """Frame a message for `publish_framed_now()`. Raises `PayloadTooLarge` as `publish_now()` does."""
        return framed(subject, payload, reply, headers, self.client.max_payload)

    def framed_for_stream(self, subject: str, payload: bytes, reply: str, message_id: str) -> bytes:
        """Frame a message for a stream, which keeps only the first message of each id. Raises as `framed()` does."""
        return framed_for_stream(subject, payload, reply, message_id, self.client.max_payload)

    def fits(self, frame: bytes) -> bool:
        """Tell whether a framed message is still within the server's `max_payload`."""
        return len(frame) <= self.client.max_payload or size_of(frame) <= self.client.max_payload

    def publish_framed_now(self, frames: bytes) -> None:
        """Publish framed messages together, without yielding.

        Raises `Unavailable` as `publish_now()` does. Then none of them was published.
        """
        if self._away_since is not None:
            raise Unavailable("NATS is away; try again in a moment")
        self._outbox.post_framed(self.client, frames)

    def _write_line(self, line: bytes) -> None:
        """Send a line of the protocol. Raises `Unavailable` as `publish_now()` does."""
        self.publish_framed_now(line)

    def write_now(self) -> None:
        """Write the published messages to the socket now, not at the end of this turn of the event loop."""
        self._outbox.write(self.client)

    async def publish(
        self, subject: str, payload: bytes, *, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Publish as `publish_now()` does."""
        self.publish_now(subject, payload, reply=reply, headers=headers)

    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> Subscription:
        """Subscribe. `handler` must return at once, because nats-py awaits it before the next message."""
        return await self.client.subscribe(subject, queue=queue, cb=handler)

    async def subscribe_directly(
        self,
        subject: str,
        handler: DirectHandler,
        *,
        queue: str = "",
        drops: Drops | None = None,
        credit: int = 0,
        on_used_up: Callable[[], None] | None = None,
    ) -> Subscription:
        """Subscribe with a handler that never waits. It is called as each message arrives, in the server's order.

        What `drops` drops, by its subject and its block of headers, costs next to nothing. With a `credit`, the server
        sends so many messages at most that have not been handled: a flood that comes faster ends the subscription, and
        `on_used_up` is called. A member of a queue group ends with its credit: at half of it `on_used_up` is called.
        """

        def new_credit(sid: int) -> Credit:
            assert on_used_up is not None
            return Credit(sid, credit, self._write_line, self._flushes.begin, on_used_up, is_of_group=bool(queue))

        return await subscriptions.subscribe(
            self.client, subject, handler, queue, drops, new_credit if credit else None
        )

    async def subscribe_confirmed(
        self,
        subject: str,
        handler: DirectHandler,
        drops: Drops | None = None,
        credit: int = 0,
        on_used_up: Callable[[], None] | None = None,
    ) -> Subscription:
        """Subscribe as `subscribe_directly()` does, and return when the server has the subscription.

        Raises `Overloaded` if the server takes no more subscriptions of this connection, and `Unavailable` if it goes
        away. The server does not say which subscription it refuses, so all that are made at the same time fail.
        """
        refused_before = self._refused_subscriptions
        subscription = await self.subscribe_directly(
            subject, handler, drops=drops, credit=credit, on_used_up=on_used_up
        )
        try:
            await self.flush()
            if self._refused_subscriptions != refused_before:
                raise Overloaded("NATS takes no more subscriptions of this process; try again later, or elsewhere")
        except BaseException:
            # Unsubscribe at once: the library would repeat the subscription after a reconnect, and be refused again.
            with contextlib.suppress(nats.errors.Error):
                # The subscription has gone with the connection.
                await subscription.unsubscribe()
            raise
        return subscription

    async def request(
        self, subject: str, payload: bytes, timeout_seconds: float, headers: dict[str, str] | None = None
    ) -> Msg:
        """Send a request and return its reply.

        Raises `TimeoutError` if no reply comes, `nats.errors.NoRespondersError` if nobody serves the subject,
        `Unavailable` while the server is away, and `PayloadTooLarge` for more than its `max_payload`.
        """
        if self._away_since is not None:
            raise Unavailable("NATS is away; try again in a moment")
        self._require_room(payload, headers)
        try:
            # Before Python 3.12 the library's own timeout swallows a cancellation that comes together with the reply.
            async with asyncio.timeout(timeout_seconds):
                return await self.client.request(subject, payload, timeout=None, headers=headers)  # type: ignore[arg-type]
        except (nats.errors.NoRespondersError, TimeoutError):
            raise
        except nats.errors.Error as exc:
            raise Unavailable("NATS did not take the request; try again in a moment") from exc

    def new_inbox(self) -> str:
        """Return a fresh subject for replies, within this user's own inbox prefix."""
        return f"{self.inbox_prefix}.{secrets.token_hex(11)}"

    async def flush(self) -> None:
        """Return when the server has processed everything sent so far. Concurrent callers share a round trip.

        Raises `Unavailable` if the server goes away. It takes five seconds for each of two pongs at most.
        """
        if self._away_since is not None:
            raise Unavailable("NATS is away; try again in a moment")
        await self._flushes.join()

    async def end_subscriptions(self, ended: Iterable[Subscription]) -> None:
        """Drain these subscriptions: take no new messages, and handle those that the server has already sent.

        If the server is away or frozen, there is nothing to wait for, and they are only unsubscribed. The next
        connection does not repeat them.
        """
        there = await self.answers(LAST_ANSWER_SECONDS)
        for subscription in ended:
            try:
                if there:
                    # No timeout: nats-py stops reading if a pong arrives after its flush was cancelled.
                    await subscription.drain()
                    continue
            except (nats.errors.Error, TimeoutError, OSError) as exc:
                there = False
                log.debug("could not drain %s: %s", subscription.subject, exc or type(exc).__name__)
            with contextlib.suppress(nats.errors.Error, OSError):
                # The subscription has ended with the connection.
                await subscription.unsubscribe()
            # After a drain that failed half-way the library would repeat the subscription on the next connection.
            subscriptions.forget(self.client, subscription)

    async def leave_subscriptions(self, direct: Sequence[Subscription]) -> None:
        """Drain direct subscriptions: take no new messages, and handle those that the server has already sent.

        Unlike `end_subscriptions()` it does not ask first whether the server answers. The question would wait behind
        all unread messages.
        """
        with contextlib.suppress(nats.errors.Error, Unavailable):
            # The subscriptions have gone with the connection.
            await subscriptions.leave(self.client, direct, self.flush)

    async def answers(self, within_seconds: float) -> bool:
        """Tell whether the server is there and processes everything sent so far, `within_seconds`."""
        if not self.connected:
            return False
        try:
            # Not the library's `rtt()`, nor its `flush()` with a timeout: both cancel the wait for a late pong, and the
            # pong then ends the task that reads the connection. Our shared flush goes on without this caller.
            async with asyncio.timeout(within_seconds):
                await self.flush()
        except (Unavailable, TimeoutError):
            return False
        return True

    async def verify_permissions(self) -> None:
        """Raise `ConfigurationError` if the server has refused a subscription or a publish since the process started.

        If the server goes away meanwhile, this waits until it is back.
        """
        while not await self._has_flushed_twice() and not self.failed.done():
            await asyncio.sleep(RECONNECT_WAIT_SECONDS)
        self._started = True
        if self._violations:
            raise ConfigurationError(
                f"NATS user of {self.name} lacks permissions: {'; '.join(self._violations)}: "
                "render deploy/nats.conf anew"
            )

    async def _has_flushed_twice(self) -> bool:
        try:
            await self.flush()
            await self.flush()
        except Unavailable:
            return False
        return True

    def _require_room(self, payload: bytes, headers: dict[str, str] | None) -> None:
        """Raise `PayloadTooLarge` for more than the server takes, headers included.

        The library counts the payload alone, and a server closes the connection on which a larger message arrives.
        """
        size = len(payload) + (len(header_block(headers)) if headers else 0)
        if size > self.client.max_payload:
            raise PayloadTooLarge("the message is larger than NATS takes")

    # --- from the first connect to the last word ---

    async def open(self) -> None:
        """Connect for the first time. The library itself tries again for as long as no server answers.

        Raises `ConfigurationError` if the server refuses the credentials or is not acceptable (`servers.py`).
        """
        creds = self._settings.nats_creds if self._token is None else None
        credentials = UserCredentials(creds) if creds else None
        while True:
            try:
                await self._connect_once(credentials)
                require_acceptable(self.client, self._settings)
                break
            except ConfigurationError:
                await self.client.close()
                raise
            except (OSError, nats.errors.Error, TimeoutError) as exc:
                # A client whose connect has failed keeps its socket. Drop it, and try with a new one.
                transport.abandon(self.client)
                if "authorization" in str(exc).lower() or isinstance(exc, ssl.SSLError):
                    raise CredentialsRefused(self._refusal()) from exc
                await self._on_error(exc)
                await asyncio.sleep(RECONNECT_WAIT_SECONDS)
                self.client = new_client()
        self._mark_up()

    async def _connect_once(self, credentials: UserCredentials | None) -> None:
        """Try until a server answers. Unlike a reconnect, the first connect fails if the credentials are wrong."""
        client = self.client
        await client.connect(
            servers=self._settings.nats_servers,
            name=self.name,
            inbox_prefix=self.inbox_prefix,
            user=self._settings.nats_user if self._token is None else None,
            password=self._settings.nats_password if self._token is None else None,
            token=self._token_now if self._token is not None else None,
            signature_cb=credentials.sign if credentials else None,
            user_jwt_cb=credentials.user_jwt if credentials else None,
            tls=ssl.create_default_context(cafile=self._settings.nats_ca) if self._settings.nats_ca else None,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnect,
            reconnected_cb=self._on_reconnect,
            closed_cb=self._on_closed,
            allow_reconnect=False,
            max_reconnect_attempts=-1,
            reconnect_time_wait=RECONNECT_WAIT_SECONDS * random.uniform(0.6, 1.0),  # type: ignore[arg-type]  # noqa: S311  jitter
            connect_timeout=2,
            ping_interval=PING_INTERVAL_SECONDS,
            max_outstanding_pings=MAX_OUTSTANDING_PINGS,
            drain_timeout=DRAIN_TIMEOUT_SECONDS,
            pending_size=0,
        )
        # The first connect is over, so from now on the library may reconnect by itself.
        client.options["allow_reconnect"] = True

    def _refusal(self) -> str:
        if self._token is not None:
            return f"NATS at {shown(self._settings)} refuses the token"
        return (
            f"NATS at {shown(self._settings)} refuses this process's credentials: set AGENTBRIDGE_NATS_USER and "
            "AGENTBRIDGE_NATS_PASSWORD, or AGENTBRIDGE_NATS_CREDS"
        )

    async def leave(self, *, drain: bool) -> None:
        """Drain if that is wanted and the server answers within a second; else close."""
        self._leaving = True
        self.failed.cancel()
        with contextlib.suppress(nats.errors.Error, TimeoutError, OSError):
            # The process ends either way.
            if drain and not self.client.is_closed and await self.answers(LAST_ANSWER_SECONDS):
                await self.client.drain()
            else:
                await _close(self.client)

    # --- callbacks of the library ---

    async def _round_trip(self) -> None:
        # Twice, because the library's flush may overtake a subscription that it has not written yet.
        await self.client.flush(FLUSH_TIMEOUT_SECONDS)
        await self.client.flush(FLUSH_TIMEOUT_SECONDS)

    async def _on_error(self, error: Exception) -> None:
        text = str(error)
        if "permissions violation" in text.lower():
            self._violations.append(text.removeprefix("nats: "))
            log.error("NATS refused: %s", text)
        elif isinstance(error, TooManySubscriptionsError):
            await self._on_subscription_refused()
        elif isinstance(error, nats.errors.SlowConsumerError):
            if count := self._full_lines.due():
                log.error("dropped %d messages, the last on %s: its subscription is full", count, error.subject)
        elif self._token is not None and self._up_since and "authorization" in text.lower():
            # A refused login at a reconnect: without a registry, NATS refuses good tokens, too. So go on trying.
            if self._token_lines.due():
                log.warning("%s; trying again, because maybe no registry runs that could let us in", self._refusal())
        elif self._started:
            log.debug("NATS: %s", text or type(error).__name__)
        else:
            self._log_waiting(text or type(error).__name__)

    async def _on_subscription_refused(self) -> None:
        """Count a refusal for the callers of `subscribe_confirmed()`."""
        self._refused_subscriptions += 1
        if count := self._refused_lines.due():
            log.error("NATS refused %d subscriptions: raise max_subscriptions of the server, or add processes", count)
        # During a reconnect the library repeats all subscriptions, and no caller waits for them. This server takes
        # fewer than the last one, so some clients would stay unreachable: end the process.
        if self._away_since is not None:
            await self._on_closed()

    def _log_waiting(self, why: str) -> None:
        if self._waiting_lines.due():
            log.info("waiting for NATS at %s (%s)", shown(self._settings), why)

    async def _on_disconnect(self) -> None:
        # Count one loss once, even if the library reports it again before the reconnect.
        if self._away_since is None:
            self.breaks += 1
            self._away_since = self._loop.time()
            self._returned.clear()
            # Else the library would send old messages after the reconnect, and requests would wait for replies that
            # cannot come.
            losses.forget_unsent(self.client)
            losses.fail_requests(self.client)
            subscriptions.begin_credits_anew(self.client)
            self._flushes.fail()
            if not self._leaving:
                log.warning("lost NATS; reconnecting")

    async def _on_reconnect(self) -> None:
        """Go on if the server is acceptable: after a reconnect it may be another one of `nats_servers`."""
        try:
            require_acceptable(self.client, self._settings)
        except ConfigurationError as exc:
            log.error("%s", exc)
            await self._on_closed()
            return
        self.reconnects += 1
        self._mark_up()
        log.info("NATS is back")
        for listener in self._listeners:
            listener()

    async def _on_closed(self) -> None:
        self._fail()

    def _fail(self) -> None:
        if not self.failed.done():
            self.failed.set_result(None)

    def _token_now(self) -> str:
        """Return the token to log in with.

        Without one, the first connect raises `ConfigurationError`. A reconnect sets `failed`, because the library would
        try for ever.
        """
        assert self._token is not None
        try:
            return self._token()
        except ConfigurationError as exc:
            if not self._up_since:
                raise
            log.error("%s", exc)
            self._fail()
            raise nats.errors.Error("there is no token to log in with") from exc

    def _mark_up(self) -> None:
        transport.give_up_after(self.client, TCP_USER_TIMEOUT_MS)
        if self._reads_fast:
            incoming.divert(self.client)
        self._away_since = None
        self._up_since = self._loop.time()
        self._returned.set()
        subscriptions.renew_credits(self.client)


@contextlib.asynccontextmanager
async def connect(
    settings: Settings, process: str, user: str, *, drain: bool = True, token: Callable[[], str] | None = None
) -> AsyncIterator[Connection]:
    """Connect as `process`, however long it takes, and drain on exit, which takes seconds if NATS is frozen.

    Without `drain` the exit is immediate. If your last messages must arrive, await `answers()` before it.

    `user` names the inbox prefix `_INBOX.<user>` that this process's NATS user may subscribe to. An agent has no user
    in the settings. It gives `token`, which is called for the login of each connect. If `token` raises
    `ConfigurationError`, the connection ends for good.

    Raises `ConfigurationError` if the server refuses the credentials, is older than 2.11, or lets everybody in and is
    not on this machine.
    """
    connection = Connection(process, f"_INBOX.{user}", settings, token)
    await connection.open()
    try:
        yield connection
    finally:
        await connection.leave(drain=drain)


async def _close(client: Client) -> None:
    """Close; abort the TCP connection if the library's close hangs, because it first writes its pending bytes."""
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
            await client.close()
    except TimeoutError:
        transport.abandon(client)
