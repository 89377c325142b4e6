"""The protocol state of one client: sans-I/O, so that "exactly one terminal answer" can be proven without a socket.

Methods take what happened and the time, change the state, and return effects for the shell to perform in order. Nothing
here awaits, logs or reads a clock; `now` is a monotonic time in seconds. What a caller did wrong is raised as a
`BridgeError` and changes nothing.

    ACTIVE ──drain──▶ DRAINING ──end──▶ ENDED
       └───────────────end────────────────▲
"""

import enum
from typing import Any, NamedTuple

import msgspec

from gateway.contracts import NO_CONTRACT, Contract
from gateway.pace import Pace
from gateway.progress import Progress, Remind, Tell
from protocol.access import ClientView, Principal, require
from protocol.audit import Asked, asked_by
from protocol.bad_frames import BadFrames
from protocol.errors import (
    BridgeError,
    Cancelled,
    ClientLost,
    ClientNotFound,
    CloseCode,
    CommandFailed,
    Conflict,
    DeadlineExceeded,
    InvalidFrame,
    Overloaded,
    Unavailable,
)
from protocol.frames import (
    AckFrame,
    AgentIdentity,
    AppInfo,
    CancelFrame,
    CommandFrame,
    ErrorFrame,
    ProgressFrame,
    ResponseFrame,
    ServerFrame,
    fault_of,
)
from protocol.messages import CommandRequest, CommandResponse, failure
from protocol.records import MAX_METADATA_BYTES, ClientRecord
from protocol.reports import EndReason

ABANDONED = "the caller is gone: it promised to ask after the command, and no longer does"
UNANSWERED_SECONDS = 2.0
UNANSWERED_PONG_SECONDS = 5.0
ABANDONED_SECONDS = 10.0


class State(enum.Enum):
    """Where a session is in its life."""

    ACTIVE = "active"
    DRAINING = "draining"
    ENDED = "ended"


class Limits(NamedTuple):
    """The settings that a session obeys."""

    command_timeout_ms: int
    max_command_timeout_ms: int
    max_in_flight: int
    ping_interval_seconds: float
    ping_timeout_seconds: float
    max_record_bytes: int
    audits_parameters: bool = False


class Send(NamedTuple):
    """Send a frame to the client."""

    frame: ServerFrame


class Answer(NamedTuple):
    """Give a command its one terminal answer."""

    command: "InFlight"
    response: CommandResponse


class Arm(NamedTuple):
    """Call `deadline_passed` at this time, unless the command is answered before."""

    wire_id: str
    at: float


class Changed(NamedTuple):
    """The record is not what the registry knows any more."""


class Ping(NamedTuple):
    """Send a WebSocket ping, and call `heard` when its pong comes."""


class Close(NamedTuple):
    """Close the socket with a sentence for people; `end` is what programs are told."""

    code: int
    reason: str
    end: EndReason


Effect = Send | Answer | Arm | Changed | Ping | Close | Tell | Remind


class InFlight(msgspec.Struct):
    """A command that the client has and has not answered.

    `heard` is when its caller last asked after it; None where the caller does not promise to.
    """

    wire_id: str
    request_id: str
    sub: str
    reply: str
    started: float
    asked: Asked
    progress: Progress | None = None
    claim: str = ""
    heard: float | None = None

    @property
    def key(self) -> tuple[str, str]:
        """By whom and under which id the command is known outside: for one that several wait for, its claim."""
        return (self.sub, self.claim or self.request_id)

    @property
    def own_key(self) -> tuple[str, str | None]:
        """By whom and under which id of the caller's own the command came, if under any other than it has here."""
        return (self.sub, self.asked.request_id)


