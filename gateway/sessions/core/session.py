"""The protocol state of one client: sans-I/O, so that "exactly one terminal answer" can be proven without a socket.

Methods take an event and the time, change the state, and return effects for the shell to perform in order. Nothing here
awaits, logs or reads a clock; `now` is a monotonic time in seconds. A caller's mistake is raised as a `BridgeError` and
changes nothing.

    ACTIVE ──drain──▶ DRAINING ──end──▶ ENDED
     │  ▲ └────────────end────────────────▲
 detach │                                 │
     ▼ attach                             │
    DETACHED ──────────end────────────────┘
"""

import enum
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from gateway.capabilities.contracts import NO_CONTRACT, Contract
from gateway.limits.rate_limits import RateLimits
from gateway.sessions.core.calls import Call
from gateway.sessions.core.effects import Answer, Arm, Changed, Close, Effect, Ping, Send
from gateway.sessions.core.in_flight import FRAME_BYTES, CommandsInFlight, InFlight, KeepFrame
from gateway.sessions.core.limits import SessionLimits
from gateway.sessions.core.presence import Presence, StoppedAgents
from gateway.sessions.core.refusals import Refusals
from gateway.sessions.core.snapshots import MovingCommand, SessionSnapshot
from protocol import codec
from protocol.access import ClientView, Principal, require
from protocol.errors import (
    BridgeError,
    Cancelled,
    ClientLost,
    ClientNotFound,
    CloseCode,
    Code,
    CommandFailed,
    DeadlineExceeded,
    InvalidFrame,
    Overloaded,
    Unavailable,
)
from protocol.frames import (
    AckFrame,
    AgentIdentity,
    AllowFrame,
    AppInfo,
    CancelFrame,
    CommandFrame,
    ErrorFrame,
    ProgressFrame,
    ResponseFrame,
    StopFrame,
    UnknownFrame,
    fault_of,
)
from protocol.messages import CommandRequest, CommandResponse, failure
from protocol.records import MAX_METADATA_BYTES, CapabilityList, ClientRecord, tells_visible
from protocol.reports import EndReason, is_lost
from protocol.runtime.websocket.bad_frames import BadFrames
from protocol.runtime.websocket.keepalive import Keepalive, KeepaliveStep

ABANDONED = "the caller is gone: it promised to probe the command, and no longer does"
INVALID_RESPONSE = "invalid_response"  # `details.code` of a command whose answer cannot be read
MESSAGE_TOO_LARGE = "message_too_large"  # `details.code` of a command that was lost with an answer above the limit
UNANSWERED_SECONDS = 2.0
UNANSWERED_PONG_SECONDS = 5.0
ABANDONED_SECONDS = 8.0
NOT_KEPT = "the client lost its connection before the command reached it, and there was no room to keep the command"
MOVED_WITH_KEY = "the client moved to another gateway while the command was under way; it may have run"


class SessionState(enum.Enum):
    """The states of a session."""

    ACTIVE = "active"
    DRAINING = "draining"
    DETACHED = "detached"  # the client is away, and may come back
    ENDED = "ended"


