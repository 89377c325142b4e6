"""Which commands are lost and which are not, by what probes of their gateway say."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
from nats.aio.msg import Msg
from support.nats.nats_server import NatsServer
from support.played.stage import C1, OUTCOME, SILENCE, UNKNOWN, Stage, ended, staged
from support.wait import subscribed, until

from protocol import subjects
from protocol.errors import ClientLost
from protocol.runtime.commands.evidence import Doubt, Evidence


@pytest.fixture
async def stage(private_nats: NatsServer) -> AsyncIterator[Stage]:
    async with staged(private_nats.url) as made:
        yield made


# --- it is lost ---


async def test_killed_gateway_is_client_lost_within_2_seconds(stage: Stage) -> None:
    gateway = await stage.gateway()
    call = stage.start()
    await gateway.reached()
    await gateway.vanish()
    assert isinstance(await ended(call, 2), ClientLost)


async def test_gateway_killed_long_after_the_command_is_client_lost_within_2_seconds(stage: Stage) -> None:
    gateway = await stage.gateway()
    call = stage.start()
    await until(lambda: len(gateway.probes) == 2)
    await gateway.vanish()
    assert isinstance(await ended(call, 2), ClientLost)


async def test_silent_gateway_is_client_lost_within_3_seconds_and_the_command_cancelled(stage: Stage) -> None:
    gateway = await stage.gateway(SILENCE)
    call = stage.start("r1")
    await gateway.reached()
    assert isinstance(await ended(call, 3), ClientLost)
    await until(lambda: gateway.cancels)
    assert gateway.cancels[0]["requestId"] == "r1"


async def test_lost_command_with_a_key_is_not_cancelled(stage: Stage) -> None:
    gateway = await stage.gateway(SILENCE)
    calls = [stage.start("r1", key="k"), stage.start("r2")]
    await gateway.reached(2)
    assert [type(await ended(call, 3)) for call in calls] == [ClientLost] * 2
    await until(lambda: gateway.cancels)
    assert [cancel["requestId"] for cancel in gateway.cancels] == ["r2"]


async def test_many_commands_on_a_silent_gateway_are_all_lost_within_3_seconds(stage: Stage) -> None:
    """More than fit into one probe."""
    gateway = await stage.gateway(SILENCE)
    calls = [stage.start(f"r{number}") for number in range(600)]
    await gateway.reached(600)
    async with asyncio.timeout(3.5):
        await asyncio.wait(calls)
    assert {type(call.exception()) for call in calls} == {ClientLost}


async def test_tap_that_counts_as_interest_is_found_out_by_its_silence(stage: Stage) -> None:
    tap = await stage.client()
    await tap.subscribe("agentbridge.>")
    await subscribed(tap)
    assert isinstance(await ended(stage.start(), 3), ClientLost)


async def test_gateway_that_does_not_know_the_command_is_client_lost(stage: Stage) -> None:
    gateway = await stage.gateway(UNKNOWN)
    call = stage.start()
    await gateway.reached()
    assert isinstance(await ended(call, 2), ClientLost)


# --- it is not ---


async def test_slow_application_is_not_lost(stage: Stage) -> None:
    gateway = await stage.gateway()
    call = stage.start()
    await until(lambda: len(gateway.probes) >= 4, 6)
    assert not call.done()
    await gateway.answer()
    assert (await call).status == "success"
    assert gateway.cancels == []


async def test_lost_reply_is_recovered_by_a_probe(stage: Stage) -> None:
    gateway = await stage.gateway(OUTCOME)
    call = stage.start()
    await gateway.reached()
    async with asyncio.timeout(2):
        assert (await call).result == msgspec.Raw(b'"done"')


async def test_one_probe_asks_for_all_commands_of_one_token(stage: Stage) -> None:
    gateway = await stage.gateway()
    calls = [stage.start("a"), stage.start("b"), stage.start("c", token="u")]
    await gateway.reached(3)
    await until(lambda: len(gateway.probes) == 2)
    assert sorted(sorted(probe["requestIds"]) for probe in gateway.probes) == [["a", "b"], ["c"]]
    for number in range(3):
        await gateway.answer(number)
    assert {(await call).status for call in calls} == {"success"}


async def test_odd_answers_to_probes_end_nothing(stage: Stage) -> None:
    gateway = await stage.gateway(SILENCE)
    odd = iter([b"{}", b"\xff", b'{"inFlight":[],"outcomes":[{"a":1},7],"unknown":["other"]}'])
    client = await stage.client()

    async def answer(msg: Msg) -> None:
        if b'"probe"' in msg.data:
            await msg.respond(next(odd, b"[]"))

    await client.subscribe(subjects.command(*C1), cb=answer)
    await subscribed(client)
    call = stage.start()
    await until(lambda: len(gateway.probes) >= 3, 6)
    assert not call.done()
    await gateway.answer()
    assert (await call).status == "success"


# --- evidence ---


@pytest.mark.parametrize(
    ("evidence", "lost"),
    [
        ([(Evidence.SILENCE, 0), (Evidence.SILENCE, 1)], True),
        ([(Evidence.SILENCE, 0), (Evidence.ANSWER, 1), (Evidence.SILENCE, 2)], False),
        ([(Evidence.NO_RESPONDERS, 0), (Evidence.NO_RESPONDERS, 0.4)], False),
        ([(Evidence.NO_RESPONDERS, 0), (Evidence.NO_RESPONDERS, 0.5)], True),
        ([(Evidence.NO_RESPONDERS, 0), (Evidence.NO_RESPONDERS, 0.2), (Evidence.NO_RESPONDERS, 0.55)], True),
        ([(Evidence.NO_RESPONDERS, 0), (Evidence.ANSWER, 1), (Evidence.NO_RESPONDERS, 2)], False),
        ([(Evidence.SILENCE, 0), (Evidence.NO_RESPONDERS, 1)], False),
    ],
)
def test_doubt_weighs_evidence(evidence: list[tuple[Evidence, float]], lost: bool) -> None:
    doubt = Doubt()
    verdicts = [doubt.weigh(what, now) for what, now in evidence]
    assert verdicts[-1] is lost
    assert not any(verdicts[:-1])