class Session:
    """One client. Make it when the client is let in, feed it everything that happens, end it once."""

    __slots__ = (
        "_bad_frames",
        "_by_caller",
        "_heard",
        "_in_flight",
        "_limits",
        "_next_wire_id",
        "_pace",
        "_pinged",
        "app",
        "client_id",
        "contract",
        "late_progress",
        "late_responses",
        "metadata",
        "principal",
        "revision",
        "state",
        "view",
    )

    def __init__(
        self, client_id: str, principal: Principal, limits: Limits, now: float, pace: Pace | None = None
    ) -> None:
        self.client_id = client_id
        self.principal = principal
        self.state = State.ACTIVE
        self.app = AppInfo()
        self.view = self._view()
        self.metadata: dict[str, Any] = {}
        self.contract: Contract = NO_CONTRACT
        self.revision = 1
        self.late_responses = 0
        self.late_progress = 0
        self._limits = limits
        self._pace = pace or Pace()
        self._in_flight: dict[str, InFlight] = {}
        self._by_caller: dict[tuple[str, str], InFlight] = {}
        self._bad_frames: BadFrames | None = None
        self._next_wire_id = 0
        self._heard = now
        self._pinged: float | None = None

    @property
    def commands_in_flight(self) -> int:
        """How many commands the client has not answered."""
        return len(self._in_flight)

    # --- from agents ---

    def call(
        self,
        caller: Principal,
        command: CommandRequest,
        request_id: str,
        reply: str,
        now: float,
        progress_to: str | None = None,
        claim: str = "",
    ) -> list[Effect]:
        """Take a command, in the order of checks that the protocol fixes. Progress goes to `progress_to`, if anywhere.

        A command under an idempotency key is known by its `claim`, for callers come and go while it is under way.

        Raises `ClientNotFound`, `Unavailable`, `UnknownCapability`, `PermissionDenied`, `RateLimited`,
        `InvalidParameters`, `Overloaded` or `Conflict`; then nothing was sent to the client.
        """
        if self.state is State.ENDED:
            raise ClientNotFound
        require(caller, self.view)
        if self.state is State.DRAINING:
            raise Unavailable("the gateway of this client is shutting down; try again in a moment")
        offer = self.contract.offer(command.target, command.action)
        if offer.permissions:
            require(caller, self.view, offer)
        if offer.rate is not None or self._pace.per_agent is not None:
            self._pace.keep(caller, self.client_id, offer, now)
        self.contract.check(offer, command.action, command.parameters)
        key = (caller.sub, claim or request_id)
        if key in self._by_caller or (not claim and self._has_own_id(caller.sub, command.caller_request_id)):
            raise Conflict("a command with this requestId is already in flight; use another id")
        self._require_room()  # last: a full client must not say "certainly not executed" of a command it runs
        effects = self._dispatch(caller, command, request_id, reply, now, claim)
        if progress_to is not None:
            own_id = command.caller_request_id or request_id
            self._by_caller[key].progress = Progress(progress_to, self.client_id, own_id)
        return effects

    def cancel(self, caller: Principal, request_id: str, reason: str, now: float) -> list[Effect]:
        """Withdraw a command; no effects where it is not in flight. Raises `ClientNotFound` like `call`.

        A command in flight is its caller's, whatever the client has come to call itself meanwhile.
        """
        command = self._own(caller, request_id)
        if command is None:
            require(caller, self.view)
            return []
        return self._withdraw(command, Cancelled("the caller cancelled the command"), reason, now)

    def give_up(self, caller: Principal, request_id: str, now: float) -> list[Effect]:
        """Answer `timeout` for a command before its own deadline; no effects where it is not in flight."""
        command = self._by_caller.get((caller.sub, request_id))
        return [] if command is None else self.deadline_passed(command.wire_id, now)

    def is_in_flight(self, caller: Principal, request_id: str) -> bool:
        """Tell whether a command of this caller's still waits for the client."""
        return self._own(caller, request_id) is not None

    def is_asked_after(self, caller: Principal, request_id: str, now: float) -> bool:
        """Tell the same to a caller who asks, and note that it does."""
        command = self._own(caller, request_id)
        if command is not None and command.heard is not None:
            command.heard = now
        return command is not None

    def abandon(self, now: float, reachable_since: float) -> list[Effect]:
        """Withdraw what nobody has asked after for ten seconds, of callers who promised to ask every second.

        They have died, or their `cancel` was lost. Counts from `reachable_since`: before, no caller could be heard.
        """
        return [
            effect
            for command in list(self._in_flight.values())
            if command.heard is not None and now - max(command.heard, reachable_since) > ABANDONED_SECONDS
            for effect in self._withdraw(command, Cancelled(ABANDONED), "the caller is gone", now)
        ]

    def deadline_passed(self, wire_id: str, now: float) -> list[Effect]:
        """Answer `timeout` for a command that is still in flight."""
        command = self._in_flight.get(wire_id)
        if command is None:
            return []
        error = DeadlineExceeded("the application did not answer in time; the command may still run")
        return self._withdraw(command, error, "timeout", now)

    # --- from the client ---

    def response(self, frame: ResponseFrame, now: float) -> list[Effect]:
        """Pass on the client's answer; a late or second one is counted and dropped."""
        self.heard(now)
        command = self._in_flight.get(frame.request_id)
        if command is None:
            self.late_responses += 1
            return []
        duration_ms = _milliseconds(command, now)
        if frame.status == "success":
            response = CommandResponse(
                request_id=command.request_id,
                status="success",
                result=frame.result,
                client_id=self.client_id,
                duration_ms=duration_ms,
            )
        else:
            response = failure(command.request_id, _command_failed(frame), self.client_id, duration_ms)
        return self._settle(command, response)

    def progress(self, frame: ProgressFrame, now: float) -> list[Effect]:
        """Pass on how far a command has come, where its caller asked; a late word is counted and dropped."""
        command = self._in_flight.get(frame.request_id)
        if command is None:
            self.late_progress += 1
            return []
        return [] if command.progress is None else [*command.progress.report(frame, now)]

    def register(
        self, contract: Contract, app: AppInfo | None, metadata: dict[str, Any] | None, ident: str | None
    ) -> list[Effect]:
        """Replace what the client offers, as one. Raises `InvalidFrame` for a record beyond its bounds."""
        new_metadata = self.metadata if metadata is None else _bounded_metadata(metadata)
        if len(memoryview(contract.capabilities.raw)) + MAX_METADATA_BYTES > self._limits.max_record_bytes:
            raise InvalidFrame("`capabilities`: the list is too large to be kept; shorten descriptions or schemas")
        self.contract = contract
        self.app = app if app is not None else self.app
        self.view = self._view()
        return self._describe(new_metadata, ident)

    def describe(self, metadata: dict[str, Any], ident: str | None) -> list[Effect]:
        """Replace the client's metadata. Raises `InvalidFrame` where it is too large."""
        return self._describe(_bounded_metadata(metadata), ident)

    def refresh(self, principal: Principal, ident: str | None) -> list[Effect]:
        """Go on under a fresh token, which the shell has found to be the same identity's."""
        self.principal = principal
        return _acknowledge(ident)

    def refuse_frame(self, error: BridgeError, now: float, ident: str | None = None) -> list[Effect]:
        """Tell the client what was wrong with a frame; close where it sends hardly anything else.

        A frame that may be sent again (NATS is away, too many events wait) is no fault of the client's.
        """
        told = Send(ErrorFrame(error.code.value, error.message, ident, error.details))
        if error.meaning.retryable:
            return [told]
        self._bad_frames = self._bad_frames or BadFrames()
        if self._bad_frames.one_more(now):
            return [Close(CloseCode.POLICY, "too many bad frames", EndReason.BAD_FRAMES)]
        return [told]

    def heard(self, now: float) -> None:
        """Note a sign of life: a frame or a pong."""
        self._heard = now
        self._pinged = None

    # --- from the clock and the process ---

    def progress_due(self, wire_id: str, now: float) -> list[Effect]:
        """Pass on the progress that has waited for its turn, unless the command has ended."""
        command = self._in_flight.get(wire_id)
        if command is None or command.progress is None:
            return []
        return [*command.progress.due(now)]

    def tick(self, now: float) -> list[Effect]:
        """Ping a silent client, sooner while a command waits for it; close where no pong comes."""
        if self._pinged is not None:
            patience = UNANSWERED_PONG_SECONDS if self._in_flight else self._limits.ping_timeout_seconds
            if now - self._pinged < patience:
                return []
            return [Close(CloseCode.INTERNAL, "no pong", EndReason.NO_PONG)]
        silent = now - self._heard
        needed = silent >= UNANSWERED_SECONDS and self._has_unanswered(now)
        if not needed and silent < self._limits.ping_interval_seconds:
            return []
        self._pinged = now
        return [Ping()]

    def drain(self) -> None:
        """Take no more commands; those in flight go on."""
        if self.state is State.ACTIVE:
            self.state = State.DRAINING

    def end(self, now: float) -> list[Effect]:
        """End the session: every command that waits is answered `client_lost`, whatever comes later is refused."""
        self.state = State.ENDED
        lost = ClientLost("the client disconnected while the command was under way; it may have run")
        return [
            effect
            for command in list(self._in_flight.values())
            for effect in self._settle(
                command, failure(command.request_id, lost, self.client_id, _milliseconds(command, now))
            )
        ]

    def record(self, gateway_id: str, connected_at: str) -> ClientRecord:
        """Return the client as the registry keeps it."""
        return ClientRecord(
            client_id=self.client_id,
            tenant=self.principal.tenant,
            gateway_id=gateway_id,
            principal=self.principal.sub,
            app={"name": self.app.name, "version": self.app.version} if self.app.name else {},
            metadata=self.metadata,
            capabilities=self.contract.capabilities.raw,
            revision=self.revision,
            connected_at=connected_at,
        )

    # --- inside ---

    def _view(self) -> ClientView:
        """Return what of this client decides who may see it."""
        return ClientView(self.principal.tenant, self.client_id, self.principal.sub, self.app.name)

    def _own(self, caller: Principal, request_id: str) -> InFlight | None:
        """Return a command of this caller's; of another tenant's, who may have the same `sub`, there is none."""
        return self._by_caller.get((caller.sub, request_id)) if caller.tenant == self.principal.tenant else None

    def _has_own_id(self, sub: str, own_id: str | None) -> bool:
        """Tell whether a command is in flight that its caller knows by this id, under whichever it has come."""
        return own_id is not None and (
            (sub, own_id) in self._by_caller
            or any(each.own_key == (sub, own_id) for each in self._in_flight.values() if not each.claim)
        )

    def _require_room(self) -> None:
        if len(self._in_flight) >= self._limits.max_in_flight:
            raise Overloaded(f"the client has {len(self._in_flight)} commands in flight; try again in a moment")

    def _dispatch(
        self, caller: Principal, command: CommandRequest, request_id: str, reply: str, now: float, claim: str
    ) -> list[Effect]:
        self._next_wire_id += 1
        wire_id = f"{self.client_id[:8]}-{self._next_wire_id:x}"
        timeout_ms = min(command.timeout_ms or self._limits.command_timeout_ms, self._limits.max_command_timeout_ms)
        asked = asked_by(caller, command, with_parameters=self._limits.audits_parameters)
        heard = now if command.probed else None
        in_flight = InFlight(wire_id, request_id, caller.sub, reply, now, asked, claim=claim, heard=heard)
        self._in_flight[wire_id] = in_flight
        self._by_caller[in_flight.key] = in_flight
        frame = CommandFrame(
            wire_id, command.target, command.action, command.parameters, timeout_ms, AgentIdentity(caller.sub)
        )
        return [Send(frame), Arm(wire_id, now + timeout_ms / 1000)]

    def _settle(self, command: InFlight, response: CommandResponse) -> list[Effect]:
        del self._in_flight[command.wire_id]
        del self._by_caller[command.key]
        if command.progress is None:
            return [Answer(command, response)]
        return [*command.progress.last(), Answer(command, response)]

    def _withdraw(self, command: InFlight, error: BridgeError, reason: str, now: float) -> list[Effect]:
        response = failure(command.request_id, error, self.client_id, _milliseconds(command, now))
        return [Send(CancelFrame(command.wire_id, reason)), *self._settle(command, response)]

    def _describe(self, metadata: dict[str, Any], ident: str | None) -> list[Effect]:
        self.metadata = metadata
        self.revision += 1
        return [Changed(), *_acknowledge(ident)]

    def _has_unanswered(self, now: float) -> bool:
        oldest = next(iter(self._in_flight.values()), None)
        return oldest is not None and now - oldest.started >= UNANSWERED_SECONDS


def _acknowledge(ident: str | None) -> list[Effect]:
    return [] if ident is None else [Send(AckFrame(ident))]


def _bounded_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    if len(msgspec.json.encode(metadata)) > MAX_METADATA_BYTES:
        raise InvalidFrame(f"`metadata`: at most {MAX_METADATA_BYTES} bytes are kept")
    return metadata


def _command_failed(frame: ResponseFrame) -> CommandFailed:
    fault = fault_of(frame)
    details = {"code": fault.code, "details": fault.details}
    return CommandFailed(fault.message, details={name: value for name, value in details.items() if value is not None})


def _milliseconds(command: InFlight, now: float) -> int:
    return max(0, round((now - command.started) * 1000))
