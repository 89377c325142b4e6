"""Whatever happens in whatever order: exactly one terminal answer to each accepted command, none to a refused one."""

from collections import Counter
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from support.played.sessions import AGENT_1, AGENT_2, REPLY, STRANGER, call, command, response, session

from gateway.sessions.core.effects import Answer, Arm, Close, Effect, Send
from gateway.sessions.core.session import SessionState
from protocol.access import Principal
from protocol.errors import BridgeError, InvalidFrame
from protocol.frames import CancelFrame, CommandFrame, ResponseFrame

callers = st.sampled_from([AGENT_1, AGENT_2, STRANGER])
request_ids = st.sampled_from(["r1", "r2", "r3", "r4"])
GUARDED = {"name": "guarded", "permissions": ["p"], "parameters": {"required": ["x"]}}


class SessionMachine(RuleBasedStateMachine):
    """A client, two agents who share request ids, and one from elsewhere. The model is a table of open commands."""

    def __init__(self) -> None:
        super().__init__()
        self.core = session("add", GUARDED, max_in_flight=3)
        self.now = 0.0
        self.open: dict[str, tuple[str, str]] = {}
        self.sent: list[str] = []
        self.answers: Counter[str] = Counter()

    @rule(seconds=st.floats(0, 20))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        effects = self.core.tick(self.now)
        assert all(not isinstance(effect, Answer) for effect in effects)

    @rule(caller=callers, request_id=request_ids, name=st.sampled_from(["add", "add", "guarded", "none"]))
    def call(self, caller: Principal, request_id: str, name: str) -> None:
        before = dict(self.open)
        free = (caller.sub, request_id) not in self.open.values()
        acceptable = self.core.state is SessionState.ACTIVE and caller is not STRANGER and name == "add" and free
        try:
            effects = call(self.core, caller, command(name), request_id, REPLY, self.now)
        except BridgeError:
            assert not (acceptable and len(self.open) < 3)
            assert self.open == before
            return
        assert acceptable
        self.perform(effects, {"command"})
        self.open[self.sent[-1]] = (caller.sub, request_id)

    @rule(caller=callers, request_id=request_ids)
    def cancel(self, caller: Principal, request_id: str) -> None:
        known = [wire_id for wire_id, key in self.open.items() if key == (caller.sub, request_id)]
        try:
            effects = self.core.cancel(caller, request_id, "enough", self.now)
        except BridgeError:
            assert caller is STRANGER
            return
        assert bool(effects) == bool(known)
        self.perform(effects, {"cancel"})

    @rule(number=st.integers(0, 20), status=st.sampled_from(["success", "error", "odd"]))
    def client_answers_some_command(self, number: int, status: str) -> None:
        wire_id = self.sent[number % len(self.sent)] if self.sent else "never-sent"
        late = self.core.late_responses + (wire_id not in self.open)
        frame = response(wire_id) if status == "success" else ResponseFrame(wire_id, status)
        self.perform(self.core.response(frame, self.now), set())
        assert self.core.late_responses == late

    @rule(number=st.integers(0, 20))
    def client_answers_some_command_unreadably(self, number: int) -> None:
        wire_id = self.sent[number % len(self.sent)] if self.sent else "never-sent"
        effects = self.core.refuse_frame(InvalidFrame("what?"), self.now, answers=(wire_id,))
        assert sum(isinstance(effect, Answer) for effect in effects) == (wire_id in self.open)
        self.perform(effects, {"error"})

    @rule(text=st.text(max_size=8))
    def client_answers_nonsense(self, text: str) -> None:
        assert self.core.response(response(text), self.now) == [] or text in self.sent

    @rule(number=st.integers(0, 20))
    def deadline_passes(self, number: int) -> None:
        if self.sent:
            self.perform(self.core.deadline_passed(self.sent[number % len(self.sent)], self.now), {"cancel"})

    @rule()
    def client_sends_a_bad_frame(self) -> None:
        self.perform(self.core.refuse_frame(InvalidFrame("what?"), self.now), {"error"})

    @rule(metadata=st.dictionaries(st.text(max_size=3), st.integers(), max_size=2))
    def client_describes_itself(self, metadata: dict[str, Any]) -> None:
        if self.core.state is not SessionState.ENDED:
            revision = self.core.revision
            self.core.describe(metadata, None)
            assert self.core.revision == revision + 1

    @rule()
    def drain(self) -> None:
        ended = self.core.state is SessionState.ENDED
        self.core.drain()
        assert self.core.state is (SessionState.ENDED if ended else SessionState.DRAINING)

    @rule()
    def end(self) -> None:
        self.perform(self.core.end(self.now), set())
        assert not self.open

    @invariant()
    def table_of_the_core_is_the_model_s(self) -> None:
        assert self.core.commands_in_flight == len(self.open)
        assert all(
            self.core.is_in_flight(Principal(sub, "agent", "default", 0), ident) for sub, ident in self.open.values()
        )

    def teardown(self) -> None:
        """Whatever is left is answered by the end, and nothing stays in the core."""
        self.perform(self.core.end(self.now), set())
        assert not self.open
        assert set(self.answers) == set(self.sent)
        assert set(self.answers.values()) <= {1}
        assert self.core.commands_in_flight == 0

    def perform(self, effects: list[Effect], frames: set[str]) -> None:
        """Note what the effects say; frames other than these are a fault."""
        for effect in effects:
            match effect:
                case Send(frame=CommandFrame(request_id=wire_id)):
                    assert "command" in frames
                    assert wire_id not in self.sent
                    self.sent.append(wire_id)
                case Send(frame=CancelFrame(request_id=wire_id)):
                    assert "cancel" in frames
                    assert wire_id in self.open
                case Send(frame=frame):
                    assert frame.__struct_config__.tag in frames
                case Answer(call=answered, response=answer, wire_id=wire_id):
                    assert self.open.pop(wire_id) == (answered.sub, answer.request_id)
                    assert not self.core.is_in_flight(Principal(answered.sub, "agent", "default", 0), answer.request_id)
                    self.answers[wire_id] += 1
                    msgspec.json.encode(answer)
                case Arm(wire_id=wire_id, at=at):
                    assert wire_id == self.sent[-1]
                    assert at > self.now
                case Close():
                    assert "error" in frames
                case _:
                    raise AssertionError(f"unexpected {effect}")


TestSession = SessionMachine.TestCase
TestSession.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
