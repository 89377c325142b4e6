"""Gateways that claim one session in every order of messages: one executes, nothing twice, every command is settled.

The bag holds each message for each gateway. A message to a gateway that is awake and connected comes within `SKEW`, in
any order, perhaps twice; an announced claim or an answer may be lost, but not all repetitions of it. A frozen gateway
gets its messages when it wakes, in any order, and notices. One whose connection breaks gets none of those that were
under way, sends nothing, and may come back long after the others have settled. Meanwhile it goes on: it handles what
had come before the break, and its claims have no echo. It counts the break at once, or with the return if nothing told
it before, and the return as well, as `ClaimService` does.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gateway.sessions.core.resume import (
    REPEAT_SECONDS,
    SILENCE_SECONDS,
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
    Pass,
    Rank,
    Refuse,
    SessionClaim,
    StandDown,
    Yield,
)

FROZEN_SECONDS = 1.0
STEP = SKEW_SECONDS / 2
GATEWAYS = 3


class Message:
    """Something under way to one part. One that `has_come` is in its process, and outlives a break."""

    def __init__(self, to: "Part", kind: str, content: Any, sent: float, *, may_be_lost: bool) -> None:
        self.has_come = False
        self.to = to
        self.kind = kind
        self.content = content
        self.sent = sent
        self.may_be_lost = may_be_lost


class Part:
    """One gateway's part in the session: its core, its commands in flight, and its connection."""

    def __init__(self, machine: "ClaimMachine", name: str) -> None:
        self.machine = machine
        self.name = name
        self.frozen_at: float | None = None
        self.subscribed_at: float | None = None
        self.announces_at: float | None = None
        self.nobody = False
        self.cut = self.dead = False
        self.connected = True  # for all that it knows
        self.gaps = self.noticed = 0  # the breaks, returns and freezes so far, and when it looked last
        self.wake_at: float | None = None
        self.in_flight: set[int] = set()
        self.told: set[int] = set()  # whose callers have heard that they are lost, here or from the holder
        self.lost_in_a_row = 0
        self.holding: SessionClaim

    @property
    def runs(self) -> bool:
        return not self.dead and self.frozen_at is None

    @property
    def hears(self) -> bool:
        return self.runs and not self.cut

    def lose_connection(self, *, is_noticed: bool) -> None:
        self.cut, self.connected = True, not is_noticed
        self.gaps += is_noticed

    def return_to_nats(self) -> None:
        for message in [each for each in self.machine.bag if each.to is self]:
            self.machine.deliver(message)
        self.gaps += 1 + self.connected  # the break that it has not noticed before, and the return
        self.cut, self.connected = False, True

    def export(self) -> frozenset[int]:
        state, self.in_flight = frozenset(self.in_flight), set()
        return state

    def perform(self, effects: list[ClaimEffect]) -> None:  # noqa: C901  one case for each effect
        for effect in effects:
            match effect:
                case Announce(claim=claim, wake_at=at):
                    self.wake_at = at
                    for part in self.machine.parts:
                        self.send(part, "claim", (claim, self.name))
                case Yield(to=to, grant=grant):
                    self.answer(to, "grant", grant)
                case Pass(to=to, grant=grant):
                    state = None if grant.state is None else grant.state - self.told
                    self.answer(to, "grant", grant._replace(state=state))
                case Held(to=to, generation=generation):
                    self.answer(to, "held", (generation, frozenset(self.told)))
                case Refuse(to=to):
                    self.answer(to, "refused", None)
                case Activate(state=state, lose=lose, execute=execute, forsaken=forsaken):
                    assert state is not None or self.holding.claim.kind is not ClaimKind.PEER
                    self.in_flight |= state or frozenset()
                    for number in execute:
                        self.execute(number)
                    self.lose([*lose, *itertools.chain.from_iterable(forsaken)])
                case StandDown():
                    self.lose(self.in_flight)
                    self.in_flight = set()
                case Forsake(states=states):
                    self.lose(itertools.chain.from_iterable(states))

    def lose(self, numbers: Iterable[int]) -> None:
        lost = set(numbers) - self.told
        self.told |= lost
        if not self.cut:  # else nobody hears it
            self.machine.lost.update(lost)

    def send(self, to: "Part", kind: str, content: Any) -> None:
        if not self.cut:
            self.machine.send(to, kind, content, may_be_lost=True)

    def answer(self, name: str, kind: str, content: Any) -> None:
        for part in self.machine.parts:
            if part.name == name:
                self.send(part, kind, content)

    def execute(self, number: int) -> None:
        self.machine.executions[number] += 1
        self.in_flight.add(number)

    def notice_gap(self) -> None:
        if self.noticed != self.gaps:
            self.noticed = self.gaps
            self.perform(self.holding.doubt(self.machine.now, has_client=self.machine.client_at == self.name))

    def look_at_clock(self) -> None:
        """Announce or wake if that is due."""
        now = self.machine.now
        if self.announces_at is not None and now >= self.announces_at:
            self.announces_at = None
            self.notice_gap()
            self.perform(self.holding.announce(now, nobody_was_there=self.nobody))
        elif self.wake_at is not None and now >= self.wake_at:
            if not self.connected:
                self.wake_at = now + REPEAT_SECONDS
                return
            self.wake_at = None
            self.notice_gap()
            self.perform(self.holding.wake(now))

    def handle(self, message: Message) -> None:
        now = self.machine.now
        self.notice_gap()
        match message.kind, message.content:
            case "command", number:
                if self.holding.take(number, number, now) is Fate.EXECUTE:
                    self.execute(number)
            case "claim", (Claim() as claim, name):
                self.perform(self.holding.hear_claim(claim, name, now))
            case "grant", Grant() as grant:
                self.perform(self.holding.hear_grant(grant, now))
            case "held", (generation, told):
                self.told |= told
                self.perform(self.holding.hear_held(generation, now))
            case "refused", _:
                self.perform(self.holding.hear_refusal())


