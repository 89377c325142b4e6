"""Orders under keys are recorded as all are: each client's once, by the gateway where that answered."""

import pytest
from support.played.keyed_orders import ANY, Bench, raising
from support.played.known import client

from protocol.errors import BridgeError, ClientNotFound, Conflict, Overloaded, Unavailable


@pytest.fixture
async def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize("key", [None, "k"])
async def test_each_of_several_clients_that_no_gateway_answered_for_leaves_one_record(
    bench: Bench, key: str | None
) -> None:
    bench.gateways = {"gone": raising(ClientNotFound()), "away": raising(Unavailable("why"))}
    answer = await bench.ask({"clientIds": ["c1", "gone", "away", "c2", "no.id"]}, key)
    assert [each["status"] for each in answer["results"].values()] == ["success", "error", "error", "success", "error"]
    assert bench.records == [
        ("", "client_not_found", False),
        ("away", "unavailable", False),
        ("gone", "client_not_found", False),
    ]
    assert "no.id" not in [client_id for client_id, _ in bench.sent]


@pytest.mark.parametrize("key", [None, "k"])
async def test_each_try_at_any_client_that_no_gateway_answered_leaves_one_record(bench: Bench, key: str | None) -> None:
    for number in range(3):
        bench.known.put(client(f"c{number}", "f"))
        bench.gateways[f"c{number}"] = raising(Overloaded("why"))
    assert (await bench.ask(ANY, key)).error.code == "overloaded"
    assert bench.records == [(f"c{number}", "overloaded", False) for number in range(3)]


async def test_nobody_meant_leaves_one_record_without_a_client(bench: Bench) -> None:
    for whom in (ANY, {}):
        with pytest.raises(BridgeError):
            await bench.ask(whom)
    assert bench.records == [("", "unknown_capability", False)] * 2


async def test_what_is_remembered_is_recorded_once_for_its_client(bench: Bench) -> None:
    bench.remember("c1")
    for whom in ({"clientId": "c1"}, ANY, {}):
        assert (await bench.ask(whom)).replayed
    assert bench.records == [("c1", "success", True)] * 3


async def test_each_remembered_answer_of_several_is_recorded(bench: Bench) -> None:
    await bench.ask({"clientIds": ["c1", "c2"]})
    for client_id, command in bench.sent:
        assert command.idempotency_key is not None
        bench.remember(client_id, command.idempotency_key)
    answer = await bench.ask({"clientIds": ["c1", "c2", "c3"]})
    assert [each.get("replayed") for each in answer["results"].values()] == [True, True, None]
    assert bench.records == [("c1", "success", True), ("c2", "success", True)]


async def test_command_whose_gateway_is_gone_is_recorded_once_as_lost(bench: Bench) -> None:
    bench.remember("c1", ended=False)
    bench.gateways["c1"] = raising(ClientNotFound())
    bench.bucket.gone_gateways.add("gw-1")
    assert (await bench.ask({"clientId": "c1"})).error.code == "client_lost"
    assert bench.records == [("c1", "client_lost", True)]


async def test_key_of_another_command_is_recorded_once(bench: Bench) -> None:
    bench.remember("c1", target="other")
    with pytest.raises(Conflict):
        await bench.ask({"clientId": "c1"})
    assert bench.records == [("c1", "conflict", False)]


async def test_bucket_away_is_recorded_once_for_each_client(bench: Bench) -> None:
    bench.bucket.away = Unavailable("why")
    await bench.ask({"clientIds": ["c1", "c2"]})
    with pytest.raises(Unavailable):
        await bench.ask({"clientId": "c3"})
    assert bench.records == [(client_id, "unavailable", False) for client_id in ("c1", "c2", "c3")]


@pytest.mark.parametrize("client_id", ["", "a.b", "*", ">", "a b", "_none", "x" * 65, "ü"])
@pytest.mark.parametrize("key", [None, "k"])
async def test_id_that_no_client_can_have_is_not_found_and_recorded_with_what_was_asked(
    bench: Bench, client_id: str, key: str | None
) -> None:
    bench.remember("c1")
    with pytest.raises(ClientNotFound):
        await bench.ask({"clientId": client_id}, key)
    [record] = bench.trail.all
    assert (record.outcome, record.client_id, record.target, record.request_id) == (
        "client_not_found",
        None,
        "f",
        "mine",
    )
    assert bench.sent == []
