"""A session without a connection, with another one, and at another gateway."""

import pytest
from support.played.sessions import (  # fmt: skip
    AGENT_1,
    AGENT_2,
    LIMITS,
    REPLY,
    USER,
    call,
    codes,
    command,
    dispatched,
    response,
    session,
)

from gateway.capabilities.contracts import NO_CONTRACT
from gateway.sessions.core.effects import Answer, Arm, Send
from gateway.sessions.core.in_flight import FRAME_BYTES
from gateway.sessions.core.session import Session, SessionState
from protocol.errors import InvalidFrame, Overloaded, PermissionDenied, Unavailable
from protocol.frames import CommandFrame, StopFrame, UnknownFrame
from protocol.shares import GiveBack, Piece, Shares

NOW = 100.0


def keeping(room: int = 10_000) -> tuple[Session, Shares]:
    """Return a session that keeps frames while there is room, and its room."""
    core, shares = session("add"), Shares(room, "full")

    def keep(agent: str, size: int, give_back: GiveBack) -> Piece | None:
        try:
            return shares.ask(("default", agent), size, give_back)
        except Overloaded:
            return None

    core.keep_frames(keep)
    return core, shares


def no_bound(size: int) -> None:
    """Take any size."""


def called(core: Session, request_id: str = "r1", now: float = NOW, **fields: object) -> str:
    return dispatched(call(core, AGENT_1, command(**fields), request_id, REPLY, now))  # type: ignore[arg-type]


def away(core: Session) -> None:
    assert codes(core.detach()) == ["changed"]


def back(core: Session, now: float = NOW) -> list[str]:
    assert codes(core.attach(USER, no_bound, now)) == ["changed"]
    return core.awaited


def test_commands_are_refused_while_the_client_is_away_and_those_under_way_wait() -> None:
    core, _ = keeping()
    wire_id = called(core)
    away(core)
    with pytest.raises(Unavailable):
        call(core, AGENT_1, command(), "r2", REPLY, NOW)
    assert core.tick(NOW + 1000) == []
    assert core.record("gw", "then").state == "detached"
    assert back(core) == [wire_id]
    assert codes(core.response(response(wire_id), NOW)) == ["success"]
    assert core.record("gw", "then").state == "active"


def test_unknown_command_is_sent_once_more_with_the_time_that_is_left() -> None:
    core, shares = keeping()
    wire_id = called(core, timeout_ms=5000, parameters={"a": 1})
    away(core)
    back(core)
    (sent,) = core.unknown(UnknownFrame(wire_id), NOW + 2)
    assert isinstance(sent, Send)
    assert isinstance(sent.frame, CommandFrame)
    assert (sent.frame.request_id, sent.frame.timeout_ms, bytes(sent.frame.parameters)) == (wire_id, 3000, b'{"a":1}')
    with pytest.raises(InvalidFrame):
        core.unknown(UnknownFrame(wire_id), NOW + 2)
    core.response(response(wire_id), NOW)
    assert shares.held == 0


def test_unknown_command_without_its_frame_is_lost() -> None:
    core, shares = keeping(room=600)
    wire_id = called(core)
    shares.ask(("elsewhere", "bob"), 300, lambda _: None)  # the frame of the largest holder gives way
    away(core)
    back(core)
    assert codes(core.unknown(UnknownFrame(wire_id), NOW)) == ["client_lost"]
    assert core.commands_in_flight == 0


def test_one_agents_commands_leave_room_to_keep_those_of_another() -> None:
    core, _ = keeping(room=4 * FRAME_BYTES + 100)
    many = [called(core, f"r{number}") for number in range(4)]
    other = dispatched(call(core, AGENT_2, command(), "r1", REPLY, NOW))
    away(core)
    back(core)
    assert [codes(core.unknown(UnknownFrame(each), NOW)) for each in (*many, other)] == [
        ["command"],
        ["command"],
        ["command"],
        ["client_lost"],  # the newest of the agent that has most
        ["command"],
    ]


def test_unknown_is_for_commands_of_a_former_connection() -> None:
    core, _ = keeping()
    wire_id = called(core)
    with pytest.raises(InvalidFrame):
        core.unknown(UnknownFrame(wire_id), NOW)
    assert codes(core.unknown(UnknownFrame("never-sent", "f1"), NOW)) == ["ack"]
    assert core.late_responses == 1


def test_deadline_ends_a_command_while_the_client_is_away() -> None:
    core, _ = keeping()
    wire_id = called(core)
    away(core)
    assert codes(core.deadline_passed(wire_id, NOW)) == ["cancel", "timeout"]
    assert back(core) == []


def test_session_moves_with_what_is_in_flight() -> None:
    core, shares = keeping()
    wire_id = called(core, timeout_ms=5000)
    call(core, AGENT_2, command(), "r2", REPLY, NOW, "_INBOX.progress")
    snapshot = core.snapshot("then", None, None, NOW + 1)
    assert core.leave(NOW + 1) == []
    assert (core.state, core.commands_in_flight, shares.held) == (SessionState.ENDED, 0, 0)
    with pytest.raises(Unavailable):
        call(core, AGENT_1, command(), "r3", REPLY, NOW)

    there = Session(core.client_id, USER, LIMITS, 0)
    effects = there.arrive(snapshot, core.contract, 50.0)
    assert [each.at for each in effects if isinstance(each, Arm)] == [54.0, 50.0 + 29.0]
    assert there.revision == core.revision
    there.attach(USER, no_bound, 50.0)
    assert len(there.awaited) == 2
    assert there.is_in_flight(AGENT_1, "r1")
    (answer,) = there.response(response(wire_id), 50.5)
    assert isinstance(answer, Answer)
    assert answer.response.duration_ms == 1500
    assert dispatched(call(there, AGENT_1, command(), "r4", REPLY, 51.0)) not in (wire_id, *there.awaited)


def test_command_under_a_key_is_lost_when_the_session_moves() -> None:
    core, _ = keeping()
    call(core, AGENT_1, command(), "r1", REPLY, NOW, reservation="nonce")
    assert core.holds_keys
    assert core.moving(NOW) == []
    assert codes(core.leave(NOW)) == ["client_lost"]


def test_session_that_begins_anew_uses_no_number_again() -> None:
    core = session("add")
    before = {called(core, f"r{number}") for number in range(3)}
    anew = Session(core.client_id, USER, LIMITS, 0)
    anew.begin_anew(1_700_000_000_000)
    with pytest.raises(Unavailable):  # not `unknown_capability`: what the client offers is not known yet
        call(anew, AGENT_1, command(), "r1", REPLY, NOW)
    anew.register(core.contract, None, None, None)
    assert anew.contract is not NO_CONTRACT
    assert called(anew) not in before
    assert anew.revision > core.revision


def test_stop_of_the_user_moves_with_the_session() -> None:
    core, _ = keeping()
    core.user_wishes(StopFrame(AGENT_1.sub, 60), NOW)
    away(core)
    there = session("add")
    there.arrive(core.snapshot("then", None, None, NOW + 1), core.contract, 50.0)
    there.attach(USER, no_bound, 50.0)
    with pytest.raises(PermissionDenied):
        call(there, AGENT_1, command(), "r2", REPLY, 50.0 + 58)
    assert called(there, "r3", 50.0 + 60)
