"""An agent's socket without a socket: one response to each accepted command, whatever happens in whatever order."""

import json

import msgspec
import pytest
from support.played.agent_core import (
    ANN,
    Frame,
    codes,
    command,
    opened,
    progress,
    sent,
    socket,
    started,
    success,
    taken,
)

from agent_api.commands.gather import Gathered
from agent_api.socket import frames
from agent_api.socket.effects import (
    CloseAgent,
    LeaveStream,
    OfferToAgent,
    PingAgent,
    SendToAgent,
    StopOrder,
    VerifyToken,
)
from agent_api.socket.frames import AgentErrorFrame, AgentProgressFrame, AgentResponseFrame
from agent_api.socket.session import (
    MAX_HELD_BYTES,
    MAX_IN_FLIGHT,
    MAX_IN_FLIGHT_BYTES,
    MAX_STREAMS,
    AgentState,
)
from protocol.errors import ClientLost, Code, Conflict, InvalidFrame, Overloaded, Unavailable
from protocol.frames import AckFrame, PongFrame
from protocol.runtime.websocket.bad_frames import MAX_BAD_FRAMES

# --- commands ---


def test_answer_becomes_the_response() -> None:
    core = socket()
    effects = core.answered(started(core), success(), now=1)
    expected = AgentResponseFrame(
        id="a", request_id="r", status="success", result=msgspec.Raw(b"1"), client_id="c1", duration_ms=5
    )
    assert [frames.encode(frame) for frame in sent(effects)] == [frames.encode(expected)]
    assert core.commands_in_flight == 0


def test_error_becomes_the_response_with_the_time_it_took() -> None:
    core = socket()
    [frame] = sent(core.failed(started(core), ClientLost("gone"), now=2))
    assert (frame.status, frame.error.code, frame.client_id, frame.duration_ms) == ("error", "client_lost", "c1", 2000)


def test_answer_that_was_remembered_is_marked() -> None:
    core = socket()
    first, again = (
        sent(core.answered(started(core), success(replayed=replayed), now=1))[0] for replayed in (False, True)
    )
    assert b"replayed" not in frames.encode(first)
    assert b'"replayed":true' in frames.encode(again)


def test_what_several_clients_said_is_one_response() -> None:
    core = socket()
    gathered = Gathered({"c1": msgspec.Raw(b"{}")}, complete=False)
    [frame] = sent(core.answered(started(core), gathered, now=0.5))
    assert json.loads(frames.encode(frame)) == {
        "type": "response",
        "id": "a",
        "requestId": "r",
        "status": "success",
        "results": {"c1": {}},
        "complete": False,
        "durationMs": 500,
    }


def test_cancel_is_answered_and_what_comes_later_is_dropped() -> None:
    core = socket()
    running = started(core)
    effects = taken(core, {"type": "cancel", "id": "a"}, now=1)
    assert (effects[0], codes(effects)) == (StopOrder(running), [Code.CANCELLED])
    assert core.answered(running, success(), now=1) == []
    assert core.failed(running, ClientLost("gone"), now=1) == []


def test_late_answer_to_a_cancelled_command_is_not_the_answer_to_its_successor() -> None:
    core = socket()
    first = started(core)
    taken(core, {"type": "cancel", "id": "a"})
    second = started(core)
    assert core.answered(first, success(), now=1) == []
    assert len(core.answered(second, success(), now=1)) == 1


def test_bounds_on_commands_are_overloads() -> None:
    many, heavy = socket(), socket()
    for number in range(MAX_IN_FLIGHT):
        started(many, str(number))
    with pytest.raises(Overloaded):
        taken(many, command("more"))
    taken(heavy, command("a"), size=MAX_IN_FLIGHT_BYTES)
    with pytest.raises(Overloaded):
        taken(heavy, command("b"), size=1)
    taken(heavy, {"type": "cancel", "id": "a"})
    taken(heavy, command("b"), size=1)


@pytest.mark.parametrize("first", [command(), {"type": "capabilities", "id": "a"}])
@pytest.mark.parametrize("second", [command(), {"type": "subscribe", "id": "a", "clients": True}])
def test_id_in_use_is_a_conflict(first: Frame, second: Frame) -> None:
    core = socket()
    taken(core, first)
    with pytest.raises(Conflict):
        taken(core, second)


