"""Orders under keys whose twins mean other clients: they join them, follow them, or go round again."""

from collections.abc import Callable
from typing import Any

import pytest
from support.played.keyed_orders import ANY, Bench, Gateway, first_refusing, raising, refusing
from support.played.known import client

from agent_api.commands.targets import SKIPPED
from protocol.errors import BY_CODE, BridgeError, Conflict, DeadlineExceeded
from protocol.messages import CommandRequest, CommandResponse
from protocol.subjects import ClientAddress


@pytest.fixture
async def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize("whom", [ANY, {}])
async def test_order_goes_round_again_where_the_twin_in_its_way_freed_the_key(
    bench: Bench, whom: dict[str, Any]
) -> None:
    bench.known.put(client("c1", "f"))
    bench.gateways["c1"] = first_refusing(Conflict("why"), times=3)
    answer = await bench.ask(whom)
    assert (answer.status, answer.request_id, len(bench.sent)) == ("success", "mine", 4)
    timeouts = [command.timeout_ms or 0 for _, command in bench.sent]
    assert timeouts == sorted(set(timeouts), reverse=True)
    assert bench.records == []


async def test_order_joins_the_twin_that_meant_another_client(bench: Bench) -> None:
    bench.known.put(client("c1", "f"))
    bench.gateways["c1"] = first_refusing(Conflict("why"), then=lambda: bench.remember("c2", ended=False))
    assert (await bench.ask(ANY)).client_id == "c2"
    assert [client_id for client_id, _ in bench.sent] == ["c1", "c2"]


async def test_twin_that_has_just_gone_to_another_client_is_followed(bench: Bench) -> None:
    place = bench.remember("c1", ended=False)
    bench.known.put(client("c2", "f"))
    bench.gateways["c1"] = first_refusing(Conflict("why"), then=lambda: bench.bucket.stored.pop(place))
    assert (await bench.ask(ANY)).client_id == "c2"


async def test_another_command_under_the_key_is_a_conflict_of_one_record(bench: Bench) -> None:
    bench.known.put(client("c1", "f"))
    bench.gateways["c1"] = first_refusing(Conflict("why"), then=lambda: bench.remember("c2", target="other"))
    assert (await bench.ask(ANY)).error.code == "conflict"
    assert (bench.records, len(bench.sent)) == ([], 1), "the gateway has recorded it"


async def test_order_that_names_its_client_does_not_go_round(bench: Bench) -> None:
    bench.gateways["c1"] = refusing(Conflict("why"))
    assert (await bench.ask({"clientId": "c1"})).error.code == "conflict"
    assert len(bench.sent) == 1


async def test_going_round_ends_with_the_time(bench: Bench) -> None:
    bench.known.put(client("c1", "f"))
    bench.gateways["c1"] = refusing(Conflict("why"))
    with pytest.raises(DeadlineExceeded, match="was not executed"):
        await bench.ask(ANY, timeout_ms=100)
    assert len(bench.sent) < 6


@pytest.mark.parametrize(
    ("code", "how", "recorded_here"),
    [
        *((code, refusing, False) for code in sorted(SKIPPED)),
        ("client_not_found", raising, True),
        ("unavailable", raising, True),
    ],
)
async def test_order_that_followed_a_twin_to_a_client_that_refused_both_goes_round(
    bench: Bench, code: str, how: Callable[[BridgeError], Gateway], recorded_here: bool
) -> None:
    place = bench.remember("c1", ended=False)
    bench.known.put(client("c2", "f"))

    async def refuse(address: ClientAddress, command: CommandRequest) -> CommandResponse:
        del bench.bucket.stored[place]
        return await how(BY_CODE[code]("why"))(address, command)

    bench.gateways["c1"] = refuse
    assert (await bench.ask(ANY)).client_id == "c2"
    assert bench.records == ([("c1", code, False)] if recorded_here else [])


@pytest.mark.parametrize("code", ["client_not_found", "unavailable"])
async def test_named_client_that_is_gone_with_its_key_freed_is_told_as_such_and_recorded_once(
    bench: Bench, code: str
) -> None:
    place = bench.remember("c1", ended=False)

    async def gone(address: ClientAddress, command: CommandRequest) -> CommandResponse:
        del bench.bucket.stored[place]
        raise BY_CODE[code]("why")

    bench.gateways["c1"] = gone
    assert (await bench.ask({"clientId": "c1"})).error.code == code
    assert bench.records == [("c1", code, False)]
