"""An agent's socket in whatever order things happen, and whatever bytes come."""

import contextlib
import json
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from support.played.agent_core import Frame, command, socket, success, taken

from agent_api.socket import frames
from agent_api.socket.effects import (
    AgentEffect,
    OrderInFlight,
    SendToAgent,
    StartOrder,
    StopOrder,
)
from agent_api.socket.frames import AgentResponseFrame, CapabilitiesFrame
from agent_api.socket.session import (
    AgentState,
)
from protocol.errors import BridgeError, ClientLost, InvalidFrame


class SocketMachine(RuleBasedStateMachine):
    """An agent with few ids, and shells that finish its commands whenever they like."""

    def __init__(self) -> None:
        super().__init__()
        self.core = socket()
        self.now = 0.0
        self.accepted: list[OrderInFlight] = []
        self.responses: Counter[str] = Counter()
        self.commands: Counter[str] = Counter()
        self.stopped: list[OrderInFlight] = []
        self.finished: list[OrderInFlight] = []

    def perform(self, effects: list[AgentEffect]) -> None:
        for effect in effects:
            match effect:
                case StartOrder(command=running):
                    self.accepted.append(running)
                    self.commands[running.ident] += 1
                case StopOrder(command=running):
                    self.stopped.append(running)
                case SendToAgent(frame=AgentResponseFrame(id=ident)):
                    self.responses[ident] += 1
                case _:
                    pass

    @rule(ident=st.sampled_from("abc"), kind=st.sampled_from(["command", "command", "cancel", "capabilities"]))
    def agent_sends(self, ident: str, kind: str) -> None:
        if self.core.state is AgentState.CLOSED:
            return
        frame = command(ident) if kind == "command" else {"type": kind, "id": ident}
        try:
            self.perform(taken(self.core, frame, self.now))
        except BridgeError as exc:
            self.perform(self.core.refuse(exc, ident, self.now))

    @rule(pick=st.integers(0), good=st.booleans())
    def command_finishes(self, pick: int, good: bool) -> None:
        if self.accepted:
            running = self.accepted[pick % len(self.accepted)]
            if good:
                self.perform(self.core.answered(running, success(), self.now))
            else:
                self.perform(self.core.failed(running, ClientLost("gone"), self.now))
            self.finished.append(running)

    @rule(seconds=st.floats(0, 30))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.perform(self.core.tick(self.now))

    @rule(how=st.sampled_from(["drain", "give_up", "end", "heard", "heard"]))
    def process_decides(self, how: str) -> None:
        match how:
            case "drain":
                self.perform(self.core.drain())
            case "give_up":
                self.perform(self.core.give_up(self.now))
            case "end":
                self.perform(self.core.end())
            case _:
                self.core.heard(self.now)

    @invariant()
    def every_accepted_command_has_one_response_or_waits(self) -> None:
        if self.core.state is not AgentState.CLOSED:
            assert self.commands.total() - self.responses.total() == self.core.commands_in_flight
        for ident, count in self.responses.items():
            assert count <= self.commands[ident]

    @invariant()
    def nothing_is_left_running_behind_a_closed_socket(self) -> None:
        if self.core.state is AgentState.CLOSED:
            assert self.core.commands_in_flight == 0
            assert all(each in self.stopped or each in self.finished for each in self.accepted)


TestSocketMachine = SocketMachine.TestCase
TestSocketMachine.settings = settings(max_examples=60, stateful_step_count=30)


@given(st.binary(max_size=80) | st.text(max_size=80).map(str.encode), st.booleans())
@example(b'{"type":"command","id":"a","command":' + b"[" * 3000, True)
@example(b'{"type":"cancel","id":"\xff"}', True)
@example(b'{"type":"subscribe","id":1}', True)
def test_arbitrary_bytes_are_a_bad_frame_and_nothing_else(data: bytes, text: bool) -> None:
    with pytest.raises(InvalidFrame):
        frames.decode(data, text=text)
    assert frames.identify(data) is None or isinstance(frames.identify(data), str)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)
KINDS = ["command", "cancel", "subscribe", "unsubscribe", "capabilities", "auth", "ping"]
FIELDS = ["id", "token", "command", "clientId", "clientIds", "match", "gather", "any", "events", "clients", "since"]


@given(st.sampled_from(KINDS), st.dictionaries(st.sampled_from(FIELDS), json_values))
def test_frames_of_any_content_are_taken_or_refused(kind: str, fields: Frame) -> None:
    core = socket()
    with contextlib.suppress(BridgeError):
        taken(core, {"type": kind, **fields})


@pytest.mark.parametrize(
    ("frame", "sentence"),
    [
        ({"type": "command", "id": "a", "command": {"target": "f"}, "client_id": "c"}, "`client_id`: .* `clientId`"),
        (
            {"type": "command", "id": "a", "command": {"target": "f", "args": {}}},
            "`command.args`: .* `command.parameters`",
        ),
        ({"type": "subscribe", "id": "a", "events": ["*"], "client_id": "c"}, "`client_id`: .* mean `clientId`"),
        ({"type": "subscribe", "id": "a", "event": ["*"]}, "`event`: .* mean `events`"),
        ({"type": "cancel", "id": "a", "clientId": "c"}, "`clientId`: there is no such field; known are id$"),
        ({"type": "unsubscribe", "id": "a", "ident": "b"}, "`ident`: there is no such field; known are id$"),
        ({"type": "capabilities", "id": "a", "user": "ann"}, "`user`: there is no such field; known are id$"),
        ({"type": "auth", "token": "t", "ID": "a"}, "`ID`: .* mean `id`"),
        ({"type": "ping", "id": "a"}, "`id`: there is no such field$"),
    ],
)
def test_unknown_field_is_refused_and_the_right_one_of_its_frame_named(frame: Frame, sentence: str) -> None:
    with pytest.raises(InvalidFrame, match=sentence):
        frames.decode(json.dumps(frame).encode(), text=True)


def test_empty_lists_of_clients_are_written_out() -> None:
    frame = CapabilitiesFrame("s", 7, True, [], [], ["c1"])
    assert json.loads(frames.encode(frame)) == {
        "type": "capabilities",
        "id": "s",
        "revision": 7,
        "complete": True,
        "added": [],
        "updated": [],
        "removed": ["c1"],
    }