# --- progress ---


def test_progress_is_passed_on_until_the_response() -> None:
    core = socket()
    running = started(core)
    effects = core.progressed(running, "c1", progress(1), congested=False)
    assert effects == [SendToAgent(AgentProgressFrame(id="a", client_id="c1", seq=1, progress=1.0))]
    core.answered(running, success(), now=1)
    assert core.progressed(running, "c1", progress(2), congested=False) == []


def test_slow_agent_gets_the_newest_progress_before_the_response() -> None:
    core = socket()
    running = started(core)
    for seq in (1, 2, 3):
        assert core.progressed(running, "c1", progress(seq), congested=True) == []
    held, response = sent(core.answered(running, success(), now=1))
    assert (held.seq, response.status) == (3, "success")


def test_held_progress_is_forgotten_for_a_newer_one() -> None:
    core = socket()
    running = started(core)
    core.progressed(running, "c1", progress(1), congested=True)
    core.progressed(running, "c1", progress(2), congested=False)
    assert len(sent(core.answered(running, success(), now=1))) == 1


def test_progress_held_for_a_slow_agent_is_bounded_in_bytes_and_responses_are_not_dropped() -> None:
    """An agent that has stalled, and an application that tells much of each of its commands."""
    core = socket()
    running = [started(core, str(number)) for number in range(20)]
    large = msgspec.structs.replace(progress(1), data=msgspec.Raw(b"1" * (MAX_HELD_BYTES // 4)))
    for each in running:
        for client_id in ("c1", "c2"):
            assert core.progressed(each, client_id, large, congested=True) == []
    kinds = [[type(effect) for effect in core.answered(each, success(), now=1)] for each in running]
    assert kinds == [[SendToAgent]] * 18 + [[OfferToAgent, OfferToAgent, SendToAgent]] * 2


def test_newest_progress_is_held_however_large_it_is() -> None:
    core = socket()
    running = started(core)
    for seq in (1, 2):
        large = msgspec.structs.replace(progress(seq), data=msgspec.Raw(b"1" * MAX_HELD_BYTES * 2))
        core.progressed(running, f"c{seq}", large, congested=True)
    held, _ = sent(core.answered(running, success(), now=1))
    assert held.seq == 2


# --- what is told unasked ---


def test_subscription_is_told_until_it_is_ended() -> None:
    core = socket()
    stream = opened(core, {"type": "subscribe", "id": "s", "events": ["todo.*"]})
    assert core.tells(stream)
    assert taken(core, {"type": "unsubscribe", "id": "s"}) == [LeaveStream(stream), SendToAgent(AckFrame("s"))]
    assert not core.tells(stream)
    assert core.ended(stream, Overloaded("slow")) == []


def test_end_of_a_subscription_is_told_and_frees_its_id() -> None:
    core = socket()
    stream = opened(core, {"type": "capabilities", "id": "s"})
    assert sent(core.ended(stream, Overloaded("slow"))) == [
        AgentErrorFrame("overloaded", "slow", retryable=True, id="s")
    ]
    opened(core, {"type": "capabilities", "id": "s"})


def test_unsubscribing_what_has_ended_is_acknowledged() -> None:
    assert taken(socket(), {"type": "unsubscribe", "id": "s"}) == [SendToAgent(AckFrame("s"))]


def test_too_many_subscriptions_are_an_overload() -> None:
    core = socket()
    for number in range(MAX_STREAMS):
        opened(core, {"type": "subscribe", "id": str(number), "clients": True})
    with pytest.raises(Overloaded):
        taken(core, {"type": "subscribe", "id": "more", "clients": True})


def test_capabilities_are_told_once_a_socket() -> None:
    core = socket()
    opened(core, {"type": "capabilities", "id": "one"})
    with pytest.raises(Overloaded):
        taken(core, {"type": "capabilities", "id": "two"})
    taken(core, {"type": "unsubscribe", "id": "one"})
    opened(core, {"type": "capabilities", "id": "two"})


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "events"),
        ({"events": [""]}, "events"),
        ({"events": ["é" * 200]}, "events"),
        ({"events": ["x"] * 33}, "events"),
        ({"clients": True, "clientId": "a.b"}, "clientId"),
        ({"clients": True, "user": ""}, "user"),
        ({"clients": True, "since": "1" * 300}, "since"),
    ],
)
def test_subscription_that_means_nothing_is_a_bad_frame(fields: Frame, field: str) -> None:
    with pytest.raises(InvalidFrame, match=field):
        taken(socket(), {"type": "subscribe", "id": "s", **fields})


