"""The caller's side of a command: send it, wait for its one answer, and never wait for a gateway that is gone.

The agent API uses it, and agents that speak NATS directly. NATS does not tell a caller that a gateway died after it
took a command. So while a command waits, we probe its client's subject every second. The gateway answers "in flight",
the outcome (whose reply may have been lost), or "unknown". Three findings end the wait with `client_lost`:

The gateway relies on the probes, too: it cancels a command that nobody has probed for eight seconds, because its caller
has died or its `cancel` was lost. A command under an idempotency key goes on, because its caller may come back.
"""

import asyncio
import contextlib
import itertools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable

import msgspec
from nats.aio.msg import Msg

from protocol import codec, subjects
from protocol.errors import (
    BridgeError,
    ClientLost,
    ClientNotFound,
    Code,
    Conflict,
    DeadlineExceeded,
    Internal,
    Overloaded,
    PayloadTooLarge,
    Unavailable,
)
from protocol.ids import new_request_id
from protocol.messages import (
    AUTHORIZATION_HEADER,
    MAX_PROBED,
    PROGRESS_HEADER,
    CancelRequest,
    CommandRequest,
    CommandResponse,
    ProbeRequest,
    decode_probe_response,
    decode_response,
)
from protocol.runtime.alarms import Alarm, Alarms
from protocol.runtime.commands.evidence import SECOND_LOOK_SECONDS, Doubt, Evidence, has_just_reconnected
from protocol.runtime.commands.progress import OnProgress, ProgressListeners
from protocol.runtime.commands.send_window import Place, SendWindow
from protocol.runtime.nats.connection import Connection
from protocol.subjects import ClientAddress

PROBE_PERIOD_SECONDS = 1.0
PROBE_TIMEOUT_SECONDS = 0.8
RECONNECT_PATIENCE_SECONDS = 1.0
MAX_WAITING_FOR_NATS = 1000
MAX_LATE_CANCELS = 1000
LATE_CANCEL_SECONDS = 1.0  # after a reconnect, so that gateways have subscribed again
FIRST_REPEAT_SECONDS = 0.02
NEXT_REPEAT_SECONDS = 0.05
REPEAT_FOR_SECONDS = 0.3
DEADLINE_GRACE_SECONDS = 0.5
LARGE_BYTES = 32 * 1024  # of parameters: such a command takes a place in the send window
WINDOW_BYTES = 1024 * 1024
ARRIVAL_SECONDS = 0.25  # for the proof that a large command has arrived; then its place is free in any case

log = logging.getLogger(__name__)
Known = Callable[[ClientAddress, str | None], Awaitable[bool]]
_NO_RESPONDERS = "503"
_ARRIVAL_PROBE = codec.encode(ProbeRequest(request_ids=[]))


class _Waiting:
    """A command that waits for its answer."""

    __slots__ = ("command", "deadline", "future", "group", "is_sent", "on_progress", "request_id")

    def __init__(
        self,
        group: "_Group",
        command: CommandRequest,
        request_id: str,
        deadline: float,
        future: asyncio.Future[Msg],
        on_progress: OnProgress | None,
    ) -> None:
        self.group = group
        self.command = command
        self.request_id = request_id
        self.deadline = deadline
        self.future = future
        self.on_progress = on_progress
        self.is_sent = False

    def fail(self, error: BridgeError) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def expire(self) -> None:
        self.fail(DeadlineExceeded("the application did not answer in time; the command may still run"))


class _Group:
    """The waiting commands of one principal for one client. One probe asks about all of them."""

    __slots__ = ("address", "alarm", "doubt", "prober", "token", "waiting")

    def __init__(self, address: ClientAddress, token: str | None) -> None:
        self.address = address
        self.token = token
        self.waiting: dict[str, _Waiting] = {}
        self.doubt = Doubt()
        self.alarm: Alarm | None = None
        self.prober: asyncio.Task[None] | None = None

    @property
    def subject(self) -> str:
        return subjects.command(*self.address)

    @property
    def headers(self) -> dict[str, str] | None:
        return {AUTHORIZATION_HEADER: f"Bearer {self.token}"} if self.token else None


