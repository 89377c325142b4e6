"""The claim: decides which of several gateways holds a session, on the session's own subject. Sans-I/O.

All gateways in question are subscribed to the subject, without a queue group, so each of them gets every command. One
may execute commands: the holder. A gateway to which the client has come keeps the commands that arrive and claims the
session. The holder turns passive and grants it: with its state, and with the commands that it took lately, which the
claimant must not execute again.

    CLAIMING ──grant, proof or silence──▶ ACTIVE ──claim of a higher rank──▶ PASSIVE
        │  ▲                                │ ▲                                 ▲
        │  └──────── doubt ─────────────────┘ └── silence                      │
        └───────────── a higher rank is there ──────────────────────────────────┘

Two claimants compare their ranks. The lower one loses and hands over what it has kept. A holder that may have missed a
claim, because its connection to NATS broke or the process was frozen, doubts: it keeps commands and claims the session
for itself, until it hears of a higher rank or nothing at all.

A claimant that hears nothing becomes the holder, as soon as its last claim has come back to it: a connection that has
broken without a sign brings nothing, either. Each doubt gives a claim another nonce, because a rival may have become
the holder before a grant for the former claim came. Commands that came before a former holder must have seen the claim
may have been executed by it, so they are lost, not executed. This is safe if a message between two connected gateways
takes less than `SKEW_SECONDS`, and a holder notices each break of its connection and each freeze of more than a second.
If a route of a cluster breaks without a break of either connection, two holders are possible until one of them hears
the other's next claim; then the client's single connection decides who executes.
"""

import enum
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple

SKEW_SECONDS = 0.1  # by which a message may reach one gateway later than another; new interest is known by then
REPEAT_SECONDS = 0.25
SILENCE_SECONDS = 1.6  # more than a process may be held up without noticing that it was frozen
KEEP_SECONDS = 10.0  # for which taken commands are remembered
MAX_TAKEN = 16_384
MAX_KEPT = 1024  # messages that wait for the end of a claim


class Rank(NamedTuple):
    """The order of holders and claimants: by the time of the claim in Unix milliseconds, then by chance."""

    generation: int
    nonce: str


class ClaimKind(enum.StrEnum):
    """The reason for a claim."""

    CLIENT = "client"  # that has come with a token
    PEER = "peer"  # a gateway that shuts down and asks another one to keep the session
    HOLDER = "holder"  # in doubt


class Claim(NamedTuple):
    """A claim. `serial` is that of the client's token, and counts for a client alone."""

    rank: Rank
    kind: ClaimKind
    serial: int = 0


class Kept(NamedTuple):
    """A message that waits for the end of a claim. `ident` is the same at every gateway that gets it.

    `at` is the time of its arrival; in a grant it is its age in seconds. `is_safe` is false if the claimant may have
    missed another gateway's claim since then.
    """

    at: float
    ident: Hashable
    message: Any
    is_safe: bool = True


class Grant(NamedTuple):
    """The knowledge of a holder or claimant that yields. `state` is None if it has never held the session.

    A firm one says that nobody else holds the session, if the receiver still claims under the nonce `heir`. From one
    that is not, the receiver only learns. `known` tells for how many seconds up to now `taken` is complete: 0 if the
    giver was no holder.
    """

    giver: Rank
    firm: bool
    lowest: int
    taken: tuple[tuple[float, Hashable], ...]  # each with its age in seconds
    kept: tuple[Kept, ...]
    state: Any
    heir: str = ""
    known: float = 0.0


class Announce(NamedTuple):
    """Publish the claim on the session's subject, and call `wake` at this time."""

    claim: Claim
    wake_at: float


class Yield(NamedTuple):
    """Send a grant to a claimant. The session is its from now on; a repeated one is a copy of the first."""

    to: str
    grant: Grant


class Pass(NamedTuple):
    """Send a grant that came too late on to the claimant that has won."""

    to: str
    grant: Grant


class Held(NamedTuple):
    """Tell a claimant that there is a holder of this generation, which its claim does not exceed."""

    to: str
    generation: int


