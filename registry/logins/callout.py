"""NATS's auth callout: servers ask registries about each login, so that an agent's token for HTTP also opens NATS.

- Our own processes have passwords and are not asked about, so they need no registry.
- Every registry gets every login, and the server takes the first answer. A queue group would be worse: each login at a
  frozen registry would take 1.8 seconds and be refused.
- Each login is a task of its own, because verifying a token may wait for a key set.
- A server does not tell a client why it was refused, so the reason is counted and logged here.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeVar

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from protocol.access import Principal
from protocol.errors import BridgeError, Code, Unauthenticated, Unavailable
from protocol.runtime.connections.turns import Turns, take_turn
from protocol.runtime.log_throttle import LogThrottle
from protocol.runtime.nats.agent_login import LOGINS_METADATA
from protocol.runtime.nats.connection import Connection
from protocol.runtime.nats.login_keys import BadKey, LoginKeys
from protocol.runtime.tokens import Verifier
from registry.logins import requests
from registry.logins.requests import LoginRequest, UnreadableLogin
from registry.logins.waiting import WaitingLogins

SUBJECT = "$SYS.REQ.USER.AUTH"
SERVER_CURVE_HEADER = "Nats-Server-Xkey"
LOGINS_AT_ONCE = 64
MAX_WAITING = 1024
PATIENCE_SECONDS = 1.5  # less than the `timeout` of the servers' configuration
LOG_SECONDS = 1.0
LINES = ("refused", "unreadable", "late", "unanswered")

log = logging.getLogger(__name__)
R = TypeVar("R")


class _Opened:
    """A decrypted request, the keys to answer with, and the server's key to seal the answer for."""

    def __init__(self, request: LoginRequest, keys: LoginKeys, server_curve: str, reply: str) -> None:
        self.request = request
        self.keys = keys
        self.server_curve = server_curve
        self.reply = reply


