"""Which agents work at a client, how often it is told, and whom its user has stopped."""

import pytest
from support.played.sessions import AGENT_1, AGENT_2, REPLY, call, codes, command, dispatched, session

from gateway.sessions.core.effects import Answer, Effect, Send
from gateway.sessions.core.presence import MAX_AGENTS, Presence, StoppedAgents
from protocol.errors import PermissionDenied
from protocol.frames import ActiveAgent, AgentsFrame, AllowFrame, ResponseFrame, ServerFrame, StopFrame

EPOCH = 1_767_225_600.0  # 2026-01-01T00:00:00Z


def told(*agents: ActiveAgent) -> AgentsFrame:
    return AgentsFrame(list(agents))


def test_agent_is_told_from_its_first_command_until_a_minute_after_its_last() -> None:
    presence = Presence(EPOCH)
    assert presence.due(0.0) == told()
    presence.began("a", "Ann", 1.0)
    assert presence.due(1.0) == told(ActiveAgent("a", 1, "2026-01-01T00:00:01.000Z", "Ann"))
    presence.ended("a", 5.0)
    assert presence.due(5.0) == told(ActiveAgent("a", 0, "2026-01-01T00:00:01.000Z", "Ann"))
    assert presence.due(64.9) is None
    assert presence.due(65.0) == told()


def test_agent_with_a_long_command_stays() -> None:
    presence = Presence(EPOCH)
    presence.began("a", None, 0.0)
    presence.due(0.0)
    assert presence.due(500.0) is None


def test_client_is_told_twice_a_second_at_most() -> None:
    presence, frames = Presence(EPOCH), 0
    for hundredth in range(300):
        presence.began("a", None, hundredth / 100)
        frames += presence.due(hundredth / 100) is not None
    assert frames == 6


def test_agents_beyond_the_bound_displace_those_who_were_active_first() -> None:
    presence = Presence(EPOCH)
    for number in range(MAX_AGENTS + 1):
        presence.began(f"a{number}", None, 0.0)
    frame = presence.due(1.0)
    assert frame is not None
    assert [agent.id for agent in frame.agents] == [f"a{number}" for number in range(1, MAX_AGENTS + 1)]


def test_stopped_agent_is_refused_for_as_long_as_the_user_says() -> None:
    stopped = StoppedAgents()
    stopped.stop("a", 10.0, 0.0)
    with pytest.raises(PermissionDenied) as refusal:
        stopped.require_allowed("a", 9.9)
    assert refusal.value.details == {"by": "user", "retryAfterMs": 100}
    stopped.require_allowed("b", 9.9)
    stopped.require_allowed("a", 10.0)


@pytest.mark.parametrize("allowed", ["a", None])
def test_allowed_agent_may_go_on(allowed: str | None) -> None:
    stopped = StoppedAgents()
    stopped.stop("a", None, 0.0)
    stopped.allow(allowed)
    stopped.require_allowed("a", 1.0)


def test_all_agents_may_be_stopped() -> None:
    stopped = StoppedAgents()
    stopped.stop(None, None, 0.0)
    with pytest.raises(PermissionDenied):
        stopped.require_allowed("anyone", 59.9)
    stopped.require_allowed("anyone", 60.0)


def test_memory_of_who_is_stopped_is_bounded() -> None:
    stopped = StoppedAgents()
    for number in range(1000):
        stopped.stop(f"a{number}", 1e300, 0.0)
    with pytest.raises(PermissionDenied):
        stopped.require_allowed("a999", 86_399.0)
    stopped.require_allowed("a0", 1.0)
    stopped.require_allowed("a999", 86_400.0)


# --- in a session ---


def test_session_tells_agents_only_to_a_client_that_wants_it() -> None:
    core = session("add")
    assert codes(call(core, AGENT_1, command(), "r1", REPLY, 1.0)) == ["command", "arm"]
    core.want_agents(True, EPOCH)
    assert sent(core.tick(1.5)) == [told(ActiveAgent("agent-1", 1, "2026-01-01T00:00:01.000Z"))]
    assert codes(call(core, AGENT_2, command(), "r2", REPLY, 2.0)) == ["command", "arm", "agents"]
    core.want_agents(False, EPOCH)
    assert codes(call(core, AGENT_2, command(), "r3", REPLY, 9.0)) == ["command", "arm"]


def test_user_stops_one_agent_and_the_others_go_on() -> None:
    core = session("add")
    call(core, AGENT_1, command(), "r1", REPLY, 0.0)
    call(core, AGENT_2, command(), "r2", REPLY, 0.0)

    effects = core.user_wishes(StopFrame("agent-1", id="f1"), 1.0)

    assert codes(effects) == ["cancel", "cancelled", "ack"]
    [answer] = [effect.response for effect in effects if isinstance(effect, Answer)]
    assert answer.error is not None
    assert answer.error.details == {"by": "user"}
    with pytest.raises(PermissionDenied):
        call(core, AGENT_1, command(), "r3", REPLY, 2.0)
    call(core, AGENT_2, command(), "r4", REPLY, 2.0)
    assert codes(core.user_wishes(AllowFrame("agent-1", "f2"), 3.0)) == ["ack"]
    call(core, AGENT_1, command(), "r5", REPLY, 3.0)


def test_answer_that_the_user_has_confirmed_is_known_as_that() -> None:
    core = session("add")
    for confirmed, expected in (("user", True), ("nobody", False), (7, False)):
        wire_id = dispatched(call(core, AGENT_1, command(), "r1", REPLY, 0.0))
        [answer] = core.response(ResponseFrame(wire_id, "success", confirmed=confirmed), 1.0)
        assert isinstance(answer, Answer)
        assert answer.confirmed is expected


def sent(effects: list[Effect]) -> list[ServerFrame]:
    return [effect.frame for effect in effects if isinstance(effect, Send)]
