"""The connection of a process to NATS, hardened: it never gives up and never buffers in silence.

What the client library leaves open is closed here, once: endless reconnects with short waits, pings short enough to
notice a frozen server in three seconds, `TCP_USER_TIMEOUT` for a host that vanished, publishes that fail at once while
the server is away, a bound on what waits to be written, a fatal `closed`, and permission violations that stop a
process which is just starting instead of looking like timeouts.
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
    write_at_once,
)
from protocol.runtime.nats.library.subscriptions import DirectHandler, Drops
from protocol.runtime.nats.servers import require_acceptable, shown
from protocol.runtime.settings import Settings
from protocol.runtime.store_faults import StoreFaults

RECONNECT_WAIT_SECONDS = 0.25
PING_INTERVAL_SECONDS = 1
MAX_OUTSTANDING_PINGS = 2
TCP_USER_TIMEOUT_MS = 3000
FLUSH_TIMEOUT_SECONDS = 5
FIRST_CONNECT_LOG_SECONDS = 5
LOG_SECONDS = 1.0
DRAIN_TIMEOUT_SECONDS = 5
CLOSE_TIMEOUT_SECONDS = 1
LAST_ANSWER_SECONDS = 1.0  # a server that is silent for so long at the end is not waited for
EVIDENCE_AFTER_SECONDS = 1.5  # of an unbroken connection, before silence or *no responders* prove anything of others

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
        self.client = new_client()
        self.reconnects = 0
        self.breaks = 0  # of the connection: what was sent to this process meanwhile may be lost
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
        """Whether the server is believed to be there; a frozen one is noticed within three seconds."""
        return self._away_since is None and self.client.is_connected

    def away_seconds(self) -> float:
        """Return for how long the server has been away; 0 while it is there."""
        return 0.0 if self._away_since is None else self._loop.time() - self._away_since

    def unbroken_seconds(self) -> float:
        """Return for how long the present connection has held; 0 while there is none."""
        return self._loop.time() - self._up_since if self._away_since is None else 0.0

    def counters(self) -> dict[str, int]:
        """Return whether NATS is there, how often it came back, and how much waits to be written to it."""
        return {
            "natsConnected": int(self.connected),
            "natsReconnects": self.reconnects,
            "clockSkewMs": self.clock.skew_ms,
            "natsUnsentBytes": self.unsent_bytes if self.connected else 0,
        }

    async def wait_connected(self, timeout_seconds: float) -> None:
        """Wait for the server to return; raise `Unavailable` after `timeout_seconds`."""
        if not self.client.is_connected:
            self._returned.clear()  # the library knows of the loss before it tells us
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._returned.wait()
        except TimeoutError as exc:
            raise Unavailable("NATS is away; try again in a moment") from exc

    def end_with(self, other: "Connection") -> None:
        """Count as closed for good if another connection of the process is."""
        other.failed.add_done_callback(lambda failed: None if failed.cancelled() else self._fail())

    def on_reconnect(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each reconnect, when all subscriptions are in place again."""
        self._listeners.append(listener)

    # --- use ---

    def publish_now(
        self, subject: str, payload: bytes, *, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Publish without yielding, so that a socket's callback can answer a command on the spot.

        Raises `Unavailable` where the server is away or has not taken what came before, `PayloadTooLarge` for more
        than its `max_payload`.
        """
        if self._away_since is not None:
            raise Unavailable("NATS is away; try again in a moment")
        self._outbox.post(self.client, subject, payload, reply, headers)

    @property
    def max_payload(self) -> int:
        """How many bytes the server takes of one message, headers included; a reconnect may lower it."""
        return self.client.max_payload

    @property
    def posted_bytes(self) -> int:
        """How much was published here since the start. Of this `unsent_bytes` are the newest."""
        return self._outbox.posted_bytes

    @property
    def unsent_bytes(self) -> int:
        """How much waits to be written to the server."""
        return self._outbox.unsent_bytes(self.client)

    def framed(self, subject: str, payload: bytes, *, reply: str = "", headers: dict[str, str] | None = None) -> bytes:
        """Return a message as `publish_framed_now()` takes it. Raises `PayloadTooLarge` as `publish_now()` does."""
        return framed(subject, payload, reply, headers, self.client.max_payload)

    def framed_for_stream(self, subject: str, payload: bytes, reply: str, message_id: str) -> bytes:
        """Return a message that a stream keeps once, whatever comes under the same id; raises as `framed()` does."""
        return framed_for_stream(subject, payload, reply, message_id, self.client.max_payload)

    def fits(self, frame: bytes) -> bool:
        """Tell whether the server still takes a message that was framed before."""
        return len(frame) <= self.client.max_payload or size_of(frame) <= self.client.max_payload

    def publish_framed_now(self, frames: bytes) -> None:
        """Publish messages that were framed before, without yielding and together.

        Raises `Unavailable` as `publish_now()` does; then none was published.
        """
        if self._away_since is not None:
            raise Unavailable("NATS is away; try again in a moment")
        self._outbox.post_framed(self.client, frames)

    def _write_line(self, line: bytes) -> None:
        """Send a line of the protocol. Raises `Unavailable` as `publish_now()` does."""
        self.publish_framed_now(line)

    def write_now(self) -> None:
        """Hand what was published to the socket, which otherwise happens at the end of this turn of the event loop."""
        self._outbox.write(self.client)

    async def publish(
        self, subject: str, payload: bytes, *, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Publish as `publish_now()` does."""
        self.publish_now(subject, payload, reply=reply, headers=headers)

    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> Subscription:
        """Subscribe; `handler` must hand over and return, for messages of one subscription come one at a time."""
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
        """Subscribe with a handler that never waits; it runs as each message arrives, in the server's order.

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

        Raises `Overloaded` if the server takes no more of this connection, `Unavailable` if it goes away. The server
        does not say which subscription it refuses: all that were made at the same time fail.
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
            # At once: a reconnect would make it again, and be refused then.
            with contextlib.suppress(nats.errors.Error):  # gone with the connection
                await subscription.unsubscribe()
            raise
        return subscription

    async def request(
        self, subject: str, payload: bytes, timeout_seconds: float, headers: dict[str, str] | None = None
    ) -> Msg:
        """Send a request and return its reply.

        Raises `TimeoutError` for silence, `nats.errors.NoRespondersError` where nobody serves the subject,
        `Unavailable` while the server is away, `PayloadTooLarge` for more than its `max_payload`.
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
        """Return when the server has processed all that was sent before; callers at one time share a round trip.

        The library's own flush may overtake a subscription that it has not written yet, so it is done twice.
        Raises `Unavailable` where the server goes away, at the latest after some seconds.
        """
        await self._flushes.join()

    async def end_subscriptions(self, subscriptions: Iterable[Subscription]) -> None:
        """Take no more messages of these, and handle those that the server has sent before.

        A server that is away, or frozen, sends nothing that could be waited for. The next connection does not repeat
        what is ended here.
        """
        there = await self.answers(LAST_ANSWER_SECONDS)
        for subscription in subscriptions:
            try:
                if there:  # no time limit of ours: the library does not survive the pong of a flush that was cancelled
                    await subscription.drain()
                    continue
            except (nats.errors.Error, TimeoutError, OSError) as exc:
                there = False
                log.debug("could not drain %s: %s", subscription.subject, exc or type(exc).__name__)
            with contextlib.suppress(nats.errors.Error, OSError):  # it has ended with the connection
                await subscription.unsubscribe()

    async def leave_subscriptions(self, direct: Sequence[Subscription]) -> None:
        """Take no more messages of direct subscriptions at once, and handle those that the server has sent before.

        Unlike `end_subscriptions()` it begins at once, however many messages wait before the server's answer.
        """
        with contextlib.suppress(nats.errors.Error, Unavailable):  # gone with the connection
            await subscriptions.leave(self.client, direct, self.flush)

    async def answers(self, within_seconds: float) -> bool:
        """Tell whether the server is there and has processed all that was sent before.

        The library's own `rtt()` and `flush()` cancel the wait for a pong that is late; when it comes, it ends the task
        that reads the connection. A flush that is shared waits on, whoever gives up.
        """
        if not self.connected:
            return False
        try:
            async with asyncio.timeout(within_seconds):
                await self.flush()
        except (Unavailable, TimeoutError):
            return False
        return True

    async def verify_permissions(self) -> None:
        """Raise `ConfigurationError` where the server refused a subscription or publish of this process's start.

        A server that goes away meanwhile is waited for, like any other time.
        """
        while not await self._has_flushed_twice() and not self.failed.done():
            await asyncio.sleep(RECONNECT_WAIT_SECONDS)
        self._started = True
        if self._violations:
            raise ConfigurationError(f"NATS user of {self.name} lacks permissions: {'; '.join(self._violations)}")

    async def _has_flushed_twice(self) -> bool:
        try:
            await self.flush()
            await self.flush()
        except Unavailable:
            return False
        return True

    def _require_room(self, payload: bytes, headers: dict[str, str] | None) -> None:
        """Raise `PayloadTooLarge` for more than the server takes, headers included.

        The library counts the payload alone; a server that gets more than it takes closes the whole connection.
        """
        size = len(payload) + (len(header_block(headers)) if headers else 0)
        if size > self.client.max_payload:
            raise PayloadTooLarge("the message is larger than NATS takes")

    # --- from the first connect to the last word ---

    async def open(self) -> None:
        """Connect for the first time; the library itself repeats for as long as nobody answers at all.

        Raises `ConfigurationError` if the server refuses the credentials or is none to work with.
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
                transport.abandon(self.client)
                if "authorization" in str(exc).lower() or isinstance(exc, ssl.SSLError):
                    raise CredentialsRefused(self._refusal()) from exc
                await self._on_error(exc)
                await asyncio.sleep(RECONNECT_WAIT_SECONDS)
                self.client = new_client()
        self._mark_up()

    async def _connect_once(self, credentials: UserCredentials | None) -> None:
        """Try until a server answers; unlike a reconnect, the first connect must fail if the credentials are wrong."""
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
        client.options["allow_reconnect"] = True

    def _refusal(self) -> str:
        if self._token is not None:
            return f"NATS at {shown(self._settings)} refuses the token"
        return (
            f"NATS at {shown(self._settings)} refuses this process's credentials: set AGENTBRIDGE_NATS_USER and "
            "AGENTBRIDGE_NATS_PASSWORD, or AGENTBRIDGE_NATS_CREDS"
        )

    async def leave(self, *, drain: bool) -> None:
        """Drain where that is wanted and the server is there to be drained to, close otherwise."""
        self._leaving = True
        self.failed.cancel()
        with contextlib.suppress(nats.errors.Error, TimeoutError, OSError):  # leaving anyway: there is nobody to tell
            if drain and not self.client.is_closed and await self.answers(LAST_ANSWER_SECONDS):
                await self.client.drain()
            else:
                await _close(self.client)

    # --- callbacks of the library ---

    async def _round_trip(self) -> None:
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
            if self._token_lines.due():
                log.warning("%s; trying again, for no registry may run that could let us in", self._refusal())
        elif self._started:
            log.debug("NATS: %s", text or type(error).__name__)
        else:
            self._log_waiting(text or type(error).__name__)

    async def _on_subscription_refused(self) -> None:
        """Count a refusal, for whoever waits in `subscribe_confirmed()`.

        While the library repeats all subscriptions after a reconnect nobody waits, and some would stay silent: a server
        that takes fewer than the last one did is the end.
        """
        self._refused_subscriptions += 1
        if count := self._refused_lines.due():
            log.error("NATS refused %d subscriptions: raise max_subscriptions of the server, or add processes", count)
        if self._away_since is not None:
            await self._on_closed()

    def _log_waiting(self, why: str) -> None:
        if self._waiting_lines.due():
            log.info("waiting for NATS at %s (%s)", shown(self._settings), why)

    async def _on_disconnect(self) -> None:
        if self._away_since is None:
            self.breaks += 1
            self._away_since = self._loop.time()
            self._returned.clear()
            losses.forget_unsent(self.client)
            losses.fail_requests(self.client)
            subscriptions.begin_credits_anew(self.client)
            self._flushes.fail()
            if not self._leaving:
                log.warning("lost NATS; reconnecting")

    async def _on_reconnect(self) -> None:
        """Go on where the server is still one to work with: another of several may have answered."""
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
        """Return the token to log in with. Raises `ConfigurationError` at the first connect, if there is none.

        Later that is the end: the library would go on trying for ever.
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
        write_at_once(self.client)
        incoming.divert(self.client)
        self._away_since = None
        self._up_since = self._loop.time()
        self._returned.set()
        subscriptions.renew_credits(self.client)


@contextlib.asynccontextmanager
async def connect(
    settings: Settings, process: str, user: str, *, drain: bool = True, token: Callable[[], str] | None = None
) -> AsyncIterator[Connection]:
    """Connect as `process`, waiting for as long as it takes; drain on exit, which takes seconds where NATS is frozen.

    Without `drain` the exit is at once; ask whether NATS `answers()` before, where something has to arrive.

    `user` names the inbox prefix `_INBOX.<user>` that this process's NATS user may subscribe to. An agent has no user
    in the settings: `token` is called at each connect, for the token that it logs in with; a `ConfigurationError` of it
    ends the connection for good. Raises `ConfigurationError` where the server refuses the credentials, is older than
    2.11, or lets everybody in without being on this machine.
    """
    connection = Connection(process, f"_INBOX.{user}", settings, token)
    await connection.open()
    try:
        yield connection
    finally:
        await connection.leave(drain=drain)


async def _close(client: Client) -> None:
    """Close, and cut the connection to a server that does not take what the library would write before."""
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
            await client.close()
    except TimeoutError:
        transport.abandon(client)
