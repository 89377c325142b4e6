"""Commands with an idempotency key: the key is reserved, the command executed, and its outcome stored.

A request is registered as waiting before anything here awaits. So even while its key is being reserved, a probe finds
it in flight, a cancel ends it, and its deadline ends it. If nobody waits any more when the key is reserved, the command
is not sent. Every refusal before the command is sent frees the key.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable
from functools import partial

import msgspec
from msgspec.structs import replace

from gateway.idempotency.recording import Recording
from gateway.idempotency.waiting import Reservation, Reservations, ReservationStage, Waiter
from gateway.sessions.core.calls import Call
from gateway.sessions.core.effects import Answer, Effect
from gateway.sessions.core.limits import SessionLimits
from gateway.sessions.live import LiveSession
from gateway.sessions.replies import Replies
from protocol.access import Principal, require
from protocol.errors import (
    BridgeError,
    Cancelled,
    ClientNotFound,
    Conflict,
    DeadlineExceeded,
    Internal,
    PermissionDenied,
    Unavailable,
)
from protocol.idempotency import IdempotencyEntry, content_of, entry_key, replayed
from protocol.messages import CommandRequest, CommandResponse, failure, timestamp
from protocol.runtime import logs
from protocol.runtime.commands.idempotency_store import IdempotencyStore, StoredEntry
from protocol.runtime.streams.bucket import NOTHING
from protocol.runtime.streams.jetstream import WrongRevision

POLL_SECONDS = 0.25
DRAIN_POLL_SECONDS = 0.02
RECORDING_SECONDS = 2.0
RESERVE_SECONDS = 2.5  # JetStream has 2 s, so a later answer means that this process was frozen
ENTRY_SECONDS = 60  # how much longer than the longest command an entry is kept

log = logging.getLogger(__name__)


class KeyedRequest(msgspec.Struct, frozen=True):
    """A request with a key, and its caller."""

    session: LiveSession
    caller: Principal
    command: CommandRequest
    call: Call
    held_up: bool = False  # it may be left over from a freeze, so it may get its key's outcome, but starts no command


class _Refused(Exception):
    """The session has refused a command whose key was reserved."""

    def __init__(self, error: BridgeError) -> None:
        super().__init__(error.message)
        self.error = error


class Idempotency:
    """Executes the commands of this gateway that have an idempotency key."""

    def __init__(
        self,
        gateway_id: str,
        replies: Replies,
        store: IdempotencyStore,
        limits: SessionLimits,
        tasks: asyncio.TaskGroup,
        max_outcome_bytes: int,
    ) -> None:
        self._gateway_id = gateway_id
        self._replies = replies
        self._limits = limits
        self._store = store
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self._reservations = Reservations()
        self._recording = Recording(store, self._reservations, tasks, max_outcome_bytes)
        self._executed = self._replayed = 0

    # --- from the sessions' subjects; nothing here waits ---

    def take(self, request: KeyedRequest) -> None:
        """Let a request wait for the command of its key, which starts if it is the first.

        Raises `Conflict`, `Overloaded` or `ClientNotFound`.
        """
        core, key = request.session.core, request.command.idempotency_key
        assert key is not None
        require(request.caller, core.view)
        if core.is_in_flight(request.caller, request.call.request_id):
            raise Conflict("a command with this requestId is already in flight; use another id")
        waiter = Waiter(core.view, request.caller, request.call)
        reservation = self._reservations.join(entry_key(request.caller, key), self._entry(request), waiter)
        # The command may have ended while its outcome is still being written: answer from memory.
        if reservation.response is not None:
            self._tell(reservation, reservation.response)
            return
        waiter.timer = self._loop.call_at(waiter.call.deadline, self._expire, request.session, waiter)
        if reservation.first is waiter:
            self._tasks.create_task(self._pursue(reservation, request), name="reserve an idempotency key")

    def require_unused(self, client_id: str, sub: str, request_id: str) -> None:
        """Raise `Conflict` if a request with a key already uses the id of a new one without."""
        if self._reservations.waiting and (client_id, sub, request_id) in self._reservations.waiting:
            raise Conflict("a command with this requestId is already in flight; use another id")

    def is_waiting(self, client_id: str, sub: str, request_id: str) -> bool:
        """Tell whether a request with a key waits for its answer."""
        return (client_id, sub, request_id) in self._reservations.waiting

    def cancel(self, session: LiveSession, caller: Principal, request_id: str, reason: str) -> bool:
        """Cancel a request, and its command if nobody else waits for it. Return whether there was one."""
        core = session.core
        if caller.tenant != core.view.tenant:
            return False
        key = (core.client_id, caller.sub, request_id)
        reservation = self._reservations.waiting.get(key)
        waiter = reservation.waiter(key) if reservation is not None else None
        if reservation is None or waiter is None:
            return False
        # Others may wait for the same command. Then only this request ends, and the command goes on.
        if reservation.hangs_on_one:
            session.perform(core.cancel(caller, reservation.entry.reservation, reason, self._loop.time()))
        else:
            self._refuse(waiter, Cancelled("the caller cancelled the command"))
        return True

    # --- from the process ---

    def counters(self) -> dict[str, int]:
        """Return the counters of `/metrics`. `outcomesNotRecorded`: outcomes that only their first callers got."""
        return {
            "keyedCommands": self._executed,
            "replayedAnswers": self._replayed,
            "outcomesNotRecorded": self._recording.not_recorded,
        }

    @contextlib.asynccontextmanager
    async def recording(self) -> AsyncIterator[None]:
        """On a regular exit wait up to 2 s until every outcome is written and no key is being reserved."""
        yield
        give_up = self._loop.time() + RECORDING_SECONDS
        while (
            len(self._reservations) or self._reservations.waiting or self._recording.unwritten
        ) and self._loop.time() < give_up:
            await asyncio.sleep(DRAIN_POLL_SECONDS)
        if self._recording.unwritten:
            log.warning("%d entries of idempotency keys could not be written", self._recording.unwritten)

    # --- one reservation ---

    async def _pursue(self, reservation: Reservation, request: KeyedRequest) -> None:
        """Reserve the key and execute the command, or give all waiters the stored outcome or the error."""
        with logs.about(request.session.core.client_id, request.call.own_id):
            try:
                ended = await self._reserve(reservation, request)
                if ended is None:
                    self._dispatch(reservation, request)
                else:
                    self._give_up(reservation, partial(_replay, ended))
            except _Refused as exc:
                # Later requests may have the permission that these lack.
                self._reservations.close(reservation)
                # Free the key before the answer, so that the caller can use it again right after.
                await self._recording.free(reservation)
                self._give_up(reservation, _refusal(exc.error))
            except BridgeError as exc:
                self._give_up(reservation, _refusal(exc))
            except Exception:
                log.exception("a command under an idempotency key failed")
                # If the application has the command already, the key must stay: freeing it would execute it twice.
                if reservation.stage is ReservationStage.RESERVING:
                    self._recording.free_soon(reservation)
                self._give_up(reservation, _refusal(Internal("the gateway failed; its log says why")))

    async def _reserve(self, reservation: Reservation, request: KeyedRequest) -> IdempotencyEntry | None:
        """Make the entry and return None, or return the existing ended entry.

        Raises `Conflict` if the key belongs to another command, `Unavailable` if the store does not answer.
        """
        expected = NOTHING
        await self._store.prepare(reservation.key)
        while reservation.waiters:
            try:
                if not request.held_up:
                    reservation.revision = await self._create(reservation, expected)
                    return None
            except WrongRevision:
                # Somebody else wrote first. The entry says who, and whether it has ended.
                pass
            stored = await self._store.read(reservation.key)
            if stored.entry is None or self._recording.is_void(stored.entry.reservation):
                # The key is free. A command from before a freeze must not start now: its caller may have given up.
                if request.held_up:
                    raise Unavailable("the gateway was frozen while this was sent; it was not executed, try again")
                expected = stored.revision
                continue
            stored.entry.require_same(reservation.entry.body, reservation.entry.client_id)
            if (ended := await self._outcome(reservation, stored)) is not None:
                return ended
            await asyncio.sleep(POLL_SECONDS)
        raise Cancelled("nobody waits for the command any more")

    async def _outcome(self, reservation: Reservation, stored: StoredEntry) -> IdempotencyEntry | None:
        """Return the ended entry of another attempt, or None if that is still running elsewhere."""
        assert stored.entry is not None
        if stored.ended is None:
            owner = stored.entry.gateway_id
            # An entry of ours that is not in memory any more has no command that could still end. Another gateway may
            # still execute its command, so wait until that gateway is gone.
            if owner == self._gateway_id or await self._store.is_gone(owner):
                stored = await self._store.lose(reservation.key, stored)
        return stored.ended

    async def _create(self, reservation: Reservation, expected: int) -> int:
        """Write a new reservation's entry. If that takes longer than 2.5 s, nothing is executed."""
        asked = self._loop.time()
        try:
            longest = self._limits.max_command_timeout_ms / 1000 + ENTRY_SECONDS
            revision = await self._store.write(reservation.key, reservation.entry, expected, at_least_seconds=longest)
        except WrongRevision:
            raise
        except Exception:
            # The entry may have been written nevertheless.
            self._recording.free_soon(reservation)
            raise
        if self._loop.time() - asked > RESERVE_SECONDS:
            # This process may have been frozen, and another gateway may have declared the entry lost meanwhile.
            self._recording.free_soon(reservation)
            raise Unavailable("the gateway was held up before the command was sent; it was not executed, try again")
        return revision

    def _dispatch(self, reservation: Reservation, request: KeyedRequest) -> None:
        """Send the command to the client if somebody still waits."""
        if not reservation.waiters:
            # All have left while the key was being reserved. Nothing was sent, so the key is free again.
            self._recording.free_soon(reservation)
            raise Cancelled("nobody waits for the command any more")
        effects = self._call(reservation, request)
        self._reservations.begin(reservation, reservation.waiters[0])
        self._executed += 1
        deadline = reservation.deadline
        for waiter in reservation.waiters:
            if waiter.call.deadline == deadline and waiter.timer is not None:
                # The session has the command's deadline, and answers all waiters.
                waiter.timer.cancel()
        request.session.perform(effects)

    def _call(self, reservation: Reservation, request: KeyedRequest) -> list[Effect]:
        """Pass the command to the session for the longest waiter that may call it, and refuse the others.

        Raises `_Refused` if none may, or if the session refuses it for another reason.
        """
        while True:
            lead = reservation.waiters[0]
            try:
                return self._call_as(lead, reservation, request)
            except BridgeError as exc:
                # The longest waiter may lack a permission that the next one has. Other refusals hold for all.
                if len(reservation.waiters) == 1 or not isinstance(exc, ClientNotFound | PermissionDenied):
                    raise _Refused(exc) from exc
                self._refuse(lead, exc)

    def _call_as(self, lead: Waiter, reservation: Reservation, request: KeyedRequest) -> list[Effect]:
        now = self._loop.time()
        call = replace(lead.call, started=now, deadline=reservation.deadline)
        core, nonce = request.session.core, reservation.entry.reservation
        return core.call(lead.caller, request.command, call, now, nonce)

    def ended(self, effect: Answer) -> None:
        """Send the outcome to all waiters, and store it."""
        reservation = self._reservations.end(effect.reservation, effect.response)
        self._tell(reservation, effect.response, confirmed=effect.confirmed)
        self._recording.remember(reservation, effect.response)

    # --- answers ---

    def _tell(self, reservation: Reservation, response: CommandResponse, *, confirmed: bool = False) -> None:
        for waiter in self._reservations.dismiss(reservation):
            own = replace(response, request_id=waiter.call.request_id)
            if waiter is reservation.first:
                self._answer(waiter, own, confirmed=confirmed)
            else:
                self._answer(waiter, replayed(response, waiter.call.request_id))

    def _give_up(self, reservation: Reservation, answer: Callable[[Waiter], CommandResponse]) -> None:
        """Answer all waiters of a failed reservation with its error, unless the command is at the client already."""
        if reservation.stage is ReservationStage.RESERVING:
            for waiter in self._reservations.drop(reservation):
                self._answer(waiter, answer(waiter))

    def _expire(self, session: LiveSession, waiter: Waiter) -> None:
        """End a request's wait, and its command if nobody else waits for it."""
        reservation = self._reservations.waiting.get(waiter.key)
        if reservation is not None and reservation.hangs_on_one:
            effects = session.core.give_up(waiter.caller, reservation.entry.reservation, self._loop.time())
            if effects:
                session.perform(effects)
                return
        sent = reservation is not None and reservation.stage is not ReservationStage.RESERVING
        left = "may still run" if sent else "was not executed"
        self._refuse(waiter, DeadlineExceeded(f"there was no answer in time; the command {left}"))

    def _refuse(self, waiter: Waiter, error: BridgeError) -> None:
        self._reservations.leave(waiter)
        self._answer(waiter, _refusal(error)(waiter))

    def _answer(self, waiter: Waiter, response: CommandResponse, *, confirmed: bool = False) -> None:
        if waiter.timer is not None:
            waiter.timer.cancel()
        self._replayed += response.replayed
        self._replies.answer(waiter.client, Answer(waiter.call, response, confirmed=confirmed))

    def _entry(self, request: KeyedRequest) -> IdempotencyEntry:
        core = request.session.core
        offer = core.contract.capabilities.find(request.command.target)
        return IdempotencyEntry(
            body=content_of(request.command),
            reservation=f"reservation-{secrets.token_hex(12)}",
            gateway_id=self._gateway_id,
            client_id=core.client_id,
            user=core.view.user,
            app=core.view.app,
            permissions=sorted(offer.permissions) if offer is not None else [],
            request_id=request.call.own_id,
            at=timestamp(time.time()),
        ).padded()


def _replay(ended: IdempotencyEntry, waiter: Waiter) -> CommandResponse:
    """Return an ended entry's answer for one of the waiters."""
    try:
        ended.require_visible(waiter.caller)
        return ended.answer(waiter.call.request_id)
    except BridgeError as exc:
        return failure(waiter.call.request_id, exc, waiter.client_id)


def _refusal(error: BridgeError) -> Callable[[Waiter], CommandResponse]:
    return lambda waiter: failure(waiter.call.request_id, error, waiter.client_id)