class Refuse(NamedTuple):
    """Tell a claimant that its client's token is spent: a newer one has been used."""

    to: str


class Activate(NamedTuple):
    """Hold the session from now on: begin with the state if there is one, lose some commands, execute others.

    `resumed` tells whether the session goes on or begins anew under its id. `forsaken` are states whose commands are
    lost.
    """

    state: Any
    resumed: bool
    lose: list[Any]
    execute: list[Any]
    forsaken: list[Any]


class StandDown(NamedTuple):
    """End here, without a word to the registry: another gateway holds the session. `why` is for the client."""

    why: "Loss"


class Forsake(NamedTuple):
    """Tell the callers of these states' commands that they are lost."""

    states: list[Any]


class Loss(enum.Enum):
    """Why a claimant or a holder is no longer one."""

    YIELDED = enum.auto()  # to a newer connection of the client, or to a peer
    SPENT = enum.auto()  # the client's token
    HELD = enum.auto()  # by a gateway of a higher rank


ClaimEffect = Announce | Yield | Pass | Held | Refuse | Activate | StandDown | Forsake


class HolderState(enum.Enum):
    """A gateway's role for a session."""

    CLAIMING = enum.auto()
    ACTIVE = enum.auto()
    PASSIVE = enum.auto()


class Fate(enum.Enum):
    """The treatment of an incoming message."""

    EXECUTE = enum.auto()
    KEEP = enum.auto()
    IGNORE = enum.auto()