def test_star_alone_is_every_event() -> None:
    stream = opened(socket(), {"type": "subscribe", "id": "s", "events": ["todo", "*"], "user": "ann"})
    assert stream.filters is not None
    assert (stream.filters.names, stream.filters.changes, stream.filters.user) == (None, False, "ann")


# --- token, keepalive, bad frames ---


def test_fresh_token_is_verified_one_at_a_time() -> None:
    core = socket()
    [effect] = taken(core, {"type": "auth", "token": "t", "id": "x"})
    assert isinstance(effect, VerifyToken)
    with pytest.raises(Overloaded):
        taken(core, {"type": "auth", "token": "t"})
    later = msgspec.structs.replace(ANN, expires_at=9.0)
    assert core.refreshed(later, "x") == [SendToAgent(AckFrame("x"))]
    assert core.principal is later
    taken(core, {"type": "auth", "token": "t"})


def test_ping_is_answered() -> None:
    assert taken(socket(), {"type": "ping"}) == [SendToAgent(PongFrame())]


def test_silent_agent_is_pinged_and_closed_where_no_pong_comes() -> None:
    core = socket()
    assert core.tick(24.9) == []
    assert core.tick(25) == [PingAgent()]
    assert core.tick(32.9) == []
    assert core.tick(33) == [CloseAgent(1011, "no pong")]
    assert core.tick(34) == []


def test_pong_is_a_sign_of_life() -> None:
    core = socket()
    core.tick(25)
    core.heard(26)
    assert core.tick(50) == []


def test_more_than_200_bad_frames_in_10_seconds_close() -> None:
    core = socket()
    bad = InvalidFrame("bad")
    for number in range(MAX_BAD_FRAMES):
        assert codes(core.refuse(bad, None, now=number / 100)) == ["invalid_frame"]
    assert core.refuse(bad, None, now=3) == [CloseAgent(1008, "too many bad frames")]
    assert core.state is AgentState.CLOSED


def test_refusals_that_may_be_repeated_are_no_bad_frames() -> None:
    core = socket()
    for _ in range(MAX_BAD_FRAMES * 2):
        core.refuse(Overloaded("busy"), "a", now=0)
    assert core.state is AgentState.OPEN


# --- the end ---


def test_drain_closes_where_nothing_is_in_flight() -> None:
    assert socket().drain() == [CloseAgent(1012, "the agent API is shutting down")]


def test_drain_waits_for_responses_and_takes_nothing_new() -> None:
    core = socket()
    running = started(core)
    assert core.drain() == []
    with pytest.raises(Unavailable):
        taken(core, command("b"))
    response, close = core.answered(running, success(), now=1)
    assert isinstance(response, SendToAgent)
    assert isinstance(close, CloseAgent)
    assert close.code == 1012


def test_giving_up_tells_what_is_cancelled_and_closes() -> None:
    core = socket()
    running = started(core)
    effects = core.give_up(now=1)
    assert (effects[0], codes(effects), effects[-1].code) == (StopOrder(running), [Code.CANCELLED], 1012)  # type: ignore[union-attr]
    assert core.give_up(now=1) == []


def test_giving_up_an_idle_socket_closes_it() -> None:
    assert socket().give_up(now=1) == [CloseAgent(1012, "the agent API is shutting down")]


def test_end_cancels_commands_and_ends_subscriptions() -> None:
    core = socket()
    running, stream = started(core), opened(core, {"type": "capabilities", "id": "s"})
    assert core.end() == [StopOrder(running), LeaveStream(stream)]
    assert core.answered(running, success(), now=1) == []
