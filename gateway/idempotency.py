"""Commands under an idempotency key: claimed in the bucket, then executed, then remembered with their outcome.

A request is known as waiting before anything here awaits, so a probe finds it in flight, a cancel withdraws it, and its
deadline ends it while its key is still being claimed. A command that nobody waits for any more by then is not sent.
Whatever refuses a command before it is sent to the client frees its key.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from functools import partial

import msgspec
from msgspec.structs import replace

from gateway.claims import Claim, Claims, Stage, Waiter
from gateway.recording import Recording
from gateway.session import Answer, Effect, InFlight, Limits
from gateway.sessions import LiveSession, Sessions
from protocol.access import Principal, require
from protocol.audit import asked_by
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
from protocol.idempotency import Entry, content_of, entry_key, replayed
from protocol.messages import CommandRequest, CommandResponse, failure, timestamp
from protocol.runtime import logs
from protocol.runtime.bucket import NOTHING
from protocol.runtime.entries import Entries, Stored
from protocol.runtime.jetstream import WrongRevision

POLL_SECONDS = 0.25
DRAIN_POLL_SECONDS = 0.02
CLAIM_SECONDS = 2.5  # JetStream is given two; what comes later was held up by a freeze of this process
ENTRY_SECONDS = 60  # by which an entry outlives the longest command

log = logging.getLogger(__name__)


class Request(msgspec.Struct, frozen=True):
    """What was asked under a key, and by whom."""

    session: LiveSession
    caller: Principal
    command: CommandRequest
    request_id: str
    reply: str
    progress_to: str | None

    @property
    def own_id(self) -> str:
        """The id by which the caller knows the request."""
        return self.command.caller_request_id or self.request_id


class _Refused(Exception):
    """The session has refused a command whose key was claimed."""

    def __init__(self, error: BridgeError) -> None:
        super().__init__(error.message)
        self.error = error


class Idempotency:
    """Takes the commands of this gateway that have a key."""

    def __init__(
        self, sessions: Sessions, entries: Entries, limits: Limits, tasks: asyncio.TaskGroup, max_outcome_bytes: int
    ) -> None:
        self._sessions = sessions
        self._limits = limits
        self._entries = entries
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self._claims = Claims()
        self._recording = Recording(entries, self._claims, tasks, max_outcome_bytes)
        self._executed = self._replayed = 0
        sessions.on_claim_ended = self._ended

    # --- from the sessions' subjects; nothing here waits ---

    def take(self, request: Request) -> None:
        """Let a request wait for its command. Raises `Conflict`, `Overloaded` or `ClientNotFound`."""
        core, key = request.session.core, request.command.idempotency_key
        assert key is not None
        require(request.caller, core.view)
        if core.is_in_flight(request.caller, request.request_id):
            raise Conflict("a command with this requestId is already in flight; use another id")
        waiter = self._waiter(request)
        claim = self._claims.join(entry_key(request.caller, key), self._entry(request), waiter)
        if claim.response is not None:
            self._tell(claim, claim.response)
            return
        waiter.timer = self._loop.call_at(waiter.deadline, self._expire, waiter)
        if claim.first is waiter:
            self._tasks.create_task(self._pursue(claim, request), name="claim an idempotency key")

    def require_unused(self, client_id: str, sub: str, request_id: str) -> None:
        """Raise `Conflict` where a request with a key waits under the id of one without."""
        if self._claims.waiting and (client_id, sub, request_id) in self._claims.waiting:
            raise Conflict("a command with this requestId is already in flight; use another id")

    def is_waiting(self, client_id: str, sub: str, request_id: str) -> bool:
        """Tell whether a request with a key waits for its answer."""
        return (client_id, sub, request_id) in self._claims.waiting

    def cancel(self, session: LiveSession, caller: Principal, request_id: str, reason: str) -> bool:
        """Withdraw a request, and its command where nobody else waits for that; return whether there was one."""
        core = session.core
        if caller.tenant != core.view.tenant:
            return False
        key = (core.client_id, caller.sub, request_id)
        claim = self._claims.waiting.get(key)
        waiter = claim.waiter(key) if claim is not None else None
        if claim is None or waiter is None:
            return False
        if claim.hangs_on_one:
            session.perform(core.cancel(caller, claim.entry.claim, reason, self._loop.time()))
        else:
            self._refuse(waiter, Cancelled("the caller cancelled the command"))
        return True

    # --- from the process ---

    def counters(self) -> dict[str, int]:
        """Return what is counted since the start: `outcomesNotRecorded` are known to nobody but their first callers."""
        return {
            "keyedCommands": self._executed,
            "replayedAnswers": self._replayed,
            "outcomesNotRecorded": self._recording.not_recorded,
        }

    async def wait_done(self, timeout_seconds: float) -> None:
        """Wait until every outcome is written and every key is claimed or free, for `timeout_seconds` at most."""
        give_up = self._loop.time() + timeout_seconds
        while (len(self._claims) or self._claims.waiting or self._recording.unwritten) and self._loop.time() < give_up:
            await asyncio.sleep(DRAIN_POLL_SECONDS)
        if self._recording.unwritten:
            log.warning("%d entries of idempotency keys could not be written", self._recording.unwritten)

    # --- one claim ---

    async def _pursue(self, claim: Claim, request: Request) -> None:
        """Find out whether the command may be executed; execute it, or give all that wait what there is instead."""
        with logs.about(request.session.core.client_id, request.own_id):
            try:
                ended = await self._claim(claim, request)
                if ended is None:
                    self._dispatch(claim, request)
                else:
                    self._give_up(claim, partial(_replay, ended))
            except _Refused as exc:
                self._claims.close(claim)  # who asks from now on may have what these lacked
                await self._recording.free(claim)  # before the answer, so that the key can be used again right after
                self._give_up(claim, _refusal(exc.error))
            except BridgeError as exc:
                self._give_up(claim, _refusal(exc))
            except Exception:
                log.exception("a command under an idempotency key failed")
                if claim.stage is Stage.CLAIMING:
                    self._recording.free_soon(claim)
                self._give_up(claim, _refusal(Internal("the gateway failed; its log says why")))

    async def _claim(self, claim: Claim, request: Request) -> Entry | None:
        """Make the entry and return None, or return the ended one that is there.

        Raises `Conflict` where it is another command's, `Unavailable` where that cannot be found out.
        """
        expected = NOTHING
        while claim.waiters:
            try:
                claim.revision = await self._create(claim, expected)
                return None
            except WrongRevision:
                stored = await self._entries.read(claim.key)
            if stored.entry is None or self._recording.is_void(stored.entry.claim):
                expected = stored.revision
                continue
            stored.entry.require_same(claim.entry.body, claim.entry.client_id)
            if (ended := await self._outcome(claim, stored)) is not None:
                return ended
            await asyncio.sleep(POLL_SECONDS)
        raise Cancelled("nobody waits for the command any more")

    async def _outcome(self, claim: Claim, stored: Stored) -> Entry | None:
        """Return the entry that another attempt has left, ended; None while that is under way elsewhere."""
        assert stored.entry is not None
        if stored.ended is None:
            owner = stored.entry.gateway_id
            if owner == self._sessions.gateway_id or await self._entries.is_gone(owner):
                stored = await self._entries.lose(claim.key, stored)
        return stored.ended

    async def _create(self, claim: Claim, expected: int) -> int:
        """Write the entry of a new claim. What was held up for longer than JetStream may take is not executed."""
        asked = self._loop.time()
        try:
            longest = self._limits.max_command_timeout_ms / 1000 + ENTRY_SECONDS
            revision = await self._entries.write(claim.key, claim.entry, expected, at_least_seconds=longest)
        except WrongRevision:
            raise
        except Exception:
            self._recording.free_soon(claim)  # it may have been written nevertheless
            raise
        if self._loop.time() - asked > CLAIM_SECONDS:
            self._recording.free_soon(claim)
            raise Unavailable("the gateway was held up before the command was sent; it was not executed, try again")
        return revision

    def _dispatch(self, claim: Claim, request: Request) -> None:
        """Send the command to the client, unless nobody waits any more."""
        if not claim.waiters:
            self._recording.free_soon(claim)
            raise Cancelled("nobody waits for the command any more")
        effects = self._call(claim, request)
        self._claims.begin(claim, claim.waiters[0])
        self._executed += 1
        deadline = claim.deadline
        for waiter in claim.waiters:
            if waiter.deadline == deadline and waiter.timer is not None:
                waiter.timer.cancel()  # the session keeps the command's deadline, and tells all
        request.session.perform(effects)

    def _call(self, claim: Claim, request: Request) -> list[Effect]:
        """Have the session take the command in the name of whoever waits longest; refuse those who may not call it.

        Raises `_Refused` where nobody may, or for a reason that is not a token's.
        """
        while True:
            lead = claim.waiters[0]
            try:
                return self._call_as(lead, claim, request)
            except BridgeError as exc:
                if len(claim.waiters) == 1 or not isinstance(exc, ClientNotFound | PermissionDenied):
                    raise _Refused(exc) from exc
                self._refuse(lead, exc)

    def _call_as(self, lead: Waiter, claim: Claim, request: Request) -> list[Effect]:
        now = self._loop.time()
        command = replace(request.command, timeout_ms=max(1, round((claim.deadline - now) * 1000)))
        core, nonce = request.session.core, claim.entry.claim
        return core.call(lead.caller, command, lead.own_id, lead.reply, now, lead.progress_to, nonce)

    def _ended(self, effect: Answer) -> None:
        """Give the outcome to all who wait, and remember it."""
        claim = self._claims.end(effect.command.claim, effect.response)
        self._tell(claim, effect.response)
        self._recording.remember(claim, effect.response)

    # --- answers ---

    def _tell(self, claim: Claim, response: CommandResponse) -> None:
        for waiter in self._claims.dismiss(claim):
            own = replace(response, request_id=waiter.request_id)
            self._answer(waiter, own if waiter is claim.first else replayed(response, waiter.request_id))

    def _give_up(self, claim: Claim, answer: Callable[[Waiter], CommandResponse]) -> None:
        """Answer all who wait for a claim that came to nothing, unless its command is with the client already."""
        if claim.stage is Stage.CLAIMING:
            for waiter in self._claims.drop(claim):
                self._answer(waiter, answer(waiter))

    def _expire(self, waiter: Waiter) -> None:
        """End a request's wait, and its command where nobody else waits for that."""
        claim = self._claims.waiting.get(waiter.key)
        session = self._sessions.find(waiter.client.tenant, waiter.client_id)
        if claim is not None and claim.hangs_on_one and session is not None:
            session.perform(session.core.give_up(waiter.caller, claim.entry.claim, self._loop.time()))
            return
        sent = claim is not None and claim.stage is not Stage.CLAIMING
        left = "may still run" if sent else "was not executed"
        self._refuse(waiter, DeadlineExceeded(f"there was no answer in time; the command {left}"))

    def _refuse(self, waiter: Waiter, error: BridgeError) -> None:
        self._claims.leave(waiter)
        self._answer(waiter, _refusal(error)(waiter))

    def _answer(self, waiter: Waiter, response: CommandResponse) -> None:
        if waiter.timer is not None:
            waiter.timer.cancel()
        self._replayed += response.replayed
        command = InFlight("", waiter.request_id, waiter.caller.sub, waiter.reply, waiter.started, waiter.asked)
        self._sessions.answer(waiter.client, Answer(command, response))

    def _waiter(self, request: Request) -> Waiter:
        now, limits = self._loop.time(), self._limits
        timeout_ms = min(request.command.timeout_ms or limits.command_timeout_ms, limits.max_command_timeout_ms)
        asked = asked_by(request.caller, request.command, with_parameters=limits.audits_parameters)
        client, deadline = request.session.core.view, now + timeout_ms / 1000
        progress_to = request.progress_to
        return Waiter(client, request.caller, request.request_id, request.reply, now, deadline, asked, progress_to)

    def _entry(self, request: Request) -> Entry:
        core = request.session.core
        offer = core.contract.capabilities.find(request.command.target)
        return Entry(
            body=content_of(request.command),
            claim=f"claim-{secrets.token_hex(12)}",
            gateway_id=self._sessions.gateway_id,
            client_id=core.client_id,
            user=core.view.user,
            app=core.view.app,
            permissions=sorted(offer.permissions) if offer is not None else [],
            request_id=request.own_id,
            at=timestamp(time.time()),
        )


def _replay(ended: Entry, waiter: Waiter) -> CommandResponse:
    """Return what an ended entry is to one of those who wait."""
    try:
        ended.require_visible(waiter.caller)
        return ended.answer(waiter.request_id)
    except BridgeError as exc:
        return failure(waiter.request_id, exc, waiter.client_id)


def _refusal(error: BridgeError) -> Callable[[Waiter], CommandResponse]:
    return lambda waiter: failure(waiter.request_id, error, waiter.client_id)
