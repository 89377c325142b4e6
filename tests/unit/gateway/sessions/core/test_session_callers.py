"""What a session owes to callers: under which ids commands are theirs, and when they are taken for gone."""

import pytest
from support.played.sessions import AGENT_1, AGENT_2, REPLY, STRANGER, call, command, dispatched, session

from gateway.sessions.core.effects import Answer, Send
from gateway.sessions.core.session import ABANDONED_SECONDS
from protocol.access import AGENT, Principal
from protocol.errors import Conflict
from protocol.frames import AppInfo, CancelFrame

OF_TODO = Principal("agent-1", AGENT, "default", float("inf"), apps=frozenset({"todo"}))


def test_command_that_its_caller_no_longer_asks_after_is_withdrawn() -> None:
    core = session("add")
    wire_id = dispatched(call(core, AGENT_1, command(probed=True), "r1", REPLY, 0))
    assert core.abandon(ABANDONED_SECONDS, 0) == []
    cancel, answer = core.abandon(ABANDONED_SECONDS + 0.1, 0)
    assert cancel == Send(CancelFrame(wire_id, "the caller is gone"))
    assert isinstance(answer, Answer)
    assert answer.response.error is not None
    assert answer.response.error.code == "cancelled"
    assert core.commands_in_flight == 0


def test_asking_keeps_a_command_waiting() -> None:
    core = session("add")
    call(core, AGENT_1, command(probed=True), "r1", REPLY, 0)
    assert core.is_asked_after(AGENT_1, "r1", 7)
    assert core.abandon(7 + ABANDONED_SECONDS, 0) == []
    assert len(core.abandon(7.1 + ABANDONED_SECONDS, 0)) == 2
    assert not core.is_asked_after(AGENT_1, "r1", 8 + ABANDONED_SECONDS)


def test_nobody_else_s_question_keeps_a_command_waiting() -> None:
    core = session("add")
    call(core, AGENT_1, command(probed=True), "r1", REPLY, 0)
    assert not core.is_asked_after(AGENT_2, "r1", 7)
    assert not core.is_asked_after(STRANGER, "r1", 7)
    assert len(core.abandon(ABANDONED_SECONDS + 0.1, 0)) == 2


def test_time_without_sight_does_not_count_against_callers() -> None:
    core = session("add")
    call(core, AGENT_1, command(probed=True), "r1", REPLY, 0)
    assert core.abandon(30, reachable_since=25) == []
    assert len(core.abandon(35.1, reachable_since=25)) == 2


def test_command_of_a_caller_who_promised_nothing_waits_for_its_deadline() -> None:
    core = session("add")
    call(core, AGENT_1, command(), "r1", REPLY, 0)
    assert core.abandon(1000, 0) == []
    assert core.is_asked_after(AGENT_1, "r1", 1000)
    assert core.abandon(2000, 0) == []


def test_caller_s_own_id_in_flight_is_a_conflict_under_whichever_id_it_comes() -> None:
    core = session("add")
    call(core, AGENT_1, command(caller_request_id="mine"), "minted-1", REPLY, 0)
    call(core, AGENT_1, command(), "plain", REPLY, 0)
    for own_id in ("mine", "plain"):
        with pytest.raises(Conflict):
            call(core, AGENT_1, command(caller_request_id=own_id), "minted-2", REPLY, 0)
    call(core, AGENT_2, command(caller_request_id="mine"), "minted-3", REPLY, 0)
    assert core.commands_in_flight == 3


def test_command_is_its_caller_s_though_the_application_has_come_to_call_itself_something_else() -> None:
    core = session("add")
    core.register(core.contract, AppInfo("todo"), None, None)
    call(core, OF_TODO, command(), "r1", REPLY, 0)
    core.register(core.contract, AppInfo("renamed"), None, None)
    assert core.is_in_flight(OF_TODO, "r1")
    assert len(core.cancel(OF_TODO, "r1", "enough", 1)) == 2


def test_namesake_of_another_tenant_has_no_command_here() -> None:
    core = session("add")
    call(core, AGENT_1, command(), "r1", REPLY, 0)
    assert not core.is_in_flight(STRANGER, "r1")


def test_command_under_a_key_is_not_asked_after_by_its_own_id() -> None:
    """Callers of a key come and go, and are asked after as waiting requests; the command itself is nobody's."""
    core = session("add")
    call(core, AGENT_1, command(probed=True), "r1", REPLY, 0, reservation="reservation-1")
    assert core.abandon(10 * ABANDONED_SECONDS, 0) == []