class Session:
    """One client's session. Make it when the client is authenticated, pass it every event, and end it once."""

    __slots__ = (
        "_bad_frames",
        "_in_flight",
        "_is_anew",
        "_keepalive",
        "_limits",
        "_presence",
        "_rate_limits",
        "_refusals",
        "_require_unread_room",
        "_stopped",
        "app",
        "client_id",
        "contract",
        "late_progress",
        "late_responses",
        "lost",
        "metadata",
        "principal",
        "revision",
        "state",
        "view",
    )

    def __init__(
        self,
        client_id: str,
        principal: Principal,
        limits: SessionLimits,
        now: float,
        rate_limits: RateLimits | None = None,
        require_room: Callable[[int], None] = lambda size: None,
    ) -> None:
        """Begin a session. `require_room(size)` raises `Overloaded` if a command of `size` bytes cannot be written."""
        self.client_id = client_id
        self.principal = principal
        self.state = SessionState.ACTIVE
        self.app = AppInfo()
        self.view = self._view()
        self.metadata: dict[str, Any] = {}
        self.contract: Contract = NO_CONTRACT
        self.revision = 1
        self.lost = False
        self.late_responses = 0
        self.late_progress = 0
        self._limits = limits
        self._rate_limits = rate_limits or RateLimits()
        self._require_unread_room = require_room
        self._in_flight = CommandsInFlight(client_id)
        self._keepalive = Keepalive(now)
        self._bad_frames: BadFrames | None = None
        self._refusals: Refusals | None = None
        self._presence: Presence | None = None
        self._stopped: StoppedAgents | None = None
        self._is_anew = False

    def keep_frames(self, keeps: KeepFrame) -> None:
        """Keep the frames of commands from now on, if `keeps` has room, because the client may lose its connection."""
        self._in_flight.keep_frames(keeps)

    @property
    def commands_in_flight(self) -> int:
        """The number of unanswered commands."""
        return len(self._in_flight)

    def require_room_besides(self, require_room: Callable[[int], None]) -> None:
        """Let `require_room` refuse commands, too. It is that of a second queue, where commands wait for a turn."""
        first = self._require_unread_room

        def require_both(size: int) -> None:
            first(size)
            require_room(size)

        self._require_unread_room = require_both

    # --- from agents ---

    def call(
        self, caller: Principal, command: CommandRequest, call: Call, now: float, reservation: str = ""
    ) -> list[Effect]:
        """Take a command, in the order of checks that the protocol fixes.

        A command with an idempotency key is identified by its `reservation`, because its callers come and go.

        Raises `ClientNotFound`, `Unavailable`, `UnknownCapability`, `PermissionDenied`, `RateLimited`,
        `InvalidParameters`, `Overloaded` or `Conflict`; then nothing was sent to the client.
        """
        require(caller, self.view)
        self._require_here()
        offer = self.contract.offer(command.target, command.action)
        if offer.permissions:
            require(caller, self.view, offer)
        if self._stopped is not None:
            self._stopped.require_allowed(caller.sub, now)
        if offer.rate is not None or self._rate_limits.per_agent is not None:
            self._rate_limits.keep(caller, self.client_id, offer, now)
        self.contract.check(offer, command.action, command.parameters)
        self._in_flight.require_unused(call, reservation)
        self._require_room(
            command
        )  # last: `overloaded` means "not executed", which would be wrong in place of `conflict`
        return self._dispatch(command, call, reservation, now)

    def is_quick(self, command: CommandRequest) -> bool:
        """Tell whether the parameters of a command can be checked in less than half a millisecond."""
        return self.contract.is_quick(command.target, command.action, command.parameters)

    def cancel(self, caller: Principal, request_id: str, reason: str, now: float) -> list[Effect]:
        """Cancel a command. No effects if it is not in flight. Raises `ClientNotFound` like `call`.

        A caller may cancel its command even if the client's new name is outside the token's limits.
        """
        command = self._own(caller, request_id)
        if command is None:
            require(caller, self.view)
            return []
        return self._withdraw(command, Cancelled("the caller cancelled the command"), reason, now)

    def give_up(self, caller: Principal, request_id: str, now: float) -> list[Effect]:
        """Answer `timeout` to a command before its own deadline. No effects if it is not in flight."""
        command = self._in_flight.of(caller.sub, request_id)
        return [] if command is None else self.deadline_passed(command.wire_id, now)

    def is_in_flight(self, caller: Principal, request_id: str) -> bool:
        """Tell whether a command of this caller is in flight."""
        return self._own(caller, request_id) is not None

    def is_asked_after(self, caller: Principal, request_id: str, now: float) -> bool:
        """Tell the same for a probe, and note the time of the probe."""
        command = self._own(caller, request_id)
        if command is not None and command.heard is not None:
            command.heard = now
        return command is not None

    def abandon(self, now: float, reachable_since: float) -> list[Effect]:
        """Cancel commands without a probe for eight seconds, if their callers promised one each second.

        Such callers have died, or their `cancel` was lost. Counts from `reachable_since`, because no probe could arrive
        before.
        """
        return [
            effect
            for command in self._in_flight.all()
            if command.heard is not None and now - max(command.heard, reachable_since) > ABANDONED_SECONDS
            for effect in self._withdraw(command, Cancelled(ABANDONED), "the caller is gone", now)
        ]

    def deadline_passed(self, wire_id: str, now: float) -> list[Effect]:
        """Answer `timeout` to a command if it is still in flight."""
        command = self._in_flight.get(wire_id)
        if command is None:
            return []
        error = DeadlineExceeded("the application did not answer in time; the command may still run")
        return self._withdraw(command, error, "timeout", now)

    # --- from the client ---

    def response(self, frame: ResponseFrame, now: float) -> list[Effect]:
        """Pass on the client's answer. A late or second one is counted and dropped."""
        self.heard(now)
        command = self._in_flight.get(frame.request_id)
        if command is None:
            self.late_responses += 1
            return []
        duration_ms, request_id = command.call.duration_ms(now), command.call.request_id
        if frame.status == "success":
            response = CommandResponse(
                request_id=request_id,
                status="success",
                result=frame.result,
                client_id=self.client_id,
                duration_ms=duration_ms,
            )
        else:
            response = failure(request_id, _command_failed(frame), self.client_id, duration_ms)
        return self._settle(command, response, confirmed=frame.confirmed == "user")

    def progress(self, frame: ProgressFrame, now: float) -> list[Effect]:
        """Pass on a command's progress if its caller asked for it. Late progress is counted and dropped."""
        command = self._in_flight.get(frame.request_id)
        if command is None:
            self.late_progress += 1
            return []
        return [] if command.progress is None else [*command.progress.report(frame, now)]

    def register(
        self, contract: Contract, app: AppInfo | None, metadata: dict[str, Any] | None, ident: str | None
    ) -> list[Effect]:
        """Replace the client's list, and report what is left out. Raises `InvalidFrame` for too large a record."""
        new_metadata = self.metadata if metadata is None else _bounded_metadata(metadata)
        if _record_bytes(contract.capabilities) > self._limits.max_message_bytes:
            raise InvalidFrame("`capabilities`: the list is too large to store; shorten descriptions or schemas")
        self.contract = contract
        self._is_anew = False
        self.app = app if app is not None else self.app
        self.view = self._view()
        focused = metadata is not None and tells_visible(metadata)
        if not contract.capabilities.refused:
            return self._describe(new_metadata, ident, focused=focused)
        return [*self._describe(new_metadata, None, focused=focused), Send(_left_out(contract.capabilities, ident))]

    def describe(self, metadata: dict[str, Any], ident: str | None) -> list[Effect]:
        """Replace the client's metadata. Raises `InvalidFrame` if it is too large."""
        return self._describe(_bounded_metadata(metadata), ident, focused=tells_visible(metadata))

    def want_agents(self, wanted: bool, wall_offset: float) -> None:
        """Start or stop `agents` frames to the client. `wall_offset` converts our times to Unix seconds."""
        if not wanted:
            self._presence = None
        elif self._presence is None:
            self._presence = Presence(wall_offset)
            for command in self._in_flight.all():
                self._presence.began(command.call.sub, command.call.name, command.call.started)

    def user_wishes(self, frame: StopFrame | AllowFrame, now: float) -> list[Effect]:
        """Cancel an agent's commands and refuse new ones for a while, or allow them again; no id means all agents."""
        self._stopped = self._stopped or StoppedAgents()
        if isinstance(frame, AllowFrame):
            self._stopped.allow(frame.agent_id)
            return _acknowledge(frame.id)
        self._stopped.stop(frame.agent_id, frame.seconds, now)
        error = Cancelled("the user of this client has stopped the agent", details={"by": "user"})
        withdrawn = [
            effect
            for command in self._in_flight.all()
            if frame.agent_id in (None, command.call.sub)
            for effect in self._withdraw(command, error, "stopped by the user", now)
        ]
        return [*withdrawn, *_acknowledge(frame.id)]

    def refresh(self, principal: Principal, ident: str | None) -> list[Effect]:
        """Go on with a fresh token. The shell has verified it and found that it has the same identity."""
        self.principal = principal
        return _acknowledge(ident)

    def refuse_frame(
        self, error: BridgeError, now: float, ident: str | None = None, answers: Sequence[str] = ()
    ) -> list[Effect]:
        """Send the client an error for a frame. Close the session after more than 200 bad frames within 10 s.

        The commands that the frame would have answered fail at once. Such a frame does not count as bad, because there
        are no more of them than commands. A retryable error (NATS is away, too many events) is not the client's fault
        and does not count either. A flood of those gets only some errors, with a count.
        """
        self.heard(now)
        ended = [effect for wire_id in answers for effect in self._fail_unreadable(wire_id, error, now)]
        if ended:
            return [*ended, *(Send(_refusal(error, ident, wire_id)) for wire_id in answers)]
        frame = _refusal(error, ident, next(iter(answers), None))
        if error.meaning.retryable:
            self._refusals = self._refusals or Refusals()
            told = self._refusals.add(frame, now)
            return [] if told is None else [Send(told)]
        self._bad_frames = self._bad_frames or BadFrames()
        if self._bad_frames.one_more(now):
            return [Close(CloseCode.POLICY, "too many bad frames", EndReason.BAD_FRAMES)]
        return [Send(frame)]

    def heard(self, now: float) -> None:
        """Note a sign of life: a frame or a pong."""
        self._keepalive.heard(now)

    # --- from the clock and the process ---

    def progress_due(self, wire_id: str, now: float) -> list[Effect]:
        """Pass on waiting progress, unless the command has ended."""
        command = self._in_flight.get(wire_id)
        if command is None or command.progress is None:
            return []
        return [*command.progress.due(now)]

    def tick(self, now: float) -> list[Effect]:
        """Report the refusals since the last tick, and check that the client is still there."""
        if self.state is SessionState.DETACHED:
            return []
        told = self._tell_agents(now)
        if self._refusals is None:
            return [*told, *self._keep_alive(now)]
        return [*told, *map(Send, self._refusals.due(now)), *self._keep_alive(now)]

    def _keep_alive(self, now: float) -> list[Effect]:
        """Ping a silent client, sooner while a command waits for it; close if no pong comes."""
        silent_seconds = self._limits.ping_interval_seconds
        if self._has_unanswered(now):
            silent_seconds = min(silent_seconds, UNANSWERED_SECONDS)
        pong_seconds = UNANSWERED_PONG_SECONDS if self._in_flight else self._limits.ping_timeout_seconds
        match self._keepalive.check(now, silent_seconds, pong_seconds):
            case KeepaliveStep.WAIT:
                return []
            case KeepaliveStep.PING:
                return [Ping()]
            case KeepaliveStep.LOST:
                return [Close(CloseCode.INTERNAL, "no pong", EndReason.NO_PONG)]

    def drain(self) -> None:
        """Take no more commands. Those in flight go on."""
        if self.state is SessionState.ACTIVE:
            self.state = SessionState.DRAINING

    def detach(self) -> list[Effect]:
        """Go on without a connection. Commands in flight wait, and new ones are refused."""
        self.state = SessionState.DETACHED
        self.revision += 1
        self._bad_frames = self._refusals = None
        return [Changed()]

    def attach(self, principal: Principal, require_room: Callable[[int], None], now: float) -> list[Effect]:
        """Go on with a new connection, after the client was away or in place of its former one."""
        self.state = SessionState.ACTIVE
        self.principal = principal
        self.revision += 1
        self._require_unread_room = require_room
        self._in_flight.connection_changed()
        self.heard(now)
        if self._presence is not None:
            self._presence.tell_anew()
        return [Changed()]

    @property
    def awaited(self) -> list[str]:
        """The unanswered commands that were sent on a former connection."""
        return self._in_flight.from_before

    def unknown(self, frame: UnknownFrame, now: float) -> list[Effect]:
        """Send a command again that has not reached the client. If its frame was not kept, the command is lost.

        Raises `InvalidFrame` if the command was sent on the present connection.
        """
        self.heard(now)
        command = self._in_flight.get(frame.request_id)
        if command is None:
            self.late_responses += 1
            return _acknowledge(frame.id)
        if not self._in_flight.take_from_before(frame.request_id):
            raise InvalidFrame("`requestId`: the command was sent on this connection; answer it")
        if command.frame is None:
            return [*self._lose(command, ClientLost(NOT_KEPT), now), *_acknowledge(frame.id)]
        return [Send(replace(command.frame, timeout_ms=max(1, command.call.left_ms(now)))), *_acknowledge(frame.id)]

    def moving(self, now: float) -> list[MovingCommand]:
        """Return the commands in flight for the gateway that the session moves to. Commands under a key stay behind."""
        return self._in_flight.moving(now)

    def leave(self, now: float) -> list[Effect]:
        """End here, because the session has moved to another gateway, which answers the commands in flight.

        Commands with an idempotency key cannot move: they end with `client_lost`.
        """
        effects = [
            effect
            for command in self._in_flight.all()
            if command.reservation
            for effect in self._lose(command, ClientLost(MOVED_WITH_KEY), now)
        ]
        self._in_flight.clear()
        self.state, self.lost = SessionState.ENDED, True
        return effects

    def arrive(self, snapshot: SessionSnapshot, contract: Contract, now: float) -> list[Effect]:
        """Go on with a session that comes from another gateway."""
        self.contract, self.app, self.metadata = contract, snapshot.app, snapshot.metadata
        self.view = self._view()
        self.revision = snapshot.revision
        self._in_flight.next_wire_id = snapshot.next_wire_id
        for sub, seconds in snapshot.stopped:
            self._stopped = self._stopped or StoppedAgents()
            self._stopped.stop(sub, seconds, now)
        commands = [self._in_flight.take_over(moved, now) for moved in snapshot.commands]
        return [Arm(command.wire_id, command.call.deadline) for command in commands]

    def adopt(self, principal: Principal) -> None:
        """Become a session of this user that another gateway has handed over."""
        self.principal = principal
        self.view = self._view()

    @property
    def holds_keys(self) -> bool:
        """Whether a command under an idempotency key is in flight: it cannot move to another gateway."""
        return self._in_flight.holds_keys

    def begin_anew(self, now_ms: int) -> None:
        """Begin again with a known client id, and with sequence numbers that were not used before.

        The former capabilities are unknown, so commands are refused until the client has registered.
        """
        self._is_anew = True
        self.revision = self._in_flight.next_wire_id = now_ms

    def snapshot(self, connected_at: str, focused_at: str | None, grace_ms: int | None, now: float) -> SessionSnapshot:
        """Return everything that another gateway needs to go on."""
        principal = self.principal
        return SessionSnapshot(
            principal.tenant,
            self.client_id,
            principal.sub,
            principal.role,
            None if principal.expires_at == float("inf") else principal.expires_at,
            self.app,
            self.metadata,
            self.contract.capabilities.raw,
            self.revision,
            connected_at,
            focused_at,
            grace_ms,
            self._in_flight.next_wire_id,
            self.moving(now),
            [] if self._stopped is None else self._stopped.left(now),
            self._presence is not None,
        )

    def end(self, now: float, reason: EndReason = EndReason.CLOSED) -> list[Effect]:
        """End the session. Every command in flight is answered `client_lost`, and later ones are refused."""
        self.state = SessionState.ENDED
        self.lost = is_lost(reason)
        lost = self._loss(reason)
        return [effect for command in self._in_flight.all() for effect in self._lose(command, lost, now)]

    def _lose(self, command: InFlight, error: BridgeError, now: float) -> list[Effect]:
        return self._settle(command, self._failure(command, error, now))

    def _loss(self, reason: EndReason) -> ClientLost:
        """Return the error for commands that are lost with the client; after a too large message, with the limit."""
        if reason is not EndReason.MESSAGE_TOO_LARGE:
            return ClientLost("the client disconnected while the command was under way; it may have run")
        limit = self._limits.max_message_bytes
        return ClientLost(
            f"the client sent a message of more than {limit} bytes, which ended its connection; the command may have "
            "run",
            details={"code": MESSAGE_TOO_LARGE, "maxMessageBytes": limit},
        )

    def record(self, gateway_id: str, connected_at: str, focused_at: str | None = None) -> ClientRecord:
        """Return the client's record for the registry."""
        return ClientRecord(
            client_id=self.client_id,
            tenant=self.principal.tenant,
            gateway_id=gateway_id,
            principal=self.principal.sub,
            user=self.principal.sub,
            app={"name": self.app.name, "version": self.app.version} if self.app.name else {},
            metadata=self.metadata,
            capabilities=self.contract.capabilities.raw,
            revision=self.revision,
            connected_at=connected_at,
            focused_at=focused_at,
            state="detached" if self.state is SessionState.DETACHED else "active",
            refused=self.contract.capabilities.refused,
        )

    # --- inside ---

    def _view(self) -> ClientView:
        """Return the parts of this client that decide which agents may see it."""
        return ClientView(self.principal.tenant, self.client_id, self.principal.sub, self.app.name)

    def _own(self, caller: Principal, request_id: str) -> InFlight | None:
        """Return a command of this caller. A caller of another tenant with the same `sub` has none here."""
        return self._in_flight.of(caller.sub, request_id) if caller.tenant == self.principal.tenant else None

    def _require_here(self) -> None:
        """Raise `ClientNotFound` or `Unavailable` unless the client is connected and has registered."""
        if self.state is SessionState.ENDED:
            raise Unavailable.while_client_is_away() if self.lost else ClientNotFound()
        if self.state is SessionState.DRAINING:
            raise Unavailable("the gateway of this client is shutting down; try again in a moment")
        if self.state is SessionState.DETACHED:
            raise Unavailable("the client lost its connection a moment ago and is expected back; try again in a moment")
        if self._is_anew:
            raise Unavailable("the client has just come back and has not registered yet; try again in a moment")

    def _require_room(self, command: CommandRequest) -> None:
        if len(self._in_flight) >= self._limits.max_in_flight:
            raise Overloaded(f"the client has {len(self._in_flight)} commands in flight; try again in a moment")
        self._require_unread_room(FRAME_BYTES + len(memoryview(command.parameters)))

    def _dispatch(self, command: CommandRequest, call: Call, reservation: str, now: float) -> list[Effect]:
        # Callers of a key are asked after by their own ids, which this command does not have.
        is_probed = command.probed and not reservation
        in_flight = self._in_flight.begin(call, reservation, now if is_probed else None)
        frame = CommandFrame(
            in_flight.wire_id,
            command.target,
            command.action,
            command.parameters,
            max(1, call.left_ms(now)),
            AgentIdentity(call.sub, call.name),
        )
        self._in_flight.keep(in_flight, frame)
        effects: list[Effect] = [Send(frame), Arm(in_flight.wire_id, call.deadline)]
        if self._presence is None:
            return effects
        self._presence.began(call.sub, call.name, now)
        return [*effects, *self._tell_agents(now)]

    def _settle(self, command: InFlight, response: CommandResponse, *, confirmed: bool = False) -> list[Effect]:
        self._in_flight.end(command)
        call = command.call
        if self._presence is not None:
            self._presence.ended(call.sub, call.started + response.duration_ms / 1000)
        answer = Answer(call, response, command.wire_id, command.reservation, confirmed)
        if command.progress is None:
            return [answer]
        return [*command.progress.last(), answer]

    def _failure(self, command: InFlight, error: BridgeError, now: float) -> CommandResponse:
        return failure(command.call.request_id, error, self.client_id, command.call.duration_ms(now))

    def _tell_agents(self, now: float) -> list[Effect]:
        """Return the frame about agents at work. The end of a command is reported by the next tick."""
        frame = None if self._presence is None else self._presence.due(now)
        return [] if frame is None else [Send(frame)]

    def _fail_unreadable(self, wire_id: str, error: BridgeError, now: float) -> list[Effect]:
        """End a command with an unreadable answer, because its caller would otherwise wait until the deadline."""
        command = self._in_flight.get(wire_id)
        if command is None:
            return []
        if error.code is not Code.INTERNAL:
            sentence = f"the application's answer cannot be read: {error.message}"
            error = CommandFailed(sentence, details={"code": INVALID_RESPONSE})
        return self._settle(command, self._failure(command, error, now))

    def _withdraw(self, command: InFlight, error: BridgeError, reason: str, now: float) -> list[Effect]:
        return [Send(CancelFrame(command.wire_id, reason)), *self._lose(command, error, now)]

    def _describe(self, metadata: dict[str, Any], ident: str | None, *, focused: bool) -> list[Effect]:
        self.metadata = metadata
        self.revision += 1
        return [Changed(focused), *_acknowledge(ident)]

    def _has_unanswered(self, now: float) -> bool:
        oldest = self._in_flight.oldest
        return oldest is not None and now - oldest.call.started >= UNANSWERED_SECONDS


def _refusal(error: BridgeError, ident: str | None, request_id: str | None) -> ErrorFrame:
    return ErrorFrame(error.code.value, error.message, ident, error.details, request_id)


def _left_out(capabilities: CapabilityList, ident: str | None) -> ErrorFrame:
    """Return the error that replaces the `ack` if some capabilities are not registered."""
    first, count = capabilities.refused[0], len(capabilities.refused) + capabilities.more_refused
    details = {
        "registered": len(capabilities.offers),
        "refused": capabilities.refused,
        **({"more": capabilities.more_refused} if capabilities.more_refused else {}),
    }
    sentence = f"{count} of the capabilities left out, the others are registered: {first.message}"
    return ErrorFrame(Code.INVALID_FRAME.value, sentence, ident, details)


def _record_bytes(capabilities: CapabilityList) -> int:
    """Return the largest size of a record with these capabilities. Refused ones are rarely in it."""
    refused = len(codec.encode(capabilities.refused)) if capabilities.refused else 0
    return len(memoryview(capabilities.raw)) + refused + MAX_METADATA_BYTES


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
