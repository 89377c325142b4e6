"""Orders under keys whose client is lost while their command is under way."""

from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from msgspec.structs import replace
from support.played.keyed_orders import ANY, ANYBODY, Bench, losing
from support.played.known import client

from protocol.errors import BridgeError, ClientLost, DeadlineExceeded, Unavailable


@pytest.fixture
async def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize("whom", [{"clientId": "c1"}, ANY, {}])
async def test_lost_command_that_has_its_outcome_is_answered_with_that_and_recorded_once(
    bench: Bench, whom: dict[str, Any]
) -> None:
    bench.known.put(client("c1", "f"))
    bench.gateways["c1"] = losing(lambda: bench.remember("c1", request_id="mine"))
    answer = await bench.ask(whom)
    assert (answer.status, answer.request_id, answer.replayed) == ("success", "mine", False)
    assert bench.records == [("c1", "success", False)]


async def test_lost_command_of_one_of_several_clients_has_its_own_outcome(bench: Bench) -> None:
    def end() -> None:
        key = next(command.idempotency_key for client_id, command in bench.sent if client_id == "c1")
        bench.remember("c1", key or "", request_id="mine")

    bench.gateways["c1"] = losing(end)
    answer = await bench.ask({"clientIds": ["c1", "c2"]})
    assert [each["status"] for each in answer["results"].values()] == ["success", "success"]
    assert bench.records == [("c1", "success", False)]


async def test_lost_command_whose_gateway_is_gone_is_lost_for_all_who_send_it(bench: Bench) -> None:
    bench.gateways["c1"] = losing(lambda: bench.remember("c1", ended=False, request_id="mine"))
    bench.bucket.gone_gateways.add("gw-1")
    first, again = [await bench.ask({"clientId": "c1"}) for _ in range(2)]
    assert (first.error, again.error.code) == (again.error, "client_lost")
    assert (first.replayed, again.replayed, len(bench.sent)) == (False, True, 1)
    assert bench.records == [("c1", "client_lost", False), ("c1", "client_lost", True)]


async def test_lost_command_whose_gateway_comes_back_has_the_outcome_that_it_tells(bench: Bench) -> None:
    bench.gateways["c1"] = losing(lambda: bench.remember("c1", ended=False, request_id="mine"))
    bench.bucket.on_ping = lambda: bench.remember("c1", request_id="mine")
    assert (await bench.ask({"clientId": "c1"})).status == "success"
    assert bench.records == [("c1", "success", False)]


async def test_lost_twin_is_told_what_became_of_the_first(bench: Bench) -> None:
    bench.remember("c1", ended=False, request_id="mine")
    bench.gateways["c1"] = losing(lambda: bench.remember("c1", request_id="mine"))
    answer = await bench.ask({"clientId": "c1"})
    assert (answer.status, answer.replayed) == ("success", True)
    assert bench.records == [("c1", "success", True)]


async def test_lost_command_that_goes_on_is_waited_for_until_its_time_is_up(bench: Bench) -> None:
    bench.gateways["c1"] = losing(lambda: bench.remember("c1", ended=False))
    with pytest.raises(DeadlineExceeded, match="may still run"):
        await bench.ask({"clientId": "c1"}, timeout_ms=50)
    assert bench.records == [("c1", "timeout", False)]


@pytest.mark.parametrize("whom", [ANY, {}])
@pytest.mark.parametrize("request_id", ["mine", "another"])
async def test_lost_order_for_no_client_has_the_outcome_of_a_twin_that_went_to_another_one(
    bench: Bench, whom: dict[str, Any], request_id: str
) -> None:
    bench.known.put(client("c1", "f"))
    bench.gateways["c1"] = losing(lambda: bench.remember("c2", request_id=request_id))
    answer = await bench.ask(whom)
    assert (answer.status, answer.client_id, answer.request_id, answer.replayed) == ("success", "c2", "mine", True)
    assert bench.records == [("c2", "success", True)]


async def test_lost_order_for_no_client_is_not_told_the_outcome_at_a_client_that_it_may_not_see(bench: Bench) -> None:
    ann = replace(ANYBODY, users=frozenset({"ann"}))
    bench.known.put(client("c1", "f"))
    bench.gateways["c1"] = losing(lambda: bench.remember("c2", user="bob"))
    assert (await bench.ask(ANY, principal=ann)).status == "error"


@pytest.mark.parametrize("whom", [ANY, {}])
async def test_lost_order_for_no_client_stays_lost_where_its_key_is_another_command_s(
    bench: Bench, whom: dict[str, Any]
) -> None:
    bench.known.put(client("c1", "f"))
    bench.gateways["c1"] = losing(lambda: bench.remember("c2", target="other"))
    assert await code_of(bench.ask(whom)) == "client_lost"


async def code_of(asking: Coroutine[Any, Any, Any]) -> str:
    try:
        return str((await asking).error.code)
    except BridgeError as exc:
        return exc.code.value


def free(bench: Bench) -> None:
    bench.bucket.stored.clear()


def lock(bench: Bench) -> None:
    bench.bucket.away = Unavailable("why")


def take_over(bench: Bench) -> None:
    bench.remember("c1", target="other")


def move(bench: Bench) -> None:
    bench.remember("c2")


@pytest.mark.parametrize("then", [free, lock, take_over, move])
@pytest.mark.parametrize("is_twin", [False, True])
async def test_lost_command_of_which_nothing_is_remembered_is_lost_and_recorded_once(
    bench: Bench, then: Callable[[Bench], None], is_twin: bool
) -> None:
    if is_twin:
        bench.remember("c1", ended=False)
    bench.gateways["c1"] = losing(lambda: then(bench))
    with pytest.raises(ClientLost, match="lost"):
        await bench.ask({"clientId": "c1"})
    assert bench.records == [("c1", "client_lost", False)]
