"""Claims on NATS: performs the decisions of `resume` for each session, and takes other gateways' messages.

Claims and their answers are signed. A message that pretends to be one costs a comparison of 16 bytes. A claim that is
published again by somebody who reads along changes nothing, because its rank is not above the holder's any more.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from hashlib import blake2b
from typing import NamedTuple, assert_never

import msgspec
from msgspec.structs import replace
from nats.aio.msg import Msg

from gateway.capabilities.contracts import Contract
from gateway.sessions.core.resume import (
    KEEP_SECONDS,
    REPEAT_SECONDS,
    SKEW_SECONDS,
    Activate,
    Announce,
    Claim,
    ClaimEffect,
    ClaimKind,
    Fate,
    Forsake,
    Grant,
    Held,
    HolderState,
    Loss,
    Pass,
    Rank,
    Refuse,
    SessionClaim,
    StandDown,
    Yield,
)
from gateway.sessions.core.snapshots import (
    MAX_CLAIM_BYTES,
    SIGNATURE_HEADER,
    ClaimAnswer,
    ClaimMessage,
    KeptMessage,
    MovingCommand,
    SessionSnapshot,
    encode_grant,
    read_signature,
    signature_text,
)
from gateway.sessions.live import LiveSession, Part
from gateway.sessions.moved_lists import MovedLists
from protocol import codec, subjects
from protocol.errors import BridgeError, Overloaded, PayloadTooLarge, Unavailable
from protocol.runtime.alarms import Alarms
from protocol.runtime.derived_keys import DerivedKeys
from protocol.runtime.log_throttle import LogThrottle
from protocol.runtime.nats.connection import Connection
from protocol.shares import Holder, Shares

LOOK_SECONDS = SKEW_SECONDS
MAX_KEPT_BYTES = 16 * 1024 * 1024  # of messages that wait for the end of a claim
MESSAGE_BYTES = 512  # what one takes besides its own size
LOG_SECONDS = 1.0
_NO_RESPONDERS = "503"

log = logging.getLogger(__name__)
_claims = msgspec.json.Decoder(ClaimMessage)
_answers = msgspec.json.Decoder(ClaimAnswer)


class Arrived(NamedTuple):
    """A session's snapshot from another gateway, and its capabilities, read."""

    snapshot: SessionSnapshot
    contract: Contract


class Arrival(NamedTuple):
    """A session that this gateway holds from now on: with another gateway's state of it, or its own."""

    arrived: Arrived | None
    resumed: bool


class ClaimHandlers(NamedTuple):
    """The gateway's handlers of kept messages and of claims that ended.

    `sender` names the share of a message's sender, or is None for one of a flood that is dropped.
    """

    on_command: Callable[[LiveSession, Msg], None]
    on_lost: Callable[[LiveSession, Msg], None]
    on_held_up: Callable[[LiveSession, Msg], None]
    on_forsaken: Callable[[LiveSession, MovingCommand], None]
    sender: Callable[[LiveSession, Msg], Holder | None]
    freezes: Callable[[], int]
    has_backlog: Callable[[], bool]


class ClaimOutcomes(NamedTuple):
    """The outcomes of a claim for its session."""

    on_held: Callable[[LiveSession, Arrival], None]
    on_lost: Callable[[LiveSession, Loss], None]