class SessionClaim:
    """One gateway's part in one session. `now` is monotonic, in seconds.

    `lowest` is the serial of the oldest token that is valid: the one that was used last. `export` returns the state of
    the session, if this gateway has ever held it.
    """

    __slots__ = (
        "_awaits_echo",
        "_claimed_at",
        "_export",
        "_forsaken",
        "_grant",
        "_has_client",
        "_has_echo",
        "_has_missed",
        "_has_state",
        "_heard",
        "_heir",
        "_kept",
        "_knows_since",
        "_learnt",
        "_proof",
        "_taken",
        "_taken_elsewhere",
        "_wakes_at",
        "claim",
        "lowest",
        "standing",
    )  # fmt: skip

    def __init__(self, export: Callable[[], Any], claim: Claim, lowest: int, *, held: bool = True) -> None:
        """Begin as the holder, or else as a claimant that keeps what arrives until the claim has ended."""
        self.standing = HolderState.ACTIVE if held else HolderState.CLAIMING
        self.claim = claim
        self.lowest = lowest
        self._export = export
        self._has_state = held
        self._proof = self._has_missed = self._has_client = self._has_echo = self._awaits_echo = False
        self._claimed_at: float | None = None
        self._wakes_at = 0.0
        self._kept: list[Kept] = []
        self._taken: deque[tuple[float, Hashable]] | None = None
        # Nothing was taken before this, so everything that was taken is known.
        self._knows_since = float("-inf")
        self._taken_elsewhere: frozenset[Hashable] = frozenset()
        self._heard: frozenset[Rank] = frozenset()
        self._learnt: Grant | None = None
        self._forsaken: list[Any] = []
        self._grant: Grant | None = None
        self._heir: tuple[str, str] | None = None

    @property
    def rank(self) -> Rank:
        """The rank under which this gateway holds or claims the session."""
        return self.claim.rank

    @property
    def kept_messages(self) -> list[Any]:
        """The messages that wait for the end of the claim."""
        return [kept.message for kept in self._kept]

    # --- the client, peers, and this process ---

    def announce(self, now: float, *, nobody_was_there: bool) -> list[ClaimEffect]:
        """Claim, when this gateway's subscription is known everywhere.

        `nobody_was_there` is the server's proof, from before the subscription, that nobody was subscribed.
        """
        self._proof = nobody_was_there and not self._has_missed
        return self._announce_first(now)

    def renew(self, rank: Rank, serial: int) -> None:
        """Stay the holder, with a new rank, for a client that has come back with the token `serial`."""
        self.claim = Claim(rank, ClaimKind.CLIENT, serial)
        self.lowest = serial

    def doubt(self, now: float, *, has_client: bool) -> list[ClaimEffect]:
        """Execute nothing more until it is clear that there is no other holder.

        If it `has_client`, the session's client is connected here, so no other holder has one that could execute.

        To be called before anything else after a break of the connection or a freeze. What a claimant has kept until
        then may have been executed by others, and the proof that nobody was there is worth nothing any more.
        """
        if self.standing is HolderState.CLAIMING:
            return self._claim_again(now)
        if self.standing is HolderState.PASSIVE:
            return []
        self.standing = HolderState.CLAIMING
        self.claim = Claim(_renamed(self.rank), ClaimKind.HOLDER)
        self._proof, self._has_client = False, has_client
        return self._announce_first(now)

    # --- messages on the session's subject ---

    def take(self, ident: Hashable, message: Any, now: float) -> Fate:
        """Decide on a message that is no claim. One that is kept comes back when the claim has ended."""
        match self.standing:
            case HolderState.ACTIVE if ident in self._taken_elsewhere:
                # The old holder has executed it: the grant that says so came before the message itself.
                return Fate.IGNORE
            case HolderState.ACTIVE:
                self._note(ident, now)
                return Fate.EXECUTE
            case HolderState.CLAIMING if len(self._kept) < MAX_KEPT:
                self._kept.append(Kept(now, ident, message))
                return Fate.KEEP
            case _:
                return Fate.IGNORE

    def hear_claim(self, claim: Claim, reply: str, now: float) -> list[ClaimEffect]:
        """Answer another gateway's claim; its answers go to `reply`."""
        if _name(claim.rank) == _name(self.rank):
            return self._hear_echo(claim, now)
        match self.standing:
            case HolderState.ACTIVE:
                return self._judge(claim, reply, now)
            case HolderState.CLAIMING:
                return self._compare(claim, reply, now)
            case HolderState.PASSIVE if self._heir is not None and self._heir[1] == reply and self._grant is not None:
                # The heir asks again, so the first grant was lost.
                return [Yield(reply, self._grant)]
        return []

    # --- answers to the own claim ---

    def hear_grant(self, grant: Grant, now: float) -> list[ClaimEffect]:
        """Take the grant of a holder or claimant that yielded; a repeated one changes nothing."""
        # Grants are repeated if they may have been lost. Taking one twice would execute its commands twice.
        if grant.giver in self._heard:
            return []
        self._heard |= {grant.giver}
        match self.standing:
            case HolderState.CLAIMING:
                is_firm = grant.firm and grant.heir == self.rank.nonce
                self._learn(grant, now)
                return self._activate(now, certain=True, known=grant.known) if is_firm else []
            case HolderState.PASSIVE if self._heir is not None:
                return [Pass(self._heir[1], grant._replace(heir=self._heir[0]))]
        return [Forsake([grant.state])] if grant.state is not None else []

    def hear_held(self, generation: int, now: float) -> list[ClaimEffect]:
        """Learn that there is a holder of a higher rank. A client's claim is made again above that."""
        if self.standing is not HolderState.CLAIMING or generation < self.rank.generation:
            return []
        if self.claim.kind is ClaimKind.CLIENT:
            self.claim = self.claim._replace(rank=Rank(generation + 1, self.rank.nonce))
            return self._announce_first(now)
        return self._stand_down(Loss.HELD)

    def hear_refusal(self) -> list[ClaimEffect]:
        """Learn that the client's token is spent."""
        return self._stand_down(Loss.SPENT) if self.standing is HolderState.CLAIMING else []

    def wake(self, now: float) -> list[ClaimEffect]:
        """Repeat the claim. If nobody has answered for long enough, this is the last time: its echo ends the claim.

        After the proof that nobody was there, the echo of the first one is enough.
        """
        if self.standing is not HolderState.CLAIMING or self._claimed_at is None:
            return []
        ends_at = self._claimed_at + (SKEW_SECONDS if self._proof else SILENCE_SECONDS)
        if self._proof and self._has_echo and now >= ends_at:
            return self._activate(now, certain=True)
        self._awaits_echo = now >= ends_at
        if self._awaits_echo:
            # Many claims at once may keep the process busy: more of them would not help.
            self._wakes_at = now + SILENCE_SECONDS
        else:
            self._wakes_at = min(now + REPEAT_SECONDS, ends_at)
        return [Announce(self.claim, self._wakes_at)]

    # --- inside ---

    def _hear_echo(self, claim: Claim, now: float) -> list[ClaimEffect]:
        """Hear a claim of its own: the connection has brought all that was sent before it."""
        if claim.rank != self.rank or self.standing is not HolderState.CLAIMING:
            return []
        self._has_echo = True
        return self._activate(now, certain=self._proof) if self._awaits_echo else []

    def _claim_again(self, now: float) -> list[ClaimEffect]:
        self._proof, self._has_missed = False, True
        self.claim = self.claim._replace(rank=_renamed(self.rank))
        self._kept = [kept._replace(is_safe=False) for kept in self._kept]
        return [] if self._claimed_at is None else self._announce_first(now)

    def _announce_first(self, now: float) -> list[ClaimEffect]:
        self._claimed_at, self._has_echo, self._awaits_echo = now, False, False
        self._wakes_at = now + (SKEW_SECONDS if self._proof else REPEAT_SECONDS)
        return [Announce(self.claim, self._wakes_at)]

    def _judge(self, claim: Claim, reply: str, now: float) -> list[ClaimEffect]:
        """Answer a claim as the holder."""
        if claim.kind is ClaimKind.CLIENT and claim.serial < self.lowest:
            return [Refuse(reply)]
        if claim.rank < self.rank:
            return [Held(reply, self.rank.generation)]
        return self._yield(claim, reply, now)

    def _compare(self, claim: Claim, reply: str, now: float) -> list[ClaimEffect]:
        """Answer a rival as a claimant. A client that has come is above gateways that only want to keep the session."""
        if self._has_state and claim.kind is ClaimKind.CLIENT and claim.serial < self.lowest:
            return [Refuse(reply)]
        of_client, rival_of_client = (each.kind is ClaimKind.CLIENT for each in (self.claim, claim))
        if (of_client, self.rank) < (rival_of_client, claim.rank):
            return self._yield(claim, reply, now)
        if self.rank < claim.rank:
            self.claim = self.claim._replace(rank=Rank(claim.rank.generation + 1, self.rank.nonce))
        if self._claimed_at is None:  # soon
            return []
        # The rival may have subscribed after the first one.
        return [Announce(self.claim, self._wakes_at)]

    def _yield(self, claim: Claim, reply: str, now: float) -> list[ClaimEffect]:
        """Give up in favour of a claim, and hand over all that is known."""
        learnt = self._learnt
        state = self._export() if self._has_state else None if learnt is None else learnt.state
        taken = tuple((now - at, ident) for at, ident in self._recently_taken(now))
        is_holder = self.standing is HolderState.ACTIVE
        firm = is_holder or self._proof
        known = min(now - self._knows_since, KEEP_SECONDS) if is_holder else 0.0
        kept = tuple(each._replace(at=now - each.at) for each in self._kept)
        self._grant = Grant(self.rank, firm, self.lowest, taken, kept, state, claim.rank.nonce, known)
        self._heir = (claim.rank.nonce, reply)
        self.standing = HolderState.PASSIVE
        self._kept = []
        forsaken, self._forsaken = self._forsaken, []
        told: list[ClaimEffect] = [Yield(reply, self._grant), StandDown(Loss.YIELDED)]
        return [*told, Forsake(forsaken)] if forsaken else told

    def _learn(self, grant: Grant, now: float) -> None:
        """Take over what another one knows. Of several states that of the highest rank counts."""
        self._taken_elsewhere |= {ident for _, ident in grant.taken}
        for age, ident in grant.taken:
            self._note(ident, now - age)
        self._kept += (kept._replace(at=now - kept.at, is_safe=grant.firm) for kept in grant.kept)
        self.claim = self.claim._replace(
            rank=Rank(max(self.rank.generation, grant.giver.generation + 1), self.rank.nonce)
        )
        if self.claim.kind is ClaimKind.PEER:
            self.lowest = max(self.lowest, grant.lowest)
        self._choose_state(grant)

    def _choose_state(self, grant: Grant) -> None:
        known = self._learnt
        if known is None or known.state is None:
            self._learnt = grant
        elif grant.state is not None:
            older, self._learnt = sorted((known, grant), key=lambda each: each.giver)
            self._forsaken.append(older.state)

    def _activate(self, now: float, *, certain: bool, known: float = 0.0) -> list[ClaimEffect]:
        """Hold the session.

        If it is not certain that there was no other holder, what came before that one must have seen the claim is lost.
        That does not matter to a holder in doubt that has the client. A holder that grants may have forgotten messages
        from before the time of which it knows all; they are its to answer.
        """
        if self.claim.kind is ClaimKind.PEER and (self._learnt is None or self._learnt.state is None):
            # The gateway that asked has died, or the session has ended there.
            return self._stand_down(Loss.HELD)
        if certain or (self.claim.kind is ClaimKind.HOLDER and self._has_client) or self._claimed_at is None:
            safe_from = 0.0
        else:
            safe_from = self._claimed_at + SKEW_SECONDS
        execute: list[Any] = []
        lose: list[Any] = []
        own = {ident for _, ident in self._taken or ()} if self._kept else set()
        for kept in _unique(self._kept, self._taken_elsewhere | own):
            self._note(kept.ident, now)
            if now - kept.at <= known - SKEW_SECONDS if known else kept.is_safe and kept.at >= safe_from:
                execute.append(kept.message)
            elif not known:
                lose.append(kept.message)
        if known:
            self._knows_since = now - known
        elif self._claimed_at is not None:
            self._knows_since = self._claimed_at
        state, resumed = (None if self._learnt is None else self._learnt.state), True
        if not self._has_state:
            resumed = state is not None
        elif state is not None:
            # A holder in doubt has its own.
            self._forsaken.append(state)
            state = None
        forsaken = self._forsaken
        self.standing, self._has_state, self._learnt = HolderState.ACTIVE, True, None
        self._kept, self._forsaken, self._claimed_at = [], [], None
        return [Activate(state, resumed, lose, execute, forsaken)]

    def _stand_down(self, why: Loss) -> list[ClaimEffect]:
        self.standing = HolderState.PASSIVE
        states = [*self._forsaken, *([] if self._learnt is None else [self._learnt.state])]
        self._forsaken, self._learnt, self._kept = [], None, []
        effects: list[ClaimEffect] = [StandDown(why)]
        forsaken = [state for state in states if state is not None]
        return [*effects, Forsake(forsaken)] if forsaken else effects

    def _note(self, ident: Hashable, at: float) -> None:
        """Remember that a message was taken, so that a claimant which has it, too, does not handle it again."""
        if self._taken is None:
            self._taken = deque(maxlen=MAX_TAKEN)
        self._taken.append((at, ident))

    def forget(self, now: float) -> None:
        """Forget the commands that were taken long ago."""
        while self._taken and now - self._taken[0][0] > KEEP_SECONDS:
            self._taken.popleft()
        if self._taken_elsewhere:
            self._taken_elsewhere &= {ident for _, ident in self._taken or ()}
        if not self._taken:
            self._taken = None

    def _recently_taken(self, now: float) -> Iterable[tuple[float, Hashable]]:
        return [each for each in self._taken or () if now - each[0] <= KEEP_SECONDS]


def _renamed(rank: Rank) -> Rank:
    """Return a rank under another nonce of the same gateway's."""
    name, _, number = rank.nonce.partition(".")
    return rank._replace(nonce=f"{name}.{int(number or 0) + 1}")


def _name(rank: Rank) -> str:
    """Return the part of a nonce that stays the same."""
    return rank.nonce.partition(".")[0]


def _unique(kept: Iterable[Kept], taken: frozenset[Hashable]) -> Iterable[Kept]:
    """Yield each message once, without the commands that were taken before."""
    seen = set(taken)
    for each in kept:
        if each.ident not in seen:
            seen.add(each.ident)
            yield each