class Caller:
    """Sends commands over a connection; probes run in `tasks`.

    `known` is asked after *no responders*: it tells whether the client exists, and raises `Unavailable` if it was lost
    a moment ago.
    """

    def __init__(self, connection: Connection, known: Known, tasks: asyncio.TaskGroup) -> None:
        self._connection = connection
        self._known = known
        self._inbox = connection.new_inbox()
        self._numbers = itertools.count()
        self._replies: dict[str, asyncio.Future[Msg]] = {}
        self._listeners = ProgressListeners(self._inbox)
        self._groups: dict[tuple[ClientAddress, str | None], _Group] = {}
        self._at_client: dict[ClientAddress, int] = {}
        self._loop = asyncio.get_running_loop()
        self._alarms = Alarms()
        self._tasks = tasks
        self._waiting_for_nats = 0
        self._window = SendWindow(WINDOW_BYTES)
        self._late_cancels: deque[tuple[str, bytes, dict[str, str] | None]] = deque(maxlen=MAX_LATE_CANCELS)
        connection.on_reconnect(self._schedule_late_cancels)

    async def start(self) -> None:
        """Subscribe for replies."""
        await self._connection.subscribe_directly(f"{self._inbox}.*", self._on_reply)

    @property
    def in_flight(self) -> int:
        """The number of commands without an answer."""
        return sum(len(group.waiting) for group in self._groups.values())

    def in_flight_at(self, address: ClientAddress) -> int:
        """Return how many of these commands are for one client."""
        return self._at_client.get(address, 0)

    async def call(
        self,
        address: ClientAddress,
        command: CommandRequest,
        token: str | None,
        on_progress: OnProgress | None = None,
    ) -> CommandResponse:
        """Send a command and return its one answer, which may be an error of the gateway or the application.

        `command.timeout_ms` must be set. `on_progress` gets the application's progress, in order and never after the
        answer. It must not wait. If this call is cancelled, the command is, too. If it ends with `ClientLost`, the
        command is cancelled unless it has an idempotency key, with which the caller can still get the outcome.

        Raises `ClientNotFound`, `ClientLost`, `Unavailable` or `DeadlineExceeded` if no answer came, `Internal` for an
        answer that cannot be read, `Conflict` if the `requestId` is in flight already, and `Overloaded` if 1,000
        commands wait for NATS.
        """
        assert command.timeout_ms is not None
        deadline = self._loop.time() + command.timeout_ms / 1000
        if not self._connection.connected:
            await self._wait_for_nats(deadline)
        waiting = self._join(address, command, token, deadline, on_progress)
        alarm = self._alarms.at(deadline + DEADLINE_GRACE_SECONDS, waiting.expire)
        try:
            response = decode_response((await self._converse(waiting)).data)
            if _is_not_found(response):
                # Wait as long as for a missing client, or the time would reveal a hidden one.
                await asyncio.sleep(FIRST_REPEAT_SECONDS)
            return response
        except asyncio.CancelledError:
            # The application would work on, because NATS does not tell it that the caller has gone.
            await self._abandon(waiting, "the caller went away")
            raise
        except (ClientLost, DeadlineExceeded) as exc:
            # With a key the command goes on after `client_lost`, because the caller can still ask for the outcome.
            if isinstance(exc, DeadlineExceeded) or command.idempotency_key is None:
                await self._abandon(waiting, exc.message)
            raise
        except Internal:
            # A stray responder answered; the gateway may have the command, too.
            await self._abandon(waiting, "the caller could not read the answer")
            raise
        finally:
            alarm.cancel()
            self._leave(waiting)

    # --- one conversation ---

    async def _wait_for_nats(self, deadline: float) -> None:
        """Wait for NATS for one second at most, and not at all if it has been away for longer than that."""
        if self._connection.away_seconds() > RECONNECT_PATIENCE_SECONDS:
            raise Unavailable("NATS is away; try again in a moment")
        if self._waiting_for_nats >= MAX_WAITING_FOR_NATS:
            raise Overloaded("too many commands wait for NATS to return; try again in a moment")
        self._waiting_for_nats += 1
        try:
            await self._connection.wait_connected(min(RECONNECT_PATIENCE_SECONDS, deadline - self._loop.time()))
        finally:
            self._waiting_for_nats -= 1

    async def _converse(self, waiting: _Waiting) -> Msg:
        """Send, and repeat after *no responders*, which proves that nothing was delivered."""
        reply = await self._send(waiting)
        if not _is_no_responders(reply):
            return reply
        # In a cluster the other servers see a new subscription some milliseconds late. So repeat once after 20 ms, and
        # for 300 ms if the client exists.
        give_up = self._loop.time() + REPEAT_FOR_SECONDS
        await asyncio.sleep(FIRST_REPEAT_SECONDS)
        while _is_no_responders(reply := await self._send(waiting)):
            # The client's gateway may just be reconnecting. If the client is known, it is worth another try.
            if not await self._is_known(waiting):
                raise ClientNotFound
            if self._loop.time() >= give_up:
                raise Unavailable("the client is known but cannot be reached just now; try again in a moment")
            await asyncio.sleep(NEXT_REPEAT_SECONDS)
        return reply

    async def _is_known(self, waiting: _Waiting) -> bool:
        """Ask whether the client exists. Raises `DeadlineExceeded` if nobody answers in time."""
        try:
            async with asyncio.timeout_at(waiting.deadline + DEADLINE_GRACE_SECONDS):
                return await self._known(waiting.group.address, waiting.group.token)
        except TimeoutError as exc:
            raise DeadlineExceeded("no registry could tell whether the client exists; nothing was executed") from exc

    async def _send(self, waiting: _Waiting) -> Msg:
        """Send once, with the time that remains, and return the reply. A large command waits for its turn before."""
        size = memoryview(waiting.command.parameters).nbytes
        if size < LARGE_BYTES:
            return await self._send_now(waiting)
        place = await self._take_place(waiting, size)
        arriving = self._tasks.create_task(
            self._release_on_arrival(waiting.group, place),
            name=f"wait for a large command at {waiting.group.address.client_id}",
        )
        # If the caller leaves, the command is on its way nevertheless, so only its arrival frees the place then.
        reply = await self._send_now(waiting)
        arriving.cancel()
        place.release()
        return reply

    async def _take_place(self, waiting: _Waiting, size: int) -> Place:
        """Wait for a place in the send window. Raises `DeadlineExceeded`."""
        turn = asyncio.Event()
        group = waiting.group
        place = self._window.ask((group.address.tenant, group.token or ""), size, turn.set)
        try:
            async with asyncio.timeout_at(waiting.deadline):
                await turn.wait()
        except TimeoutError as exc:
            place.release()
            raise DeadlineExceeded("other large commands were sent first; this one was not executed") from exc
        except asyncio.CancelledError:
            place.release()
            raise
        return place

    async def _release_on_arrival(self, group: _Group, place: Place) -> None:
        """Release the place of a large command when its gateway has read it, which its answer to a probe shows."""
        # Without an answer the place is free all the same: a gateway that hangs must not hold up the others.
        with contextlib.suppress(TimeoutError, Unavailable):
            async with asyncio.timeout(ARRIVAL_SECONDS):
                await self._exchange(group, _ARRIVAL_PROBE, self._loop.create_future())
        place.release()

    async def _send_now(self, waiting: _Waiting) -> Msg:
        if waiting.future.done():
            # Raises the error that ended the wait in between.
            waiting.future.result()
            waiting.future = self._loop.create_future()
        waiting.is_sent = True
        remaining_ms = max(1, round((waiting.deadline - self._loop.time()) * 1000))
        body = msgspec.structs.replace(
            waiting.command,
            request_id=waiting.request_id,
            timeout_ms=remaining_ms,
            sent_at=self._connection.clock.now_ms(),
            probed=waiting.command.idempotency_key is None,
        )
        if waiting.on_progress is None:
            return await self._exchange(waiting.group, codec.encode(body), waiting.future)
        with self._listeners.listening(waiting.future, waiting.on_progress) as subject:
            return await self._exchange(waiting.group, codec.encode(body), waiting.future, {PROGRESS_HEADER: subject})

    async def _exchange(
        self, group: _Group, body: bytes, future: asyncio.Future[Msg], more: dict[str, str] | None = None
    ) -> Msg:
        """Publish to the group's client, with `more` headers, and wait for `future`."""
        token = f"{next(self._numbers):x}"
        self._replies[token] = future
        headers = group.headers if more is None else {**(group.headers or {}), **more}
        try:
            reply = f"{self._inbox}.{token}"
            self._connection.publish_now(group.subject, body, reply=reply, headers=headers)
            return await future
        finally:
            del self._replies[token]

    def _on_reply(self, msg: Msg) -> None:
        token = msg.subject.rpartition(".")[2]
        future = self._replies.get(token)
        if future is None:
            # It is progress, or the reply of a wait that has ended.
            self._listeners.hear(token, msg.data)
        elif not future.done():
            future.set_result(msg)

    async def _abandon(self, waiting: _Waiting, reason: str) -> None:
        """Tell the gateway that nobody waits any more. If NATS is away, send it a second after the reconnect."""
        if not waiting.is_sent:
            return
        body = codec.encode(CancelRequest(request_id=waiting.request_id, reason=reason))
        try:
            await self._connection.publish(waiting.group.subject, body, headers=waiting.group.headers)
        except Unavailable:
            self._late_cancels.append((waiting.group.subject, body, waiting.group.headers))

    def _schedule_late_cancels(self) -> None:
        self._loop.call_later(LATE_CANCEL_SECONDS, self._send_late_cancels)

    def _send_late_cancels(self) -> None:
        while self._late_cancels:
            subject, body, headers = self._late_cancels.popleft()
            try:
                self._connection.publish_now(subject, body, headers=headers)
            except Unavailable:
                # NATS went away again. The next reconnect goes on with this one.
                self._late_cancels.appendleft((subject, body, headers))
                return

    # --- probing ---

    def _join(
        self,
        address: ClientAddress,
        command: CommandRequest,
        token: str | None,
        deadline: float,
        on_progress: OnProgress | None,
    ) -> _Waiting:
        key = (address, token)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group(address, token)
            group.alarm = self._alarms.after(PROBE_PERIOD_SECONDS, self._start_probing, group)
        request_id = command.request_id or new_request_id()
        # Two commands with one id could not be told apart by a probe or a cancel.
        if request_id in group.waiting:
            raise Conflict("a command with this requestId is already in flight; use another id")
        waiting = _Waiting(group, command, request_id, deadline, self._loop.create_future(), on_progress)
        group.waiting[request_id] = waiting
        self._at_client[address] = self._at_client.get(address, 0) + 1
        return waiting

    def _leave(self, waiting: _Waiting) -> None:
        group = waiting.group
        if waiting.future.done() and not waiting.future.cancelled():
            # Mark an unread error as seen, or the event loop logs it.
            waiting.future.exception()
        del group.waiting[waiting.request_id]
        self._at_client[group.address] -= 1
        if not self._at_client[group.address]:
            del self._at_client[group.address]
        if not group.waiting:
            del self._groups[group.address, group.token]
            for waiter in (group.alarm, group.prober):
                if waiter is not None:
                    waiter.cancel()

    def _start_probing(self, group: _Group) -> None:
        probing = self._probe_while_waiting(group)
        group.prober = self._tasks.create_task(probing, name=f"probe {group.address.client_id}")

    async def _probe_while_waiting(self, group: _Group) -> None:
        while group.waiting:
            started = self._loop.time()
            await self._probe_all(group, [each.request_id for each in group.waiting.values() if each.is_sent])
            pause = started + PROBE_PERIOD_SECONDS - self._loop.time()
            await asyncio.sleep(SECOND_LOOK_SECONDS if group.doubt.look_again_soon else max(0.0, pause))

    async def _probe_all(self, group: _Group, request_ids: list[str]) -> None:
        """Probe all these commands, in several probes if there are many."""
        # All of them are at one gateway. If one probe finds it gone, it is gone for all.
        for batch in _batches(request_ids):
            if await self._probe(group, batch):
                self._lose(group, request_ids, "its gateway cannot be reached any more")
                group.doubt.dispel()
                return

    async def _probe(self, group: _Group, request_ids: list[str]) -> bool:
        """Send one probe and apply its answer. Return whether the evidence says that the gateway is lost."""
        evidence, reply = await self._ask(group, request_ids)
        if reply is not None:
            self._apply(group, reply)
        elif has_just_reconnected(self._connection):
            # The gateway may not have subscribed again yet, so its silence proves nothing.
            group.doubt.dispel()
            return False
        return group.doubt.weigh(evidence, self._loop.time())

    async def _ask(self, group: _Group, request_ids: list[str]) -> tuple[Evidence, Msg | None]:
        future: asyncio.Future[Msg] = self._loop.create_future()
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
                reply = await self._exchange(group, codec.encode(ProbeRequest(request_ids=request_ids)), future)
        except (TimeoutError, Unavailable, PayloadTooLarge):
            return Evidence.SILENCE, None
        return (Evidence.NO_RESPONDERS, None) if _is_no_responders(reply) else (Evidence.ANSWER, reply)

    def _apply(self, group: _Group, reply: Msg) -> None:
        """Deliver the outcomes whose replies were lost, and fail the commands that the gateway does not know."""
        try:
            answer = decode_probe_response(reply.data)
        except BridgeError:
            log.warning("the answer to a probe of client %s cannot be read", group.address.client_id)
            return
        for raw in answer.outcomes:
            self._deliver(group, codec.raw_bytes(raw))
        # After a reconnect the command itself may still be on its way, so the gateway may not know it yet.
        if not has_just_reconnected(self._connection):
            self._lose(group, answer.unknown, "its gateway does not know the command any more")

    def _deliver(self, group: _Group, outcome: bytes) -> None:
        try:
            waiting = group.waiting.get(decode_response(outcome).request_id)
        except Internal:
            log.warning("an outcome from client %s's gateway cannot be read", group.address.client_id)
            return
        if waiting is not None and not waiting.future.done():
            waiting.future.set_result(Msg(_client=self._connection.client, data=outcome))

    def _lose(self, group: _Group, request_ids: Iterable[str], why: str) -> None:
        for request_id in request_ids:
            waiting = group.waiting.get(request_id)
            if waiting is not None:
                waiting.fail(ClientLost(f"the client was lost while the command was under way: {why}"))


def _is_no_responders(reply: Msg) -> bool:
    return not reply.data and reply.headers is not None and reply.headers.get("Status") == _NO_RESPONDERS


def _is_not_found(response: CommandResponse) -> bool:
    return response.error is not None and response.error.code == Code.CLIENT_NOT_FOUND.value


def _batches(request_ids: list[str]) -> Iterable[list[str]]:
    return (request_ids[start : start + MAX_PROBED] for start in range(0, len(request_ids), MAX_PROBED))
