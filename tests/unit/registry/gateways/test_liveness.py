"""The registry's view of a gateway's life, by events and a fake clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.gateways.liveness import (
    FORGET_SECONDS,
    GONE_SECONDS,
    SILENCES,
    GatewayState,
    IllegalEvent,
    Liveness,
    LivenessEffect,
    LivenessEvent,
)

NO_ANSWER = (LivenessEvent.NO_RESPONDERS, LivenessEvent.SILENCE)
Told = list[tuple[LivenessEvent, float]]


def after(*told: tuple[LivenessEvent, float]) -> tuple[Liveness, list[LivenessEffect]]:
    liveness = Liveness()
    effects = [liveness.handle(event, now) for event, now in told]
    return liveness, [effect for effect in effects if effect]


def suspect(now: float = 0.0) -> Told:
    return [(LivenessEvent.SILENCE, now)] * SILENCES


def test_two_no_responders_far_enough_apart_make_a_suspect() -> None:
    liveness, effects = after((LivenessEvent.NO_RESPONDERS, 0), (LivenessEvent.NO_RESPONDERS, GONE_SECONDS))
    assert (liveness.state, effects) == (GatewayState.SUSPECT, [LivenessEffect.ASK_PEERS])


def test_no_responders_in_quick_succession_prove_nothing() -> None:
    liveness, effects = after(*[(LivenessEvent.NO_RESPONDERS, tenth / 10) for tenth in range(15)])
    assert (liveness.state, effects) == (GatewayState.DOUBTED, [])


def test_three_silences_make_a_suspect() -> None:
    assert after(*suspect())[1] == [LivenessEffect.ASK_PEERS]
    assert after(*suspect()[:-1])[1] == []


@pytest.mark.parametrize("relief", [LivenessEvent.PONG, LivenessEvent.BLIND])
def test_doubt_begins_anew_after(relief: LivenessEvent) -> None:
    told = [
        (LivenessEvent.NO_RESPONDERS, 0.0),
        (LivenessEvent.SILENCE, 0.5),
        (LivenessEvent.SILENCE, 1.0),
        (relief, 1.2),
    ]
    liveness, effects = after(*told, (LivenessEvent.SILENCE, 1.5), (LivenessEvent.NO_RESPONDERS, 1.6))
    assert (liveness.state, effects) == (GatewayState.DOUBTED, [])


def test_suspect_without_a_veto_is_withdrawn() -> None:
    liveness, effects = after(*suspect(), (LivenessEvent.NO_VETO, 0.2))
    assert (liveness.state, effects) == (GatewayState.LOST, [LivenessEffect.ASK_PEERS, LivenessEffect.WITHDRAW])


def test_suspect_that_answers_is_synced() -> None:
    liveness, effects = after(*suspect(), (LivenessEvent.PONG, 0.2))
    assert (liveness.state, effects) == (GatewayState.TRUSTED, [LivenessEffect.ASK_PEERS, LivenessEffect.SYNC])


def test_veto_calls_for_new_evidence_and_for_a_sync_once_it_answers() -> None:
    vouched = [*suspect(), (LivenessEvent.VETO, 0.2)]
    assert after(*vouched)[0].state is GatewayState.VOUCHED
    assert after(*vouched, *suspect(1.0))[1] == [LivenessEffect.ASK_PEERS, LivenessEffect.ASK_PEERS]
    assert after(*vouched, (LivenessEvent.PONG, 0.5))[1] == [LivenessEffect.ASK_PEERS, LivenessEffect.SYNC]


def test_suspect_is_spared_when_nats_goes_away() -> None:
    liveness, effects = after(*suspect(), (LivenessEvent.BLIND, 0.2))
    assert (liveness.state, effects) == (GatewayState.VOUCHED, [LivenessEffect.ASK_PEERS])


def test_lost_gateway_that_returns_is_synced() -> None:
    liveness, effects = after(*suspect(), (LivenessEvent.NO_VETO, 0.2), (LivenessEvent.PONG, 30))
    assert (liveness.state, effects[-1]) == (GatewayState.TRUSTED, LivenessEffect.SYNC)


def test_lost_gateway_is_forgotten_after_a_while() -> None:
    told = [
        *suspect(),
        (LivenessEvent.NO_VETO, 0.2),
        *suspect(FORGET_SECONDS),
        (LivenessEvent.NO_VETO, FORGET_SECONDS + 0.2),
    ]
    liveness, effects = after(*told)
    assert (liveness.state, effects[-1]) == (GatewayState.FORGOTTEN, LivenessEffect.FORGET)


def test_gateway_lost_twice_is_not_forgotten_for_the_first_time() -> None:
    told = [
        *suspect(),
        (LivenessEvent.NO_VETO, 0.2),
        (LivenessEvent.PONG, 50.0),
        *suspect(FORGET_SECONDS),
        (LivenessEvent.NO_VETO, 60.2),
    ]
    assert after(*told)[0].state is GatewayState.LOST


@pytest.mark.parametrize("event", [LivenessEvent.VETO, LivenessEvent.NO_VETO])
def test_verdict_that_nobody_asked_for_is_refused_and_changes_nothing(event: LivenessEvent) -> None:
    liveness, _ = after((LivenessEvent.SILENCE, 0), (LivenessEvent.SILENCE, 0))
    with pytest.raises(IllegalEvent):
        liveness.handle(event, 0)
    assert liveness.handle(LivenessEvent.SILENCE, 0) is LivenessEffect.ASK_PEERS


@pytest.mark.parametrize(
    "event", [LivenessEvent.PONG, LivenessEvent.NO_RESPONDERS, LivenessEvent.SILENCE, LivenessEvent.BLIND]
)
@pytest.mark.parametrize("state", [state for state in GatewayState if state is not GatewayState.FORGOTTEN])
def test_whatever_a_ping_brings_to_light_is_taken_in_every_state(state: GatewayState, event: LivenessEvent) -> None:
    liveness = Liveness()
    liveness.state = state
    liveness.handle(event, 0)
    assert liveness.state is not GatewayState.FORGOTTEN


def test_suspect_of_whom_no_verdict_came_stays_one() -> None:
    liveness, effects = after(*suspect(), (LivenessEvent.NO_RESPONDERS, 0.5), (LivenessEvent.SILENCE, 1.0))
    assert (liveness.state, effects) == (GatewayState.SUSPECT, [LivenessEffect.ASK_PEERS] * 2)


@given(st.lists(st.tuples(st.sampled_from(LivenessEvent), st.floats(0.01, 2)), max_size=60))
def test_whatever_happens_clients_are_withdrawn_only_on_enough_evidence(
    steps: list[tuple[LivenessEvent, float]],
) -> None:
    liveness, now = Liveness(), 0.0
    evidence: Told = []
    for event, passed in steps:
        now += passed
        before = liveness.state
        try:
            effect = liveness.handle(event, now)
        except IllegalEvent:
            assert liveness.state is before
            continue
        if effect is LivenessEffect.ASK_PEERS:
            assert is_enough([*evidence, (event, now)])
        assert (effect in (LivenessEffect.WITHDRAW, LivenessEffect.FORGET)) == (event is LivenessEvent.NO_VETO)
        assert (effect is LivenessEffect.SYNC) == (
            event is LivenessEvent.PONG and before not in (GatewayState.TRUSTED, GatewayState.DOUBTED)
        )
        evidence = [*evidence, (event, now)] if event in NO_ANSWER else []


def is_enough(evidence: Told) -> bool:
    gone = [now for event, now in evidence if event is LivenessEvent.NO_RESPONDERS]
    silences = len(evidence) - len(gone)
    return silences >= SILENCES or (len(gone) >= 2 and gone[-1] - gone[0] >= GONE_SECONDS)
