"""The protocol state of one client, without a socket."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from support.played.sessions import (
    AGENT_1,
    AGENT_2,
    CLIENT_ID,
    OWNER,
    REPLY,
    STRANGER,
    USER,
    call,
    codes,
    command,
    dispatched,
    response,
    session,
)

from gateway.capabilities.contracts import Contracts
from gateway.sessions.core.effects import Answer, Arm, Changed, Close, Effect, Ping, Send
from gateway.sessions.core.session import Session, SessionState
from protocol.access import AGENT, Principal
from protocol.errors import (
    BridgeError,
    ClientNotFound,
    Conflict,
    Internal,
    InvalidFrame,
    InvalidParameters,
    Overloaded,
    PermissionDenied,
    RateLimited,
    Unavailable,
    UnknownCapability,
)
from protocol.frames import (
    AckFrame,
    AgentIdentity,
    AppInfo,
    CancelFrame,
    ClientFault,
    CommandFrame,
    ErrorFrame,
    ResponseFrame,
)
from protocol.messages import CommandResponse
from protocol.records import ClientRecord
from protocol.reports import EndReason

GUARDED = {"name": "guarded", "permissions": ["a", "b"], "parameters": {"required": ["x"]}}
LIST = {"type": "component", "id": "list", "actions": {"clear": {"parameters": {"required": ["x"]}}, "show": {}}}


# --- call ---


def test_command_is_sent_and_its_deadline_armed() -> None:
    core = session("add")
    effects = call(core, AGENT_1, command(action="call", parameters={"a": 1}, timeout_ms=1500), "r1", REPLY, 10)
    wire_id = dispatched(effects)
    frame = CommandFrame(wire_id, "add", "call", msgspec.Raw(b'{"a":1}'), 1500, AgentIdentity("agent-1"))
    assert effects == [Send(frame), Arm(wire_id, 11.5)]
    assert wire_id != "r1"
    assert core.is_in_flight(AGENT_1, "r1")


@pytest.mark.parametrize(("given", "used"), [(None, 30_000), (1, 1), (300_000, 300_000), (300_001, 300_000)])
def test_timeout_has_a_default_and_a_maximum(given: int | None, used: int) -> None:
    send, arm = call(session("add"), AGENT_1, command(timeout_ms=given), "r1", REPLY, 0)
    assert isinstance(send, Send)
    assert isinstance(send.frame, CommandFrame)
    assert isinstance(arm, Arm)
    assert (send.frame.timeout_ms, arm.at) == (used, used / 1000)


@pytest.mark.parametrize(
    ("caller", "sent", "error"),
    [
        (AGENT_1, command("nothing"), UnknownCapability),
        (AGENT_1, command("list", action="fly"), UnknownCapability),
        (AGENT_1, command("list"), UnknownCapability),
        (AGENT_1, command("list", action="clear"), InvalidParameters),
        (AGENT_1, command("guarded"), PermissionDenied),
        (Principal("agent-1", AGENT, "default", 0, frozenset({"a"})), command("guarded"), PermissionDenied),
        (Principal("agent-1", AGENT, "default", 0, frozenset({"*"})), command("guarded"), InvalidParameters),
        (STRANGER, command("add"), ClientNotFound),
        (STRANGER, command("nothing"), ClientNotFound),
        (USER, command("add"), ClientNotFound),
        (Principal("agent-1", AGENT, "default", 0, users=frozenset({"user-2"})), command("add"), ClientNotFound),
        (Principal("agent-1", AGENT, "default", 0, apps=frozenset({"todo"})), command("add"), ClientNotFound),
        (Principal("agent-1", AGENT, "default", 0, clients=frozenset()), command("add"), ClientNotFound),
    ],
)
def test_refused_command_raises_and_changes_nothing(caller: Principal, sent: Any, error: type[BridgeError]) -> None:
    core = session("add", GUARDED, LIST)
    with pytest.raises(error) as caught:
        call(core, caller, sent, "r1", REPLY, 0)
    assert type(caught.value) is error
    assert core.commands_in_flight == 0
    assert core.end(0) == []


def test_checks_are_made_in_the_order_of_the_contract() -> None:
    """Each step mends what the former refusal named; the next one must then be the answer."""
    core = session(GUARDED, LIST, max_in_flight=1)
    call(core, AGENT_2, command("list", action="show"), "r1", REPLY, 0)
    limited = Principal("agent-1", AGENT, "default", 0)
    granted = Principal("agent-1", AGENT, "default", 0, frozenset({"a", "b"}))
    for caller, sent, error in [
        (STRANGER, command("nothing"), ClientNotFound),
        (limited, command("nothing"), UnknownCapability),
        (limited, command("guarded"), PermissionDenied),
        (granted, command("guarded"), InvalidParameters),
        (granted, command("guarded", parameters={"x": 1}), Overloaded),
    ]:
        with pytest.raises(error):
            call(core, caller, sent, "r1", REPLY, 0)


def test_function_takes_any_action_and_passes_it_on() -> None:
    effects = call(session("add"), AGENT_1, command(action="whatever"), "r1", REPLY, 0)
    assert isinstance(effects[0], Send)
    assert isinstance(effects[0].frame, CommandFrame)
    assert effects[0].frame.action == "whatever"


def test_client_takes_so_many_commands_at_once() -> None:
    core = session("add", max_in_flight=2)
    wire_id = dispatched(call(core, AGENT_1, command(), "r1", REPLY, 0))
    call(core, AGENT_1, command(), "r2", REPLY, 0)
    with pytest.raises(Overloaded):
        call(core, AGENT_1, command(), "r3", REPLY, 0)
    core.response(response(wire_id), 0)
    call(core, AGENT_1, command(), "r3", REPLY, 0)


def test_command_without_room_is_overloaded_and_changes_nothing() -> None:
    sizes: list[int] = []

    def require_room(size: int) -> None:
        sizes.append(size)
        if size >= 1000:
            raise Overloaded("full")

    core = session("add", require_room=require_room)
    with pytest.raises(Overloaded):
        call(core, AGENT_1, command(parameters={"text": "x" * 1000}), "r1", REPLY, 0)
    assert not core.is_in_flight(AGENT_1, "r1")
    assert core.end(0) == []
    assert 1000 < sizes[0] < 2000


def test_command_without_room_leaves_its_id_free() -> None:
    refusals = [Overloaded("full")]

    def require_room(_: int) -> None:
        if refusals:
            raise refusals.pop()

    core = session("add", require_room=require_room)
    with pytest.raises(Overloaded):
        call(core, AGENT_1, command(), "r1", REPLY, 0)
    dispatched(call(core, AGENT_1, command(), "r1", REPLY, 0))


def test_frames_other_than_commands_need_no_room() -> None:
    asked: list[int] = []
    core = session("add", require_room=asked.append)
    call(core, AGENT_1, command(), "r1", REPLY, 0)
    assert codes(core.cancel(AGENT_1, "r1", "enough", 0)) == ["cancel", "cancelled"]
    assert codes(core.describe({}, "m1")) == ["changed", "ack"]
    assert codes(core.refuse_frame(InvalidFrame("what?"), 0)) == ["error"]
    assert len(asked) == 1


@pytest.mark.parametrize("max_in_flight", [1, 64])
def test_request_id_in_flight_is_a_conflict_even_where_the_client_is_full(max_in_flight: int) -> None:
    core = session("add", max_in_flight=max_in_flight)
    wire_id = dispatched(call(core, AGENT_1, command(), "r1", REPLY, 0))
    with pytest.raises(Conflict):
        call(core, AGENT_1, command(), "r1", REPLY, 0)
    core.response(response(wire_id), 0)
    dispatched(call(core, AGENT_1, command(), "r1", REPLY, 0))


def test_callers_may_use_the_same_request_id() -> None:
    core = session("add")
    first = dispatched(call(core, AGENT_1, command(), "r1", REPLY, 0))
    second = dispatched(call(core, AGENT_2, command(), "r1", REPLY, 0))
    assert first != second


# --- the client's answer ---


def test_answer_of_the_client_ends_the_command() -> None:
    core = session("add")
    wire_id = dispatched(call(core, AGENT_1, command(), "r1", REPLY, 1))
    (answer,) = core.response(response(wire_id, {"sum": 3}), 1.25)
    assert isinstance(answer, Answer)
    assert answer.response == CommandResponse(
        request_id="r1",
        status="success",
        result=msgspec.Raw(b'{"sum":3}'),
        client_id=CLIENT_ID,
        duration_ms=250,
    )
    assert (answer.call.reply, answer.call.sub) == (REPLY, "agent-1")
    assert core.commands_in_flight == 0


@pytest.mark.parametrize(
    ("fault", "message", "details"),
    [
        (None, "the application reported an error", {}),
        ("no such task", "no such task", {}),
        (ClientFault("no", "E_TASK", [1]), "no", {"code": "E_TASK", "details": [1]}),
    ],
)
@pytest.mark.parametrize("status", ["error", "failed"])
def test_error_of_the_client_is_command_failed(status: str, fault: Any, message: str, details: Any) -> None:
    core = session("add")
    wire_id = dispatched(call(core, AGENT_1, command(), "r1", REPLY, 0))
    (answer,) = core.response(ResponseFrame(wire_id, status, error=fault), 0)
    assert isinstance(answer, Answer)
    error = answer.response.error
    assert error is not None
    assert (error.code, error.message, error.retryable, error.details) == ("command_failed", message, False, details)


def test_late_second_and_foreign_responses_are_dropped_and_counted() -> None:
    core = session("add")
    wire_id = dispatched(call(core, AGENT_1, command(), "r1", REPLY, 0))
    assert core.response(response("r1"), 0) == [], "the caller's own id means nothing to the client"
    assert codes(core.response(response(wire_id), 0)) == ["success"]
    assert core.response(response(wire_id), 0) == []
    cancelled = dispatched(call(core, AGENT_1, command(), "r2", REPLY, 0))
    core.cancel(AGENT_1, "r2", "enough", 0)
    assert core.response(response(cancelled), 0) == []
    assert core.late_responses == 3


# --- deadline, cancel, end ---


def test_deadline_cancels_at_the_client_and_answers_timeout() -> None:
    core = session("add")
    wire_id = dispatched(call(core, AGENT_1, command(), "r1", REPLY, 0))
    effects = core.deadline_passed(wire_id, 30)
    assert codes(effects) == ["cancel", "timeout"]
    assert effects[0] == Send(CancelFrame(wire_id, "timeout"))
    assert core.deadline_passed(wire_id, 31) == []
    assert core.commands_in_flight == 0


def test_cancel_reaches_the_client_with_its_reason() -> None:
    core = session("add")
    wire_id = dispatched(call(core, AGENT_1, command(), "r1", REPLY, 0))
    effects = core.cancel(AGENT_1, "r1", "enough", 1)
    assert codes(effects) == ["cancel", "cancelled"]
    assert effects[0] == Send(CancelFrame(wire_id, "enough"))
    assert core.cancel(AGENT_1, "r1", "enough", 1) == []


def test_cancel_of_another_principal_has_no_effect() -> None:
    core = session("add")
    call(core, AGENT_1, command(), "r1", REPLY, 0)
    assert core.cancel(AGENT_2, "r1", "", 0) == []
    with pytest.raises(ClientNotFound):
        core.cancel(STRANGER, "r1", "", 0)
    assert core.is_in_flight(AGENT_1, "r1")
    assert not core.is_in_flight(AGENT_2, "r1")


def test_end_answers_client_lost_to_all_that_waits_and_nothing_comes_after() -> None:
    core = session("add")
    wire_id = dispatched(call(core, AGENT_1, command(), "r1", REPLY, 0))
    call(core, AGENT_2, command(), "r1", REPLY, 1)
    effects = core.end(2)
    assert codes(effects) == ["client_lost", "client_lost"]
    assert [effect.response.duration_ms for effect in effects if isinstance(effect, Answer)] == [2000, 1000]
    assert core.end(3) == []
    assert core.response(response(wire_id), 3) == []
    assert core.deadline_passed(wire_id, 3) == []
    assert core.cancel(AGENT_1, "r1", "", 3) == []
    with pytest.raises(ClientNotFound):
        call(core, AGENT_1, command(), "r2", REPLY, 3)


def test_draining_session_finishes_what_it_has_and_takes_nothing_more() -> None:
    core = session("add")
    wire_id = dispatched(call(core, AGENT_1, command(), "r1", REPLY, 0))
    core.drain()
    with pytest.raises(Unavailable):
        call(core, AGENT_1, command(), "r2", REPLY, 0)
    with pytest.raises(ClientNotFound):
        call(core, STRANGER, command(), "r2", REPLY, 0)
    assert codes(core.response(response(wire_id), 0)) == ["success"]
    core.end(0)
    core.drain()
    assert core.state is SessionState.ENDED


# --- what the client tells of itself ---


def test_registration_replaces_the_whole_list_and_is_acknowledged_by_its_id() -> None:
    core = session("add")
    effects = core.register(Contracts().read([msgspec.Raw(b'"sub"')], OWNER, 0), AppInfo("todo", "1"), {"k": 1}, "f1")
    assert effects == [Changed(), Send(AckFrame("f1"))]
    with pytest.raises(UnknownCapability):
        call(core, AGENT_1, command("add"), "r1", REPLY, 0)
    dispatched(call(core, AGENT_1, command("sub"), "r1", REPLY, 0))
    assert core.record("gw-1", "now") == ClientRecord(
        client_id=CLIENT_ID,
        tenant="default",
        gateway_id="gw-1",
        principal="user-1",
        app={"name": "todo", "version": "1"},
        metadata={"k": 1},
        capabilities=msgspec.Raw(b'[{"type":"function","name":"sub"}]'),
        revision=3,
        connected_at="now",
    )


def test_registration_without_app_and_metadata_keeps_the_former() -> None:
    core = session()
    core.register(Contracts().read([], OWNER, 0), AppInfo("todo"), {"k": 1}, None)
    assert core.register(Contracts().read([], OWNER, 0), None, None, None) == [Changed()]
    assert (core.app, core.metadata) == (AppInfo("todo"), {"k": 1})


def test_what_is_left_out_of_a_list_is_told_instead_of_an_ack_and_stands_in_the_record() -> None:
    core = session("add")
    items = [msgspec.Raw(b'"sub"'), msgspec.Raw(b'{"name":"bad","permission":["admin"]}'), msgspec.Raw(b"7")]
    changed, told = core.register(Contracts().read(items, OWNER, 0), None, None, "f1")
    assert (changed, isinstance(told, Send)) == (Changed(), True)
    assert isinstance(told, Send)
    assert isinstance(told.frame, ErrorFrame)
    assert (told.frame.code, told.frame.id) == ("invalid_frame", "f1")
    assert told.frame.message.startswith("2 of the capabilities left out, the others are registered: `capabilities[1]`")
    assert (told.frame.details["registered"], "more" in told.frame.details) == (1, False)
    refused = told.frame.details["refused"]
    assert [one.name for one in refused] == ["bad", "capabilities[2]"]
    record = core.record("gw-1", "now")
    assert (record.refused, msgspec.json.decode(record.capabilities)) == (
        refused,
        [{"type": "function", "name": "sub"}],
    )
    assert core.register(Contracts().read(items[:1], OWNER, 0), None, None, "f2")[1:] == [Send(AckFrame("f2"))]
    assert core.record("gw-1", "now").refused == ()


def test_client_that_registers_an_odd_capability_over_and_over_is_not_sent_away() -> None:
    core = session()
    contract = Contracts().read([msgspec.Raw(b"7")], OWNER, 0)
    assert all(codes(core.register(contract, None, None, None)) == ["changed", "error"] for _ in range(300))


@pytest.mark.parametrize(
    ("capabilities", "metadata", "field"),
    [
        ([{"name": "big", "description": "x" * 200}], None, "`capabilities`"),
        ([], {"k": "x" * 16 * 1024}, "`metadata`"),
    ],
)
def test_refused_registration_leaves_everything_as_it_was(capabilities: list[Any], metadata: Any, field: str) -> None:
    core = session("add", max_message_bytes=16 * 1024 + 200)
    before = core.record("gw-1", "now")
    contract = Contracts().read([msgspec.Raw(msgspec.json.encode(one)) for one in capabilities], OWNER, 0)
    with pytest.raises(InvalidFrame, match=field):
        core.register(contract, AppInfo("other"), metadata, "f1")
    assert core.record("gw-1", "now") == before
    dispatched(call(core, AGENT_1, command(), "r1", REPLY, 0))


def test_metadata_is_replaced_and_bounded_at_16_kilobytes() -> None:
    core = session()
    room = 16 * 1024 - len('{"k":""}')
    assert core.describe({"k": "x" * room}, "f1") == [Changed(), Send(AckFrame("f1"))]
    with pytest.raises(InvalidFrame, match="16384 bytes"):
        core.describe({"k": "x" * (room + 1)}, "f2")
    assert core.describe({}, None) == [Changed()]
    assert core.metadata == {}


def test_client_that_says_that_its_user_sees_it_is_focused_each_time() -> None:
    core = session()
    for _ in range(2):
        assert core.describe({"visible": True}, None) == [Changed(focused=True)]
    for metadata in ({"visible": False}, {"visible": "true"}, {"visible": 1}, {}):
        assert core.describe(metadata, None) == [Changed()]
    contract = Contracts().read([], OWNER, 0)
    assert core.register(contract, None, {"visible": True}, None) == [Changed(focused=True)]
    assert core.register(contract, None, None, None) == [Changed()]


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        (EndReason.SHUTDOWN, Unavailable),
        (EndReason.CONNECTION_LOST, Unavailable),
        (EndReason.CLOSED, ClientNotFound),
        (EndReason.ADMINISTRATOR, ClientNotFound),
    ],
)
def test_lost_client_is_unavailable_to_those_who_may_see_it(reason: EndReason, error: type[BridgeError]) -> None:
    core = session("add")
    core.end(0, reason)
    for caller, refusal in ((AGENT_1, error), (STRANGER, ClientNotFound)):
        with pytest.raises(refusal):
            call(core, caller, command("add"), "r1", REPLY, 0)


def test_refreshed_token_is_acknowledged_and_counts_from_now_on() -> None:
    core = session()
    fresh = Principal("user-1", "app", "default", 99)
    assert core.refresh(fresh, "f1") == [Send(AckFrame("f1"))]
    assert core.refresh(fresh, None) == []
    assert core.principal is fresh


# --- bad frames ---


def test_more_than_200_bad_frames_in_10_seconds_close() -> None:
    core, bad = session(), InvalidFrame("`type`: what?")
    assert core.refuse_frame(bad, 0, "f1") == [Send(ErrorFrame("invalid_frame", "`type`: what?", "f1"))]
    for number in range(1, 200):
        assert codes(core.refuse_frame(bad, number / 20)) == ["error"]
    assert core.refuse_frame(bad, 10) == [Close(1008, "too many bad frames", EndReason.BAD_FRAMES)]


def test_unreadable_answer_fails_its_command_and_names_it_to_the_client() -> None:
    core = session("add")
    wire_id = dispatched(call(core, AGENT_1, command(), "r1", REPLY, 0))
    answer, error = core.refuse_frame(InvalidFrame("`status`: what?"), 1, answers=(wire_id,))
    assert isinstance(answer, Answer)
    assert answer.response.error is not None
    assert (answer.response.request_id, answer.response.error.code, answer.response.error.details) == (
        "r1",
        "command_failed",
        {"code": "invalid_response"},
    )
    assert "`status`: what?" in answer.response.error.message
    assert error == Send(ErrorFrame("invalid_frame", "`status`: what?", request_id=wire_id))
    assert core.commands_in_flight == 0


def test_application_with_a_broken_function_is_not_sent_away_for_it() -> None:
    core = session("add")
    for number in range(300):
        wire_id = dispatched(call(core, AGENT_1, command(), "r1", REPLY, number / 100))
        effects = core.refuse_frame(InvalidFrame("what?"), number / 100, answers=(wire_id,))
        assert codes(effects) == ["command_failed", "error"]
    bad = [codes(core.refuse_frame(InvalidFrame("what?"), 3, answers=("none",))) for _ in range(201)]
    assert bad == [["error"]] * 200 + [["close 1008"]]


def test_answer_that_a_fault_of_ours_keeps_from_being_read_is_no_fault_of_the_applications() -> None:
    core = session("add")
    wire_id = dispatched(call(core, AGENT_1, command(), "r1", REPLY, 0))
    assert codes(core.refuse_frame(Internal("the gateway failed"), 1, answers=(wire_id,))) == ["internal", "error"]


def test_commands_that_are_lost_with_too_large_a_message_say_so() -> None:
    core = session("add", max_message_bytes=20_000)
    call(core, AGENT_1, command(), "r1", REPLY, 0)
    (answer,) = core.end(1, EndReason.MESSAGE_TOO_LARGE)
    assert isinstance(answer, Answer)
    assert answer.response.error is not None
    assert answer.response.error.code == "client_lost"
    assert answer.response.error.details == {"code": "message_too_large", "maxMessageBytes": 20_000}


def test_bad_frames_of_longer_ago_are_forgotten() -> None:
    core, bad = session(), InvalidFrame("`type`: what?")
    for number in range(1000):
        assert codes(core.refuse_frame(bad, number / 19)) == ["error"]


def test_frames_that_may_be_sent_again_are_no_fault_of_the_client() -> None:
    core, away = session(), Unavailable("NATS is away")
    for number in range(500):
        assert codes(core.refuse_frame(away, number / 10, "f1")) == ["error"]
    assert codes(core.refuse_frame(InvalidFrame("what?"), 50)) == ["error"]


def test_flood_of_refusals_is_told_in_part_and_the_rest_by_the_clock() -> None:
    core, limited = session(), RateLimited("slowly", details={"limit": "client"})
    told = [effect for _ in range(1000) for effect in core.refuse_frame(limited, 0, "f1")]
    assert set(codes(told)) == {"error"}
    [last] = core.tick(1)
    assert last == Send(ErrorFrame("rate_limited", "slowly", "f1", {"limit": "client", "refused": 1000 - len(told)}))
    assert core.tick(2) == []


def test_refused_frame_is_a_sign_of_life() -> None:
    core = session()
    core.tick(25)
    core.refuse_frame(RateLimited("slowly"), 26)
    assert core.tick(50.9) == []


# --- is it there? ---


def test_silent_client_is_pinged_at_its_interval_and_closed_without_a_pong() -> None:
    core = session()
    assert core.tick(24.9) == []
    assert core.tick(25) == [Ping()]
    assert core.tick(32.9) == []
    assert core.tick(33) == [Close(1011, "no pong", EndReason.NO_PONG)]


def test_sign_of_life_starts_the_interval_anew() -> None:
    core = session()
    core.tick(25)
    core.heard(26)
    assert core.tick(40) == []
    assert core.tick(51) == [Ping()]


@pytest.mark.parametrize("interval", [0.5, 1.0])
def test_interval_may_be_shorter_than_the_patience_with_an_unanswered_command(interval: float) -> None:
    core = session(ping_interval_seconds=interval)
    assert core.tick(interval - 0.1) == []
    assert core.tick(interval) == [Ping()]


def test_command_unanswered_for_2_seconds_on_a_silent_socket_is_a_reason_to_ping() -> None:
    core = session("add")
    core.heard(10)
    call(core, AGENT_1, command(), "r1", REPLY, 10)
    assert core.tick(11.9) == []
    assert core.tick(12) == [Ping()]
    assert core.tick(16.9) == []
    assert core.tick(17) == [Close(1011, "no pong", EndReason.NO_PONG)]


def test_client_that_is_heard_is_not_pinged_for_a_slow_command() -> None:
    core = session("add")
    call(core, AGENT_1, command(), "slow", REPLY, 0)
    for now in range(1, 20):
        core.heard(now)
        assert core.tick(now + 0.9) == []


def test_fresh_command_is_no_reason_to_ping() -> None:
    core = session("add")
    call(core, AGENT_1, command(), "r1", REPLY, 20)
    assert core.tick(21.9) == []
    assert core.tick(22) == [Ping()]


def test_answered_commands_are_no_reason_to_ping() -> None:
    core = session("add")
    wire_id = dispatched(call(core, AGENT_1, command(), "r1", REPLY, 0))
    core.response(response(wire_id), 1)
    call(core, AGENT_1, command(), "r2", REPLY, 9)
    assert core.tick(10.9) == []


def test_every_way_to_end_a_command_is_its_only_answer() -> None:
    """Whatever comes first ends the command; the others find nothing to end."""
    endings: dict[str, Callable[[Session, str], list[Effect]]] = {
        "success": lambda core, wire_id: core.response(response(wire_id), 1),
        "timeout": lambda core, wire_id: core.deadline_passed(wire_id, 1),
        "cancelled": lambda core, wire_id: core.cancel(AGENT_1, "r1", "", 1),
        "client_lost": lambda core, wire_id: core.end(1),
    }
    for first, ending in endings.items():
        core = session("add")
        wire_id = dispatched(call(core, AGENT_1, command(), "r1", REPLY, 0))
        told = codes(ending(core, wire_id))
        told += [word for later in endings.values() for word in codes(later(core, wire_id))]
        assert [word for word in told if word != "cancel"] == [first]