class ClaimMachine(RuleBasedStateMachine):
    """A client that goes from gateway to gateway, with one token used twice at times, while commands come."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.bag: list[Message] = []
        self.parts: list[Part] = []
        self.commands = 0
        self.client_at = "first"
        self.has_silent_break = False
        self.executions: Counter[int] = Counter()
        self.lost: Counter[int] = Counter()

    @initialize()
    def begin(self) -> None:
        first = Part(self, "first")
        first.holding = SessionClaim(first.export, Claim(Rank(1, "first"), ClaimKind.CLIENT, 1), 1)
        first.subscribed_at = 0.0
        self.parts.append(first)

    # --- the network ---

    def send(self, to: Part, kind: str, content: Any, *, may_be_lost: bool = False) -> None:
        if not to.dead and not to.cut and to.subscribed_at is not None:
            self.bag.append(Message(to, kind, content, self.now, may_be_lost=may_be_lost))

    def deliver(self, message: Message) -> None:
        self.bag.remove(message)
        message.to.handle(message)

    def _ready(self) -> list[Message]:
        return [message for message in self.bag if message.to.runs and (message.has_come or not message.to.cut)]

    @rule(data=st.data())
    def message_comes(self, data: st.DataObject) -> None:
        ready = self._ready()
        if ready:
            self.deliver(data.draw(st.sampled_from(ready)))

    @rule(data=st.data())
    def message_comes_twice(self, data: st.DataObject) -> None:
        ready = [message for message in self._ready() if message.kind != "command"]
        if ready:
            message = data.draw(st.sampled_from(ready))
            message.to.handle(message)

    @rule(data=st.data())
    def message_is_lost(self, data: st.DataObject) -> None:
        ready = [each for each in self._ready() if each.may_be_lost and not each.has_come and each.to.lost_in_a_row < 2]
        if ready:
            message = data.draw(st.sampled_from(ready))
            message.to.lost_in_a_row += 1
            self.bag.remove(message)

    @rule(steps=st.integers(1, 8))
    def time_passes(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        """Let a little time pass, and with it deliver what must have come by then."""
        self.now += STEP
        while due := [each for each in self._ready() if self.now - each.sent >= SKEW_SECONDS - STEP / 2]:
            self.deliver(due[0])
        for part in self.parts:
            if part.runs:
                part.look_at_clock()

    # --- agents, the client, faults ---

    @rule()
    def command_is_sent(self) -> None:
        self.commands += 1
        for part in self.parts:
            self.send(part, "command", self.commands)

    def _join(self, kind: ClaimKind, serial: int, generation: int) -> None:
        part = Part(self, f"n{len(self.parts)}")
        part.nobody = not any(
            each.subscribed_at is not None and not each.dead and not each.cut and self.now - each.subscribed_at >= 0
            for each in self.parts
        )
        part.holding = SessionClaim(part.export, Claim(Rank(generation, part.name), kind, serial), serial, held=False)
        part.subscribed_at = self.now
        part.announces_at = self.now + SKEW_SECONDS
        self.parts.append(part)
        if kind is ClaimKind.CLIENT:
            self.client_at = part.name

    @rule(back=st.integers(0, 2), skew=st.integers(-3, 3))
    def client_comes(self, back: int, skew: int) -> None:
        if sum(not part.dead for part in self.parts) < GATEWAYS:
            known = sorted(part.holding.rank.generation for part in self.parts)
            serial = known[-1 - min(back, len(known) - 1)]
            self._join(ClaimKind.CLIENT, serial, max(serial + 1, serial + skew))

    @rule(data=st.data())
    def peer_is_asked(self, data: st.DataObject) -> None:
        active = [part for part in self.parts if part.holding.standing is HolderState.ACTIVE and part.hears]
        if active and sum(not part.dead for part in self.parts) < GATEWAYS:
            asker = data.draw(st.sampled_from(active))
            self._join(ClaimKind.PEER, 0, asker.holding.rank.generation + 1)

    def _alive(self, data: st.DataObject) -> Part | None:
        alive = [part for part in self.parts if part.hears]
        return data.draw(st.sampled_from(alive)) if alive else None

    @rule(data=st.data())
    def gateway_dies(self, data: st.DataObject) -> None:
        part = self._alive(data)
        if part is not None:
            part.dead = True
            self.bag = [message for message in self.bag if message.to is not part]

    @rule(data=st.data())
    def gateway_freezes(self, data: st.DataObject) -> None:
        part = self._alive(data)
        if part is not None:
            self.freeze(part)

    def freeze(self, part: Part) -> None:
        for message in [each for each in self.bag if each.to is part]:  # not between two that came together
            self.deliver(message)
        part.frozen_at = self.now

    @rule(data=st.data())
    def gateway_thaws(self, data: st.DataObject) -> None:
        frozen = [part for part in self.parts if part.frozen_at is not None and not part.dead]
        if frozen:
            self._thaw(data.draw(st.sampled_from(frozen)))

    def _thaw(self, part: Part) -> None:
        assert part.frozen_at is not None
        part.gaps += self.now - part.frozen_at >= FROZEN_SECONDS
        part.frozen_at = None

    @rule(data=st.data(), is_noticed=st.booleans(), have_come=st.integers(0, 2))
    def connection_breaks(self, data: st.DataObject, is_noticed: bool, have_come: int) -> None:
        part = self._alive(data)
        if part is not None:
            self.cut_off(part, is_noticed=is_noticed, have_come=have_come)

    def cut_off(self, part: Part, *, is_noticed: bool = True, have_come: int = 0) -> None:
        part.lose_connection(is_noticed=is_noticed)
        self.has_silent_break |= not is_noticed
        under_way = [message for message in self.bag if message.to is part]
        for message in under_way[:have_come]:
            message.has_come = True
        self.bag = [message for message in self.bag if message.to is not part or message.has_come]

    @rule(data=st.data())
    def connection_is_back(self, data: st.DataObject) -> None:
        cut = [part for part in self.parts if part.cut and not part.dead]
        if cut:
            data.draw(st.sampled_from(cut)).return_to_nats()

    # --- what must hold ---

    @invariant()
    def nothing_is_executed_twice(self) -> None:
        assert not [number for number, count in self.executions.items() if count > 1]

    @invariant()
    def no_command_is_at_two_gateways(self) -> None:
        held = Counter(number for part in self.parts if not part.dead for number in part.in_flight)
        assert not [number for number, count in held.items() if count > 1]

    @invariant()
    def nobody_is_told_lost_twice_or_of_a_command_that_goes_on(self) -> None:
        """Holds while gateways know when they are cut off: one that does not may execute what others give up."""
        if self.has_silent_break:
            return
        assert not [number for number, count in self.lost.items() if count > 1]
        assert not [each for part in self.parts if not part.dead for each in part.in_flight if each in self.lost]

    def teardown(self) -> None:
        """When all has come to rest, one gateway at the most holds the session, and has what is in flight.

        Those that are cut off come back one after the other, when the rest has settled without them.
        """
        for part in self.parts:
            if part.frozen_at is not None and not part.dead:
                self._thaw(part)
        self._settle()
        for part in self.parts:
            if part.cut and not part.dead:
                part.return_to_nats()
                self._settle()
        self.command_is_sent()
        for _ in range(int(2 * SILENCE_SECONDS / STEP)):
            self.step()
        alive = [part for part in self.parts if not part.dead]
        active = [part for part in alive if part.holding.standing is HolderState.ACTIVE]
        assert len(active) <= 1
        assert not [part for part in alive if part.holding.standing is HolderState.CLAIMING]
        assert not [part for part in alive if part not in active and part.in_flight]
        assert self.executions[self.commands] == len(active)
        self.nothing_is_executed_twice()
        self.no_command_is_at_two_gateways()
        self.nobody_is_told_lost_twice_or_of_a_command_that_goes_on()

    def _settle(self) -> None:
        """Let all who hear come to rest: a message makes those doubt that have missed something."""
        self.command_is_sent()
        for _ in range(int(4 * SILENCE_SECONDS / STEP)):
            self.step()


TestClaims = ClaimMachine.TestCase
TestClaims.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


# --- orders in which an earlier version executed a command twice, or had two holders ---


@pytest.fixture
def machine() -> Iterator[ClaimMachine]:
    """A machine whose first part holds the session; at the end all comes to rest, and must be right."""
    machine = ClaimMachine()
    machine.begin()
    yield machine
    machine.teardown()


def joined(machine: ClaimMachine, generation: int, kind: ClaimKind = ClaimKind.CLIENT) -> Part:
    """Have another gateway claim the session from now on."""
    machine._join(kind, 1, generation)
    return machine.parts[-1]


def deliver_to(part: Part, kind: str) -> None:
    """Deliver the first message of a kind that is under way to a part."""
    machine = part.machine
    machine.deliver(next(each for each in machine.bag if each.to is part and each.kind == kind))


def test_connection_breaks_and_returns_during_a_claim(machine: ClaimMachine) -> None:
    """The proof that nobody was there is worth nothing after it, and the claimant must look again when it is back."""
    (first,) = machine.parts
    machine.cut_off(first)
    claimant = joined(machine, 2)
    machine.cut_off(claimant)
    machine.time_passes(4)  # it has announced, to nobody
    first.return_to_nats()
    machine.command_is_sent()
    machine.time_passes(40)
    claimant.return_to_nats()
    machine.command_is_sent()
    deliver_to(first, "command")
    deliver_to(claimant, "command")


def test_rival_holds_the_session_when_the_heir_is_back(machine: ClaimMachine) -> None:
    """The former holder, which was frozen, has granted the session to a claimant that was cut off meanwhile."""
    (first,) = machine.parts
    machine.freeze(first)
    heir = joined(machine, 3)
    machine.time_passes(3)
    machine.cut_off(heir)
    joined(machine, 4)
    machine._thaw(first)


def test_message_is_kept_longer_than_the_holder_remembers_it(machine: ClaimMachine) -> None:
    (first,) = machine.parts
    claimant = joined(machine, 2, ClaimKind.PEER)
    machine.command_is_sent()
    deliver_to(first, "command")
    deliver_to(claimant, "command")
    machine.cut_off(claimant)
    machine.time_passes(8)
    for _ in range(30):
        machine.time_passes(8)


def test_grant_overtakes_the_command_that_it_tells_of(machine: ClaimMachine) -> None:
    (first,) = machine.parts
    claimant = joined(machine, 2)
    machine.time_passes(3)
    machine.command_is_sent()
    deliver_to(first, "command")
    deliver_to(first, "claim")
    deliver_to(claimant, "grant")


def test_proof_of_one_claimant_says_nothing_of_what_another_has_kept(machine: ClaimMachine) -> None:
    (first,) = machine.parts
    kept = joined(machine, 4)
    machine.command_is_sent()
    deliver_to(first, "command")
    deliver_to(kept, "command")
    machine.cut_off(kept)
    machine.cut_off(first)
    joined(machine, 2)
    machine.time_passes(1)
    kept.return_to_nats()


def test_claimant_whose_connection_broke_without_a_sign_executes_nothing(machine: ClaimMachine) -> None:
    (first,) = machine.parts
    machine.cut_off(first)
    claimant = joined(machine, 2)  # with the proof that nobody is there
    first.return_to_nats()
    machine.command_is_sent()
    deliver_to(first, "command")
    deliver_to(claimant, "command")
    machine.cut_off(claimant, is_noticed=False)
    machine.time_passes(8)
    assert claimant.holding.standing is HolderState.CLAIMING


def test_callers_hear_once_that_a_frozen_gateways_command_is_lost(machine: ClaimMachine) -> None:
    (first,) = machine.parts
    joined(machine, 2)
    machine.command_is_sent()
    machine.freeze(first)
    machine.time_passes(45)
    machine._thaw(first)
