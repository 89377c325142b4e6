"""Gateways that claim one session in every order of messages: one executes, nothing twice, every command is settled.

The bag holds each message for each gateway. A message to a gateway that is awake and connected comes within `SKEW`, in
any order, perhaps twice; an announced claim or an answer may be lost, but not all repetitions of it. A frozen gateway
gets its messages when it wakes, in any order, and notices. One whose connection breaks gets none of those that were
under way, and notices before the next one.
"""

import itertools
from collections import Counter
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gateway.sessions.core.resume import (
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
    """Something under way to one part."""

    def __init__(self, to: "Part", kind: str, content: Any, sent: float, *, may_be_lost: bool) -> None:
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
        self.cut = self.dead = self.must_doubt = False
        self.wake_at: float | None = None
        self.in_flight: set[int] = set()
        self.lost_in_a_row = 0
        self.holding: SessionClaim

    @property
    def hears(self) -> bool:
        return not (self.dead or self.cut or self.frozen_at is not None)

    def export(self) -> frozenset[int]:
        state, self.in_flight = frozenset(self.in_flight), set()
        return state

    def perform(self, effects: list[ClaimEffect]) -> None:  # noqa: C901  one case for each effect
        for effect in effects:
            match effect:
                case Announce(claim=claim, wake_at=at):
                    self.wake_at = at
                    for part in self.machine.parts:
                        self.machine.send(part, "claim", (claim, self.name), may_be_lost=True)
                case Yield(to=to, grant=grant):
                    self.machine.answer(to, "grant", grant, may_be_lost=True)
                case Pass(to=to, grant=grant):
                    self.machine.answer(to, "grant", grant, may_be_lost=True)
                case Held(to=to, generation=generation):
                    self.machine.answer(to, "held", generation, may_be_lost=True)
                case Refuse(to=to):
                    self.machine.answer(to, "refused", None, may_be_lost=True)
                case Activate(state=state, lose=lose, execute=execute, forsaken=forsaken):
                    assert state is not None or self.holding.claim.kind is not ClaimKind.PEER
                    self.in_flight |= state or frozenset()
                    for number in execute:
                        self.execute(number)
                    self.machine.lose([*lose, *itertools.chain.from_iterable(forsaken)])
                case StandDown():
                    self.machine.lose(self.in_flight)
                    self.in_flight = set()
                case Forsake(states=states):
                    self.machine.lose(itertools.chain.from_iterable(states))

    def execute(self, number: int) -> None:
        self.machine.executions[number] += 1
        self.in_flight.add(number)

    def notice_gap(self) -> None:
        if self.must_doubt:
            self.must_doubt = False
            self.perform(self.holding.doubt(self.machine.now))

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
            case "held", generation:
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

    def answer(self, name: str, kind: str, content: Any, *, may_be_lost: bool) -> None:
        for part in self.parts:
            if part.name == name:
                self.send(part, kind, content, may_be_lost=may_be_lost)

    def deliver(self, message: Message) -> None:
        self.bag.remove(message)
        message.to.handle(message)

    def lose(self, numbers: Any) -> None:
        self.lost.update(numbers)

    def _ready(self) -> list[Message]:
        return [message for message in self.bag if message.to.hears]

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
        ready = [each for each in self._ready() if each.may_be_lost and each.to.lost_in_a_row < 2]
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
            if part.hears and part.announces_at is not None and self.now >= part.announces_at:
                part.announces_at = None
                part.notice_gap()
                part.perform(part.holding.announce(self.now, nobody_was_there=part.nobody))
            elif part.hears and part.wake_at is not None and self.now >= part.wake_at:
                part.wake_at = None
                part.notice_gap()
                part.perform(part.holding.wake(self.now))

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
        part.must_doubt |= self.now - part.frozen_at >= FROZEN_SECONDS
        part.frozen_at = None

    @rule(data=st.data())
    def connection_breaks(self, data: st.DataObject) -> None:
        part = self._alive(data)
        if part is not None:
            part.cut = part.must_doubt = True
            self.bag = [message for message in self.bag if message.to is not part]

    @rule(data=st.data())
    def connection_is_back(self, data: st.DataObject) -> None:
        cut = [part for part in self.parts if part.cut and not part.dead]
        if cut:
            data.draw(st.sampled_from(cut)).cut = False

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
        assert not [number for number, count in self.lost.items() if count > 1]
        assert not [each for part in self.parts if not part.dead for each in part.in_flight if each in self.lost]

    def teardown(self) -> None:
        """When all has come to rest, one gateway at the most holds the session, and has what is in flight."""
        for part in self.parts:
            part.cut = False
            if part.frozen_at is not None and not part.dead:
                self._thaw(part)
        self.command_is_sent()
        for _ in range(int(4 * SILENCE_SECONDS / STEP)):
            self.step()
        self.command_is_sent()
        for _ in range(int(2 * SILENCE_SECONDS / STEP)):
            self.step()
        alive = [part for part in self.parts if not part.dead]
        active = [part for part in alive if part.holding.standing is HolderState.ACTIVE]
        assert len(active) <= 1
        assert not [part for part in alive if part.holding.standing is HolderState.CLAIMING]
        assert not [part for part in alive if part not in active and part.in_flight]
        self.nothing_is_executed_twice()
        self.no_command_is_at_two_gateways()
        self.nobody_is_told_lost_twice_or_of_a_command_that_goes_on()
        if active and len(alive) == 1 and alive[0].subscribed_at == 0.0 and len(self.parts) == 1:
            assert self.executions[self.commands] == 1


TestClaims = ClaimMachine.TestCase
TestClaims.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