class Logins:
    """The auth callout of one registry. It tries `pairs` of keys in order. Its tasks live in `tasks`."""

    def __init__(
        self, connection: Connection, tasks: asyncio.TaskGroup, verifier: Verifier, pairs: Sequence[LoginKeys]
    ) -> None:
        loop = asyncio.get_running_loop()
        self._connection = connection
        self._tasks = tasks
        self._verifier = verifier
        self._pairs = pairs
        self._clock = loop.time
        self._turns = Turns(loop.call_soon, loop.time)
        self._waiting: WaitingLogins[_Opened] = WaitingLogins(MAX_WAITING, PATIENCE_SECONDS)
        self._running = 0
        self._admitted = self._unreadable = self._late = 0
        self._refused = Counter({Code.UNAUTHENTICATED.value: 0, Code.PERMISSION_DENIED.value: 0})
        self._lines = {
            kind: LogThrottle(LOG_SECONDS, loop.time) for kind in ("refused", "unreadable", "late", "unanswered")
        }
        self._idle = asyncio.Event()
        self._idle.set()

    @contextlib.asynccontextmanager
    async def serving(self, drain_seconds: float) -> AsyncIterator[None]:
        """Answer servers. On a regular exit take no more logins, and finish the waiting ones within a bound."""
        subscription: Subscription | None = None
        if self._pairs:
            subscription = await self._connection.subscribe(SUBJECT, self._accept)
        yield
        if subscription is not None:
            await subscription.drain()
            async with asyncio.timeout(drain_seconds):
                await self._idle.wait()

    @property
    def metadata(self) -> dict[str, str]:
        """The service's metadata: whether this registry has keys to admit agents."""
        return {LOGINS_METADATA: "on" if self._pairs else "off"}

    def counters(self) -> dict[str, int]:
        """Return the counters of `/metrics`: logins since the start, and the used part of the queue."""
        return {
            "loginsAdmitted": self._admitted,
            **{f"loginsRefused:{reason}": count for reason, count in self._refused.items()},
            "loginsUnreadable": self._unreadable,
            "loginsDropped": self._waiting.dropped + self._late,
            "sharesUsedPercent:logins": 100 * len(self._waiting) // MAX_WAITING,
        }

    async def _accept(self, msg: Msg) -> None:
        """Queue a login, and start a task to answer it if none runs."""
        opened = self._open(msg)
        if opened is None:
            self._unreadable += 1
            if count := self._lines["unreadable"].due():
                log.error(
                    "could not read %d logins: NATS has other keys than this registry: render deploy/nats.conf with "
                    "the public keys of its seeds",
                    count,
                )
            return
        # Queue it, because a flood of logins from one host must not delay those of others.
        self._waiting.add(opened.request.host, opened, self._clock())
        if self._running < LOGINS_AT_ONCE:
            self._running += 1
            self._idle.clear()
            self._tasks.create_task(self._answer_newest(), name="answer logins")

    def _open(self, msg: Msg) -> _Opened | None:
        """Decrypt a server's request. Return it with its keys, because the server accepts answers only under these."""
        server_curve = (msg.headers or {}).get(SERVER_CURVE_HEADER, "")
        try:
            for keys in self._pairs:
                opened = keys.open(msg.data, server_curve)
                if opened is not None:
                    return _Opened(requests.read(opened), keys, server_curve, msg.reply)
        except UnreadableLogin:
            log.debug("a login could not be decoded", exc_info=True)
        return None

    async def _answer_newest(self) -> None:
        """Answer logins until none waits."""
        try:
            while True:
                dropped = self._waiting.dropped
                login = self._waiting.take(self._clock())
                self._tell_late(self._waiting.dropped - dropped)
                if login is None:
                    break
                await self._answer(login)
                # Let other tasks run between two logins.
                await asyncio.sleep(0)
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def _answer(self, login: _Opened) -> None:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                # Fetching a key set may be slow.
                answer = await self._decide(login)
            await self._connection.publish(login.reply, login.keys.seal(answer, login.server_curve))
        except TimeoutError:
            # The server has given up on this login by now, so an answer would be ignored.
            self._late += 1
            self._tell_late(1)
        except (Unavailable, BadKey) as exc:
            if count := self._lines["unanswered"].due():
                log.warning("left %d logins to NATS without an answer: %s", count, exc)
        except Exception:
            log.exception("a login failed")

    async def _decide(self, login: _Opened) -> bytes:
        """Return the answer to a server: the admitted user, or the reason of the refusal.

        Raises `Unavailable` if this registry cannot decide.
        """
        request, keys, host = login.request, login.keys, login.request.host
        try:
            principal = await self._verified(request)
            answer = await self._in_turn(host, lambda: requests.admission(keys, request, principal, time.time()))
        except Unavailable:
            # Another registry may know the keys.
            raise
        except BridgeError as exc:
            self._refused[exc.code.value] += 1
            if count := self._lines["refused"].due():
                log.warning("refused %d logins to NATS, the last from %s: %s", count, host, exc)
            return requests.refusal(keys, request, f"{exc.code.value}: {exc}", time.time())
        self._admitted += 1
        return answer

    async def _verified(self, request: LoginRequest) -> Principal:
        """Return a login's principal. Raises `Unauthenticated`, or `Unavailable` if the key set cannot be fetched."""
        if request.token is None and not self._verifier.off:
            raise Unauthenticated("log in with a token, as NATS token or as password")
        known = await self._in_turn(request.host, lambda: self._verifier.verify_now(request.token))
        return known or await self._verifier.verify(request.token)

    async def _in_turn(self, host: str, work: Callable[[], R]) -> R:
        return await take_turn(self._turns, (host, host), work)

    def _tell_late(self, dropped: int) -> None:
        if dropped and (count := self._lines["late"].due(dropped)):
            log.warning("dropped %d logins to NATS that could not be answered in time", count)
