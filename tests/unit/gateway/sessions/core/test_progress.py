"""What callers are told of the progress of their commands, without a socket and with a clock of the test's."""

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.played.sessions import (
    AGENT_1,
    AGENT_2,
    CLIENT_ID,
    REPLY,
    call,
    codes,
    command,
    dispatched,
    response,
    session,
)

from gateway.sessions.core.effects import Answer, Effect
from gateway.sessions.core.progress import INTERVAL_SECONDS, PublishProgress, RemindProgress, wanted_subject
from gateway.sessions.core.session import Session
from protocol.errors import InvalidRequest
from protocol.frames import ProgressFrame
from protocol.messages import ProgressMessage

INBOX = "_INBOX.agent.p1"
MAX_A_SECOND = 20


class Told(NamedTuple):
    """A message and when it left."""

    at: float
    message: ProgressMessage


class Shell:
    """Performs the effects of a core, as the gateway does, up to a time."""

    def __init__(self, core: Session) -> None:
        self.core = core
        self.now = 0.0
        self.told: list[Told] = []
        self.answered_at: float | None = None
        self.reminders: list[RemindProgress] = []

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case PublishProgress(subject=subject, message=message):
                    assert subject == INBOX
                    assert self.answered_at is None, "progress after the answer"
                    self.told.append(Told(self.now, message))
                case RemindProgress():
                    self.reminders.append(effect)
                    assert len(self.reminders) == 1, "a timer for each frame"
                case Answer():
                    self.answered_at = self.now
                case _:
                    pass

    def run_until(self, time: float) -> None:
        """Fire the reminders that are due on the way, each at its time."""
        while self.reminders and self.reminders[0].at <= time:
            reminder = self.reminders.pop()
            self.now = max(self.now, reminder.at)
            self.perform(self.core.progress_due(reminder.wire_id, self.now))
        self.now = time


def begun(*, listens: bool = True) -> tuple[Session, str]:
    """Return a session with a command in flight, and its wire id."""
    core = session("add", "other")
    return core, dispatched(call(core, AGENT_1, command(), "r1", REPLY, 0, INBOX if listens else None))


@given(
    pauses=st.lists(st.one_of(st.just(0.0), st.floats(0, 0.2), st.just(INTERVAL_SECONDS)), min_size=1, max_size=120),
    last_pause=st.floats(0, 0.2),
    ends=st.sampled_from(["response", "deadline", "cancel", "disconnect"]),
)
def test_progress_is_capped_and_in_order_and_its_last_word_comes_before_the_answer(
    pauses: list[float], last_pause: float, ends: str
) -> None:
    core, wire_id = begun()
    shell = Shell(core)
    for number, pause in enumerate(pauses):
        shell.run_until(shell.now + pause)
        shell.perform(core.progress(ProgressFrame(wire_id, number), shell.now))
    shell.run_until(shell.now + last_pause)
    ending = {
        "response": lambda: core.response(response(wire_id), shell.now),
        "deadline": lambda: core.deadline_passed(wire_id, shell.now),
        "cancel": lambda: core.cancel(AGENT_1, "r1", "enough", shell.now),
        "disconnect": lambda: core.end(shell.now),
    }
    shell.perform(ending[ends]())
    shell.run_until(shell.now + 1)

    values = [told.message.progress for told in shell.told]
    assert shell.answered_at is not None
    assert [told.message.seq for told in shell.told] == list(range(1, len(values) + 1))
    assert values == sorted(set(values))
    assert (values[0], values[-1]) == (0, len(pauses) - 1)
    for begins, _ in shell.told:
        assert sum(begins <= told.at < begins + 1 for told in shell.told) <= MAX_A_SECOND


