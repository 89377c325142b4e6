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
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from protocol.errors import ConfigurationError, CredentialsRefused, PayloadTooLarge, Unavailable
from protocol.runtime import direct, reading
from protocol.runtime.creds import UserCredentials
from protocol.runtime.direct import DirectHandler
from protocol.runtime.flushes import Flushes
from protocol.runtime.outbox import Outbox, header_block, write_at_once
from protocol.runtime.servers import require_acceptable, shown
from protocol.runtime.settings import Settings
from protocol.runtime.transport import new_client

RECONNECT_WAIT_SECONDS = 0.25
PING_INTERVAL_SECONDS = 1
MAX_OUTSTANDING_PINGS = 2
TCP_USER_TIMEOUT_MS = 3000
FLUSH_TIMEOUT_SECONDS = 5
FIRST_CONNECT_LOG_SECONDS = 5
DRAIN_TIMEOUT_SECONDS = 5
CLOSE_TIMEOUT_SECONDS = 1

log = logging.getLogger(__name__)
Handler = Callable[[Msg], Awaitable[None]]


class Connection:
    """A process's connection to NATS. Make one with `connect()`."""

    def __init__(self, name: str, inbox_prefix: str, settings: Settings) -> None:
        self.name = name
        self.inbox_prefix = inbox_prefix
        self._settings = settings
        self.client = new_client()
        self.reconnects = 0
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self._away_since: float | None = self._loop.time()
        self._up_since = 0.0
        self._log_next = 0.0
        self._returned = asyncio.Event()
        self._violations: list[str] = []
        self._started = False
        self._leaving = False
        self._outbox = Outbox()
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

    async def wait_connected(self, timeout_seconds: float) -> None:
        """Wait for the server to return; raise `Unavailable` after `timeout_seconds`."""
        if not self.client.is_connected:
            self._returned.clear()  # the library knows of the loss before it tells us
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._returned.wait()
        except TimeoutError as exc:
            raise Unavailable("NATS is away; try again in a moment") from exc

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

    def publish_group_now(self, messages: Sequence[tuple[str, bytes]], reply: str) -> None:
        """Publish messages, subject and small payload each, without yielding; `reply` goes with the last of them.

        Raises `Unavailable` as `publish_now()` does; then none was published.
        """
        if self._away_since is not None:
            raise Unavailable("NATS is away; try again in a moment")
        self._outbox.post_group(self.client, messages, reply)

    async def publish(
        self, subject: str, payload: bytes, *, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Publish as `publish_now()` does."""
        self.publish_now(subject, payload, reply=reply, headers=headers)

    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> Subscription:
        """Subscribe; `handler` must hand over and return, for messages of one subscription come one at a time."""
        return await self.client.subscribe(subject, queue=queue, cb=handler)

    async def subscribe_directly(self, subject: str, handler: DirectHandler) -> Subscription:
        """Subscribe with a handler that never waits; it runs as each message arrives, in the server's order."""
        return await direct.subscribe(self.client, subject, handler)

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

    # --- callbacks of the library ---

    async def _round_trip(self) -> None:
        await self.client.flush(FLUSH_TIMEOUT_SECONDS)
        await self.client.flush(FLUSH_TIMEOUT_SECONDS)

    async def _on_error(self, error: Exception) -> None:
        text = str(error)
        if "permissions violation" in text.lower():
            self._violations.append(text.removeprefix("nats: "))
            log.error("NATS refused: %s", text)
        elif isinstance(error, nats.errors.SlowConsumerError):
            log.error("dropped a message on %s: its subscription is full", error.subject)
        elif self._started:
            log.debug("NATS: %s", text or type(error).__name__)
        else:
            self._log_waiting(text or type(error).__name__)

    def _log_waiting(self, why: str) -> None:
        if self._loop.time() >= self._log_next:
            self._log_next = self._loop.time() + FIRST_CONNECT_LOG_SECONDS
            log.info("waiting for NATS at %s (%s)", shown(self._settings), why)

    async def _on_disconnect(self) -> None:
        if self._away_since is None:
            self._away_since = self._loop.time()
            self._returned.clear()
            _forget_unsent(self.client)
            _fail_requests(self.client)
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
        if not self.failed.done():
            self.failed.set_result(None)

    def _mark_up(self) -> None:
        _set_user_timeout(self.client)
        write_at_once(self.client)
        reading.divert(self.client)
        self._away_since = None
        self._up_since = self._loop.time()
        self._returned.set()


@contextlib.asynccontextmanager
async def connect(settings: Settings, process: str, user: str, *, drain: bool = True) -> AsyncIterator[Connection]:
    """Connect as `process`, waiting for as long as it takes; drain on exit, which takes seconds where NATS is frozen.

    Without `drain` the exit is at once; ask whether NATS `answers()` before, where something has to arrive.

    `user` names the inbox prefix `_INBOX.<user>` that this process's NATS user may subscribe to. Raises
    `ConfigurationError` where the server refuses the credentials, is older than 2.11, or lets everybody in without
    being on this machine.
    """
    connection = Connection(process, f"_INBOX.{user}", settings)
    await _first_connect(connection, settings)
    try:
        yield connection
    finally:
        await _leave(connection, drain=drain)


async def _first_connect(connection: Connection, settings: Settings) -> None:
    """Connect for the first time; the library itself repeats for as long as nobody answers at all."""
    credentials = UserCredentials(settings.nats_creds) if settings.nats_creds else None
    while True:
        try:
            await _connect_once(connection, settings, credentials)
            require_acceptable(connection.client, settings)
            break
        except ConfigurationError:
            await connection.client.close()
            raise
        except (OSError, nats.errors.Error, TimeoutError) as exc:
            _abandon(connection.client)
            if "authorization" in str(exc).lower() or isinstance(exc, ssl.SSLError):
                raise CredentialsRefused(
                    f"NATS at {shown(settings)} refuses this process's credentials: set AGENTBRIDGE_NATS_USER and "
                    "AGENTBRIDGE_NATS_PASSWORD, or AGENTBRIDGE_NATS_CREDS"
                ) from exc
            await connection._on_error(exc)  # noqa: SLF001  the one maker of connections
            await asyncio.sleep(RECONNECT_WAIT_SECONDS)
            connection.client = new_client()
    connection._mark_up()  # noqa: SLF001


async def _connect_once(connection: Connection, settings: Settings, credentials: UserCredentials | None) -> None:
    """Try until a server answers; unlike a reconnect, the first connect must fail where the credentials are wrong."""
    client = connection.client
    await client.connect(
        servers=settings.nats_servers,
        name=connection.name,
        inbox_prefix=connection.inbox_prefix,
        user=settings.nats_user,
        password=settings.nats_password,
        signature_cb=credentials.sign if credentials else None,
        user_jwt_cb=credentials.user_jwt if credentials else None,
        tls=ssl.create_default_context(cafile=settings.nats_ca) if settings.nats_ca else None,
        error_cb=connection._on_error,  # noqa: SLF001
        disconnected_cb=connection._on_disconnect,  # noqa: SLF001
        reconnected_cb=connection._on_reconnect,  # noqa: SLF001
        closed_cb=connection._on_closed,  # noqa: SLF001
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


async def _leave(connection: Connection, *, drain: bool) -> None:
    """Drain where that is wanted and the server is there to be drained to, close otherwise."""
    connection._leaving = True  # noqa: SLF001
    connection.failed.cancel()
    with contextlib.suppress(nats.errors.Error, TimeoutError, OSError):
        if drain and connection.connected and not connection.client.is_closed:
            await connection.client.drain()
        else:
            await _close(connection.client)


async def _close(client: Client) -> None:
    """Close, and cut the connection to a server that does not take what the library would write before."""
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
            await client.close()
    except TimeoutError:
        _abandon(client)


def _abandon(client: Client) -> None:
    """Close the socket of a client whose own `close()` does not end, or would call that the end of everything."""
    transport = client._transport  # noqa: SLF001  the library offers no way to its socket
    if transport:
        transport.close()


def _set_user_timeout(client: Client) -> None:
    """Have the kernel give up on unacknowledged data after three seconds, where it can (Linux)."""
    transport = client._transport  # noqa: SLF001  the library offers no way to its socket
    writer = getattr(transport, "_io_writer", None)
    sock = writer.get_extra_info("socket") if writer is not None else None
    if sock is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, TCP_USER_TIMEOUT_MS)


def _forget_unsent(client: Client) -> None:
    """Drop what was not written when the connection broke: its senders have been told, or will give up.

    Without this the library would send stale requests seconds later. Subscriptions are replayed from its own table.
    """
    client._pending = []  # noqa: SLF001
    client._pending_data_size = 0  # noqa: SLF001


def _fail_requests(client: Client) -> None:
    """End the waits of requests whose replies died with the connection; whether they were served is not known.

    The library also keeps those that were given up or failed before they were sent. Nobody reads what becomes of them,
    which would be logged as a fault: hence the look at each.
    """
    for waiting in list(client._resp_map.values()):  # noqa: SLF001
        if not waiting.done():
            waiting.set_exception(nats.errors.ConnectionReconnectingError())
            waiting.exception()
