"""How fast commands may come: by agent, by capability, and in the order of a command's checks."""

from typing import Any

import msgspec
import pytest
from support.memory import bytes_left_by
from support.played.sessions import AGENT_1, AGENT_2, REPLY, STRANGER, call, command, session

from gateway.limits.rate_limits import RateLimits
from gateway.sessions.core.session import Session
from protocol.errors import Conflict, InvalidParameters, RateLimited, UnknownCapability
from protocol.records import Offer, Rate

SLOW = {"name": "slow", "rateLimit": {"limit": 2, "perSeconds": 10}, "parameters": {"required": ["x"]}}
ONCE = Rate(per_second=1, burst=1)


def offer(target: str, rate: Rate | None = None) -> Offer:
    return Offer(target, "function", frozenset(), {None: None}, rate)


def paced(per_agent: Rate | None, *capabilities: Any) -> Session:
    return session(*capabilities, rate_limits=RateLimits(per_agent))


def test_an_agent_is_limited_over_all_clients_and_apart_from_others() -> None:
    rate_limits = RateLimits(ONCE)
    rate_limits.keep(AGENT_1, "client-1", offer("add"), 0)
    with pytest.raises(RateLimited, match="this agent may send 1 commands a second and 1 at once") as caught:
        rate_limits.keep(AGENT_1, "client-2", offer("sub"), 0.25)
    assert caught.value.details == {"retryAfterMs": 750, "limit": "agent"}
    rate_limits.keep(AGENT_2, "client-1", offer("add"), 0.25)
    rate_limits.keep(STRANGER, "client-3", offer("add"), 0.25)  # the same `sub` in another tenant is somebody else
    rate_limits.keep(AGENT_1, "client-2", offer("sub"), 1)


def test_a_capability_is_limited_for_all_agents_together_and_for_each_client_apart() -> None:
    rate_limits, rate = RateLimits(), Rate(per_second=0.5, burst=1)
    rate_limits.keep(AGENT_1, "client-1", offer("add", rate), 0)
    with pytest.raises(
        RateLimited, match=r"'add' takes 0\.5 commands a second and 1 at once, of all agents together"
    ) as caught:
        rate_limits.keep(AGENT_2, "client-1", offer("add", rate), 0)
    assert caught.value.details == {"retryAfterMs": 2000, "limit": "capability"}
    rate_limits.keep(AGENT_2, "client-1", offer("sub", rate), 0)
    rate_limits.keep(AGENT_2, "client-1", offer("free"), 0)
    rate_limits.keep(AGENT_2, "client-2", offer("add", rate), 0)
    rate_limits.keep(AGENT_2, "client-1", offer("add", rate), 2)


def test_what_one_limit_refuses_is_not_counted_by_the_other() -> None:
    rate_limits, rate = RateLimits(ONCE), Rate(per_second=0.1, burst=1)
    rate_limits.keep(AGENT_1, "client-1", offer("add", rate), 0)
    with pytest.raises(RateLimited, match="'add' takes"):
        rate_limits.keep(AGENT_1, "client-1", offer("add", rate), 1)
    rate_limits.keep(AGENT_1, "client-1", offer("free"), 1)


def test_limit_comes_after_the_target_and_before_parameters() -> None:
    core = paced(None, SLOW)
    with pytest.raises(UnknownCapability):
        call(core, AGENT_1, command("fast"), "r0", REPLY, 0)
    for request_id in ("r1", "r2"):  # refused parameters count: to check them is what the limit protects, too
        with pytest.raises(InvalidParameters):
            call(core, AGENT_1, command("slow"), request_id, REPLY, 0)
    with pytest.raises(RateLimited, match="'slow'"):
        call(core, AGENT_1, command("slow", parameters={"x": 1}), "r3", REPLY, 0)
    call(core, AGENT_1, command("slow", parameters={"x": 1}), "r3", REPLY, 5)


def test_limit_comes_before_the_room_in_flight() -> None:
    core = paced(Rate(per_second=1, burst=2), "add")
    call(core, AGENT_1, command(), "r1", REPLY, 0)
    with pytest.raises(Conflict):
        call(core, AGENT_1, command(), "r1", REPLY, 0)
    with pytest.raises(RateLimited):
        call(core, AGENT_1, command(), "r1", REPLY, 0)
    assert core.commands_in_flight == 1


def test_a_client_that_registers_again_does_not_refill_its_limit() -> None:
    core = paced(None, SLOW)
    for request_id in ("r1", "r2"):
        call(core, AGENT_1, command("slow", parameters={"x": 1}), request_id, REPLY, 0)
    core.register(session(SLOW, "more").contract, None, None, None)
    with pytest.raises(RateLimited):
        call(core, AGENT_1, command("slow", parameters={"x": 1}), "r3", REPLY, 0)
    core.register(session({**SLOW, "rateLimit": 3}).contract, None, None, None)
    call(core, AGENT_1, command("slow", parameters={"x": 1}), "r3", REPLY, 0)


def test_nothing_is_kept_where_nothing_is_limited() -> None:
    rate_limits = RateLimits()

    def many_call() -> None:
        for number in range(2000):
            caller = msgspec.structs.replace(AGENT_1, sub=f"agent-{number}")
            rate_limits.keep(caller, f"client-{number}", offer("add"), 0)

    assert bytes_left_by(many_call) < 20_000