@given(pauses=st.lists(st.floats(0, 0.2), min_size=1, max_size=60))
def test_word_waits_no_longer_than_the_interval(pauses: list[float]) -> None:
    core, wire_id = begun()
    shell = Shell(core)
    for number, pause in enumerate(pauses):
        shell.run_until(shell.now + pause)
        shell.perform(core.progress(ProgressFrame(wire_id, number), shell.now))
    said = shell.now
    shell.run_until(said + INTERVAL_SECONDS)
    assert shell.told[-1].message.progress == len(pauses) - 1
    assert shell.told[-1].at <= said + INTERVAL_SECONDS


def test_newest_word_takes_the_place_of_one_that_waits() -> None:
    core, wire_id = begun()
    effects = [core.progress(ProgressFrame(wire_id, number), 1) for number in range(4)]
    assert [codes(each) for each in effects] == [["progress 1: 0"], ["remind"], [], []]
    assert codes(core.progress_due(wire_id, 1 + INTERVAL_SECONDS)) == ["progress 2: 3"]
    assert core.progress_due(wire_id, 2) == []


def test_early_reminder_is_asked_for_again() -> None:
    core, wire_id = begun()
    core.progress(ProgressFrame(wire_id, 1), 1)
    (reminder,) = core.progress(ProgressFrame(wire_id, 2), 1)
    assert core.progress_due(wire_id, 1.01) == [reminder]


def test_message_carries_all_that_the_application_said_under_the_caller_s_own_id() -> None:
    core, wire_id = begun()
    (tell,) = core.progress(ProgressFrame(wire_id, 1, 3, "one of three"), 1)
    message = ProgressMessage(request_id="r1", seq=1, progress=1, total=3, message="one of three", client_id=CLIENT_ID)
    assert tell == PublishProgress(INBOX, message)


def test_progress_that_nobody_asked_for_costs_nothing() -> None:
    core, wire_id = begun(listens=False)
    assert core.progress(ProgressFrame(wire_id, 1), 1) == []
    assert core.progress_due(wire_id, 1) == []
    assert codes(core.response(response(wire_id), 1)) == ["success"]
    assert core.late_progress == 0


def test_late_and_invented_progress_is_counted_and_dropped() -> None:
    core, wire_id = begun()
    core.response(response(wire_id), 1)
    assert core.progress(ProgressFrame(wire_id, 1), 1) == []
    assert core.progress(ProgressFrame("never-sent", 1), 1) == []
    assert core.progress_due(wire_id, 2) == []
    assert (core.late_progress, core.late_responses) == (2, 0)


def test_progress_does_not_extend_the_deadline() -> None:
    core = session("add")
    _, arm = call(core, AGENT_1, command(timeout_ms=1000), "r1", REPLY, 0, INBOX)
    wire_id = dispatched([_, arm])
    assert codes(core.progress(ProgressFrame(wire_id, 1), 0.99)) == ["progress 1: 1"]
    assert codes(core.deadline_passed(wire_id, 1)) == ["cancel", "timeout"]


def test_each_command_has_its_own_pace() -> None:
    core, first = begun()
    second = dispatched(call(core, AGENT_2, command("other"), "r1", REPLY, 0, "_INBOX.agent.p2"))
    for wire_id in (first, second):
        assert codes(core.progress(ProgressFrame(wire_id, 1), 1)) == ["progress 1: 1"]


@pytest.mark.parametrize(
    "subject",
    ["", REPLY, "_INBOX", "_INBOX.", "_INBOX.*", "_INBOX.a.>", "agentbridge.t.event.c.x", "_INBOX." + "a" * 256],
)
def test_progress_goes_to_an_inbox_that_is_not_the_answer_s(subject: str) -> None:
    with pytest.raises(InvalidRequest, match="Agentbridge-Progress"):
        wanted_subject({"Agentbridge-Progress": subject}, REPLY)


@pytest.mark.parametrize("headers", [None, {}, {"Authorization": "Bearer t"}])
def test_command_without_the_header_has_no_progress(headers: dict[str, str] | None) -> None:
    assert wanted_subject(headers, REPLY) is None