class ClaimService:
    """The claims of this gateway's sessions, and its answers to others'."""

    def __init__(
        self,
        connection: Connection,
        keys: DerivedKeys,
        lists: MovedLists,
        tasks: asyncio.TaskGroup,
        handlers: ClaimHandlers,
        outcomes: ClaimOutcomes,
    ) -> None:
        self.forged = 0
        self._connection = connection
        self._keys = keys
        self._lists = lists
        self._tasks = tasks
        self._handlers = handlers
        self._outcomes = outcomes
        self._loop = asyncio.get_running_loop()
        self._alarms = Alarms()
        self._inbox = connection.new_inbox()
        self._claimants: dict[str, LiveSession] = {}
        self._kept = Shares(MAX_KEPT_BYTES, "too many commands wait for sessions that move; try again in a moment")
        self._not_kept = self._claimed = self._granted = 0
        self._lines = LogThrottle(LOG_SECONDS, self._loop.time)

    async def start(self) -> None:
        """Subscribe for answers."""
        await self._connection.subscribe_directly(f"{self._inbox}.*", self._hear_answer)

    def counters(self) -> dict[str, int]:
        """Return what is counted since the start."""
        return {
            "sessionsClaimed": self._claimed,
            "sessionsGranted": self._granted,
            "claimsForged": self.forged,
            "commandsNotKept": self._not_kept,
        }

    # --- sessions ---

    def hold(self, session: LiveSession, generation: int) -> None:
        """Hold a session that is new."""
        claim = Claim(_rank(generation), ClaimKind.CLIENT, generation)
        session.part = Part(SessionClaim(session.snapshot, claim, generation), self._present, self._new_inbox(session))
        session.on_message = self.handle

    async def claim(
        self,
        session: LiveSession,
        kind: ClaimKind,
        serial: int,
        generation: int,
        subscribe: Callable[[], Awaitable[None]],
    ) -> Loss | None:
        """Claim a session that another gateway may hold; return why that failed, None if this gateway holds it.

        Raises `Unavailable` or `Overloaded` if NATS does not take the subscription.
        """
        claim = Claim(_rank(generation), kind, serial)
        part = Part(SessionClaim(session.snapshot, claim, serial, held=False), self._present, self._new_inbox(session))
        session.part, session.on_message = part, self.handle
        part.claimed = self._loop.create_future()
        try:
            # Look before subscribing: afterwards this gateway itself would count as somebody.
            nobody = await self._nobody_is_there(session, part)
            await subscribe()
        except BaseException:
            self._claimants.pop(part.inbox, None)
            raise
        # Other servers of the cluster see the subscription some milliseconds late. Announce when all can reach us.
        await asyncio.sleep(SKEW_SECONDS)
        self._notice_gap(session, part)
        self._perform(session, part.holding.announce(self._loop.time(), nobody_was_there=nobody))
        return await part.claimed

    def is_sure(self, session: LiveSession) -> bool:
        """Tell whether this gateway certainly holds a session."""
        part = session.part
        return part is not None and part.holding.standing is HolderState.ACTIVE and part.verified == self._present

    def renew(self, session: LiveSession, serial: int) -> None:
        """Stay the holder, with a new rank, for a client that has come back with the token `serial`."""
        assert session.part is not None
        generation = max(now_ms(), session.part.holding.rank.generation + 1)
        session.part.holding.renew(_rank(generation), serial)

    # --- messages on the subjects of sessions ---

    def handle(self, session: LiveSession, msg: Msg) -> None:
        """Handle a message: a claim, or an agent's message if this gateway holds the session."""
        part = session.part
        if part is None:
            return
        # Doubt first: if a claim was missed, another gateway may hold the session and execute this message.
        self._notice_gap(session, part)
        if msg.headers is not None and SIGNATURE_HEADER in msg.headers:
            self._hear_claim(session, part, msg)
            return
        ident = blake2b(msg.reply.encode() + b"\n" + msg.data, digest_size=8).digest()
        # While passive, ignore it: the holder has the same message.
        if part.holding.standing is HolderState.ACTIVE:
            if part.holding.take(ident, None, self._loop.time()) is Fate.EXECUTE:
                self._handlers.on_command(session, msg)
        elif part.holding.standing is HolderState.CLAIMING:
            # Both gateways may have the message. The grant says which the old holder has taken.
            self._keep(session, part, ident, msg)

    def _notice_gap(self, session: LiveSession, part: Part) -> None:
        """Doubt if this process may have missed something since the last look."""
        if part.verified != self._present:
            part.verified = self._present
            has_client = session.grace is None
            self._perform(session, part.holding.doubt(self._loop.time(), has_client=has_client))

    def _keep(self, session: LiveSession, part: Part, ident: bytes, msg: Msg) -> None:
        """Keep a message until the claim has ended. One without room is not answered: another may execute it.

        The room is shared by the agents, so one agent's messages leave some for those of others.
        """
        sender = self._handlers.sender(session, msg)
        if sender is None:
            return
        headers = msg.headers
        kept = KeptMessage(ident, msg.subject, msg.reply, headers, msg.data, self._handlers.has_backlog())
        try:
            part.keep(sender, self._kept, len(msg.data) + MESSAGE_BYTES)
        except Overloaded:
            self._not_kept += 1
            return
        if part.holding.take(ident, kept, self._loop.time()) is not Fate.KEEP:
            self._not_kept += 1

    def _hear_claim(self, session: LiveSession, part: Part, msg: Msg) -> None:
        if len(msg.data) > MAX_CLAIM_BYTES or not self._is_signed(msg, f"{msg.subject}\n{msg.reply}"):
            self._count_forged(msg)
            if part.holding.standing is HolderState.ACTIVE:
                # Handle it as a message without a token, so that a flood of forged claims is bounded like all others.
                self._handlers.on_command(session, msg)
            return
        message = codec.decode(_claims, msg.data)
        if message.stage == "claim":
            if part.reading and msg.reply == self._reply_of(part):
                # This is our own claim. It would end the claim before the grant that has come is read.
                return
            self._perform(session, part.holding.hear_claim(message.claim, msg.reply, self._loop.time()))
        elif part.holding.standing is not HolderState.PASSIVE:
            self._answer(msg.reply, ClaimAnswer("here"))

    def _count_forged(self, msg: Msg) -> None:
        self.forged += 1
        if count := self._lines.due():
            log.warning("dropped %d claims that no gateway of ours has signed, the last on %s", count, msg.subject)

    # --- answers ---

    def _hear_answer(self, msg: Msg) -> None:
        session = self._claimants.get(msg.subject.rpartition(".")[2])
        part = None if session is None else session.part
        if session is None or part is None:
            return
        if not msg.data and msg.headers is not None and msg.headers.get("Status") == _NO_RESPONDERS:
            _tell(part.look, True)
            return
        if not self._is_signed(msg, msg.subject):
            self._count_forged(msg)
            return
        try:
            self._take_answer(session, part, codec.decode(_answers, msg.data))
        except BridgeError as exc:
            log.warning("an answer to a claim cannot be read: %s", exc.message)

    def _take_answer(self, session: LiveSession, part: Part, answer: ClaimAnswer) -> None:
        self._notice_gap(session, part)
        now = self._loop.time()
        match answer.says:
            case "here":
                _tell(part.look, False)
            case "held":
                # A newer claim has won. Its holder names the callers that it has answered: do not answer them again.
                part.tell(answer.told)
                self._perform(session, part.holding.hear_held(answer.generation, now))
            case "refused":
                # The holder has seen a newer token of this client: the one that came with the claim is spent.
                self._perform(session, part.holding.hear_refusal())
            case "granted":
                # A large grant comes in several messages. Reading it takes many steps, so it gets a task.
                grant = part.parts.add(answer)
                if grant is not None:
                    self._tasks.create_task(self._take_grant(session, part, grant), name="take a granted session")

    async def _take_grant(self, session: LiveSession, part: Part, grant: Grant) -> None:
        """Read the capabilities that come with a session, in steps, then take it."""
        part.reading += 1
        try:
            if grant.state is not None:
                grant = grant._replace(state=Arrived(grant.state, await self._lists.read(grant.state)))
            self._perform(session, part.holding.hear_grant(grant, self._loop.time()))
        except Exception:
            log.exception("a granted session could not be taken")
        finally:
            part.reading -= 1

    # --- decisions of the core ---

    def _perform(self, session: LiveSession, effects: Sequence[ClaimEffect]) -> None:
        is_moving = True
        for effect in effects:
            match effect:
                case Announce(claim=claim, wake_at=at):
                    self._announce(session, claim, at)
                case Yield(to=to, grant=grant):
                    self._granted += 1
                    is_moving = self._send_grant(session, to, grant)
                case Pass(to=to, grant=grant):
                    self._send_grant(session, to, _without(grant, session.part.told if session.part else ()))
                case Held(to=to, generation=generation):
                    told = [] if session.part is None else list(session.part.told)
                    self._answer(to, ClaimAnswer("held", generation, told=told))
                case Refuse(to=to):
                    self._answer(to, ClaimAnswer("refused"))
                case Activate():
                    self._activate(session, effect)
                case StandDown(why=why):
                    # A state that stays behind ends here, with its commands.
                    self._stand_down(session, why if is_moving else Loss.HELD)
                case Forsake(states=states):
                    self._forsake(session, states)
                case _:
                    assert_never(effect)

    def _announce(self, session: LiveSession, claim: Claim, wake_at: float) -> None:
        part = session.part
        assert part is not None
        if part.alarm is not None:
            part.alarm.cancel()
        part.alarm = self._alarms.at(wake_at, self._wake, session)
        self._publish_claim(session, part, claim, "claim")

    def _wake(self, session: LiveSession) -> None:
        part = session.part
        if part is None:
            return
        if part.reading or not self._connection.connected:
            # A grant is being read, or NATS is away: the silence of a holder means nothing now.
            part.alarm = self._alarms.after(REPEAT_SECONDS, self._wake, session)
            return
        self._notice_gap(session, part)
        self._perform(session, part.holding.wake(self._loop.time()))

    def _activate(self, session: LiveSession, effect: Activate) -> None:
        """Hold the session: greet its client first, then handle the kept messages."""
        part = session.part
        assert part is not None
        self._claimed += part.claimed is not None
        # The client must get its first frame before the first command.
        self._outcomes.on_held(session, Arrival(effect.state, effect.resumed))
        self._end_claim(part, None)
        for kept in effect.lose:
            self._handlers.on_lost(session, self._message(kept))
        part.tell(kept.reply for kept in effect.lose if kept.reply)
        for kept in effect.execute:
            # A message from before a freeze must not start a command: its caller may have given up.
            handle = self._handlers.on_held_up if kept.held_up else self._handlers.on_command
            handle(session, self._message(kept))
        self._forsake(session, effect.forsaken)

    def _stand_down(self, session: LiveSession, why: Loss) -> None:
        part = session.part
        assert part is not None
        self._outcomes.on_lost(session, why)
        self._end_claim(part, why)

    def _end_claim(self, part: Part, outcome: Loss | None) -> None:
        part.let_go()
        if part.claimed is not None and not part.claimed.done():
            part.claimed.set_result(outcome)
        # A grant may still come: keep the inbox for a while.
        self._alarms.after(KEEP_SECONDS, self._claimants.pop, part.inbox, None)

    def _forsake(self, session: LiveSession, states: Sequence[Arrived]) -> None:
        """Tell the callers of a state's commands that these are lost, unless they have heard it."""
        part = session.part
        for state in states:
            told = () if part is None else part.told
            lost = [command for command in state.snapshot.commands if command.reply not in told]
            for command in lost:
                self._handlers.on_forsaken(session, command)
            if part is not None:
                part.tell(command.reply for command in lost)

    def _message(self, kept: KeptMessage) -> Msg:
        return Msg(self._connection.client, kept.subject, kept.reply, kept.data, kept.headers)

    # --- publishing ---

    async def _nobody_is_there(self, session: LiveSession, part: Part) -> bool:
        """Ask the server for the proof that nobody is subscribed to a session's subject."""
        part.look = self._loop.create_future()
        self._publish_claim(session, part, part.holding.claim, "look")
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                return await part.look
        except TimeoutError:
            return False
        finally:
            part.look = None

    def _publish_claim(self, session: LiveSession, part: Part, claim: Claim, stage: str) -> None:
        core = session.core
        subject = subjects.command(core.principal.tenant, core.client_id)
        self._claimants[part.inbox] = session
        message = {"op": "claim", "stage": stage, "kind": claim.kind, "generation": claim.rank.generation}
        body = codec.encode({**message, "nonce": claim.rank.nonce, "serial": claim.serial})
        reply = self._reply_of(part)
        self._publish(subject, body, f"{subject}\n{reply}", reply)

    def _send_grant(self, session: LiveSession, to: str, grant: Grant) -> bool:
        """Send a grant; return whether the state goes with it. If not, another gateway's commands in it are lost."""
        arrived = grant.state if isinstance(grant.state, Arrived) else None
        encoded = encode_grant(grant if arrived is None else grant._replace(state=arrived.snapshot))
        for answer in encoded.answers:
            self._answer(to, answer)
        if not encoded.is_moving:
            log.warning("client %s cannot take its session along: it is too large", session.core.client_id)
            self._forsake(session, [] if arrived is None else [arrived])
        return encoded.is_moving

    def _answer(self, to: str, answer: ClaimAnswer) -> None:
        self._publish(to, codec.encode(answer), to)

    def _publish(self, subject: str, body: bytes, context: str, reply: str = "") -> None:
        """Publish a signed message. If NATS does not take it, the side that waits repeats."""
        signature = self._keys.sign(context.encode() + b"\n" + body)
        headers = {SIGNATURE_HEADER: signature_text(signature)}
        try:
            self._connection.publish_now(subject, body, reply=reply, headers=headers)
        except (Unavailable, PayloadTooLarge) as exc:
            log.warning("a message about the holder of a session was not sent: %s", exc.message)

    def _is_signed(self, msg: Msg, context: str) -> bool:
        text = (msg.headers or {}).get(SIGNATURE_HEADER, "")
        return self._keys.verify(context.encode() + b"\n" + msg.data, read_signature(text))

    @property
    def _present(self) -> tuple[int, int]:
        """The number of breaks and freezes so far; while it stays the same, this process has missed nothing.

        Returns count too, because whoever looks while the connection is broken must look again when it is back.
        """
        return (self._connection.breaks + self._connection.reconnects, self._handlers.freezes())

    def _reply_of(self, part: Part) -> str:
        return f"{self._inbox}.{part.inbox}"

    def _new_inbox(self, session: LiveSession) -> str:
        return secrets.token_hex(11)


def _without(grant: Grant, told: tuple[str, ...]) -> Grant:
    """Return a grant without the commands whose callers have heard that they are lost."""
    if grant.state is None or not told:
        return grant
    snapshot: SessionSnapshot = grant.state.snapshot
    commands = [command for command in snapshot.commands if command.reply not in told]
    return grant._replace(state=grant.state._replace(snapshot=replace(snapshot, commands=commands)))


def now_ms() -> int:
    """Return the time in Unix milliseconds."""
    return int(time.time() * 1000)


def _rank(generation: int) -> Rank:
    return Rank(generation, secrets.token_hex(11))


def _tell(waiter: "asyncio.Future[bool] | None", answer: bool) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(answer)
