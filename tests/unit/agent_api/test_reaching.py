import asyncio
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from support.known import Known, client

from agent_api.commands.balance import LOOKED_AT, Balance
from agent_api.commands.bodies import read_order
from agent_api.commands.candidates import Candidates
from agent_api.commands.gathering import Gathered
from agent_api.commands.intake import Intake
from agent_api.commands.reaching import MAX_TRIES, SKIPPED, Reaching
from protocol.access import AGENT, Principal
from protocol.errors import (
    BY_CODE,
    MEANINGS,
    AmbiguousClient,
    BridgeError,
    ClientNotFound,
    Code,
    InvalidRequest,
    Overloaded,
    RateLimited,
    Unavailable,
    UnknownCapability,
)
from protocol.messages import CommandRequest, CommandResponse, failure
from protocol.subjects import ClientAddress

ANYBODY = Principal("agent", AGENT, "default", float("inf"))
ANN = msgspec.structs.replace(ANYBODY, users=frozenset({"ann"}))
ANY = {"any": True}
MAYBE_EXECUTED = {Code.CLIENT_LOST, Code.TIMEOUT, Code.CANCELLED, Code.INTERNAL, Code.COMMAND_FAILED}
Answer = Callable[[CommandRequest], CommandResponse]


class Bench:
    """Reaching, the clients that it knows, and what each is to answer."""

    def __init__(self) -> None:
        candidates, balance, self.intake = Candidates(), Balance(), Intake(100)
        self.known = Known(listeners=(candidates.observe, balance.observe))
        self.reaching = Reaching(self.known, candidates, balance, lambda address: 0, self.intake, 10_000)
        self.sent: list[tuple[ClientAddress, CommandRequest]] = []
        self.errors: dict[str, BridgeError] = {}
        self.raised: dict[str, Exception] = {}

    async def send(self, address: ClientAddress, command: CommandRequest) -> CommandResponse:
        self.sent.append((address, command))
        client_id = address.client_id
        if client_id in self.raised:
            raise self.raised[client_id]
        assert command.request_id is not None
        if client_id in self.errors:
            return failure(command.request_id, self.errors[client_id], client_id)
        return CommandResponse(
            request_id=command.request_id,
            status="success",
            result=msgspec.Raw(b"1"),
            client_id=client_id,
            duration_ms=1,
        )

    async def ask(self, whom: dict[str, Any], principal: Principal = ANYBODY, **command: Any) -> Any:
        body = {"command": {"target": "f", "requestId": "r-1", **command}, **whom}
        order = read_order(json.dumps(body).encode(), 1000, 1000)
        outcome = await self.reaching.send(order, principal, self.send)
        return json.loads(msgspec.json.encode(outcome)) if isinstance(outcome, Gathered) else outcome

    @property
    def asked(self) -> list[str]:
        return [address.client_id for address, _ in self.sent]


@pytest.fixture
async def bench() -> Bench:
    return Bench()


# --- one of several ---


async def test_one_of_those_who_offer_it_is_asked_and_named(bench: Bench) -> None:
    bench.known.put(client("c1", "other"))
    bench.known.put(client("c2", "f"))
    response = await bench.ask(ANY)
    assert (response.client_id, response.status, bench.asked) == ("c2", "success", ["c2"])


@pytest.mark.parametrize("code", sorted(SKIPPED))
@pytest.mark.parametrize("how", ["raised", "errors"])
async def test_client_that_certainly_did_not_execute_it_is_skipped(bench: Bench, code: str, how: str) -> None:
    for client_id in ("c1", "c2"):
        bench.known.put(client(client_id, "f", gateway_id=f"gateway of {client_id}"))
    getattr(bench, how)["c1"] = BY_CODE[code]("why")
    for _ in range(3):
        assert (await bench.ask(ANY)).client_id == "c2"
    assert bench.asked.count("c1") == 1  # and then avoided for a while


async def test_agent_that_is_too_fast_steers_no_command_of_others(bench: Bench) -> None:
    for number in range(LOOKED_AT):
        bench.known.put(client(f"c{number}", "f"))
        bench.errors[f"c{number}"] = RateLimited.for_seconds(0.1, "too fast", "agent")
    for _ in range(3):
        await bench.ask(ANY, msgspec.structs.replace(ANN, clients=frozenset({"c0", "c1", "c2"})))
    bench.errors.clear()
    bench.sent.clear()
    for _ in range(LOOKED_AT):  # of no more than are looked at, each gets its turn
        await bench.ask(ANY)
    assert sorted(bench.asked) == sorted(f"c{number}" for number in range(LOOKED_AT))


def test_only_certainly_not_executed_commands_are_sent_again() -> None:
    assert {code.value for code, meaning in MEANINGS.items() if meaning.retryable} <= SKIPPED
    assert not {code.value for code in MAYBE_EXECUTED} & SKIPPED


@pytest.mark.parametrize("code", sorted(set(BY_CODE) - SKIPPED))
@pytest.mark.parametrize("how", ["raised", "errors"])
async def test_no_other_client_gets_what_may_have_been_executed(bench: Bench, code: str, how: str) -> None:
    for number in range(5):
        bench.known.put(client(f"c{number}", "f"))
        getattr(bench, how)[f"c{number}"] = BY_CODE[code]("why")
    response = await bench.ask(ANY)
    assert (response.error.code, len(bench.sent), response.client_id) == (code, 1, bench.asked[0])


async def test_fault_of_ours_is_internal_and_not_repeated(bench: Bench) -> None:
    bench.known.put(client("c1", "f"))
    bench.known.put(client("c2", "f"))
    bench.raised = {"c1": RuntimeError("secret"), "c2": RuntimeError("secret")}
    response = await bench.ask(ANY)
    assert (response.error.code, "secret" in response.error.message, len(bench.sent)) == ("internal", False, 1)


async def test_tries_are_bounded_and_nobody_is_tried_twice(bench: Bench) -> None:
    for number in range(50):
        bench.known.put(client(f"c{number}", "f"))
        bench.errors[f"c{number}"] = Overloaded("busy")
    response = await bench.ask(ANY)
    assert (response.error.code, len(bench.sent), len(set(bench.asked))) == ("overloaded", MAX_TRIES, MAX_TRIES)


async def test_tries_share_one_deadline_and_one_id(bench: Bench) -> None:
    for number in range(2):
        bench.known.put(client(f"c{number}", "f"))
        bench.errors[f"c{number}"] = Overloaded("busy")
    send = bench.send

    async def slow(address: ClientAddress, command: CommandRequest) -> CommandResponse:
        await asyncio.sleep(0.02)
        return await send(address, command)

    bench.send = slow  # type: ignore[method-assign]
    await bench.ask(ANY)
    (_, first), (_, second) = bench.sent
    assert (first.request_id, second.request_id, first.timeout_ms) == ("r-1", "r-1", 1000)
    assert second.timeout_ms is not None
    assert 0 < second.timeout_ms < 990


async def test_after_the_deadline_nobody_else_is_tried(bench: Bench) -> None:
    for number in range(3):
        bench.known.put(client(f"c{number}", "f"))

    async def late(address: ClientAddress, command: CommandRequest) -> CommandResponse:
        bench.sent.append((address, command))
        await asyncio.sleep(0.02)
        return failure("r-1", Unavailable("away"))

    bench.send = late  # type: ignore[method-assign]
    response = await bench.ask(ANY, timeoutMs=10)
    assert (response.error.code, len(bench.sent)) == ("unavailable", 1)


async def test_client_that_has_just_gone_is_no_answer_to_a_caller_who_named_none(bench: Bench) -> None:
    bench.known.put(client("c1", "f"))
    bench.raised["c1"] = ClientNotFound()
    response = await bench.ask(ANY)
    assert (response.error.code, response.error.retryable) == ("unavailable", True)


async def test_target_that_nobody_visible_offers_is_unknown(bench: Bench) -> None:
    bench.known.put(client("c1", "f", user="bob"))
    bench.known.put(client("c2", "f", tenant="acme"))
    with pytest.raises(UnknownCapability, match="`f`"):
        await bench.ask(ANY, ANN)
    with pytest.raises(UnknownCapability, match="`f`"):
        await bench.ask({}, ANN)
    assert bench.sent == []


async def test_limited_agent_reaches_its_own_clients_alone(bench: Bench) -> None:
    for number in range(100):
        bench.known.put(client(f"c{number}", "f", user="ann" if number == 77 else "bob"))
    assert {(await bench.ask(ANY, ANN)).client_id for _ in range(5)} == {"c77"}
    assert (await bench.ask({}, ANN)).client_id == "c77"


async def test_without_any_several_are_ambiguous(bench: Bench) -> None:
    bench.known.put(client("c1", "f"))
    bench.known.put(client("c2", "f"))
    with pytest.raises(AmbiguousClient):
        await bench.ask({})


# --- several at once ---


def with_clients(bench: Bench) -> None:
    for client_id, offer, user, app, room in (
        ("c1", "f", "ann", "todo", "1"),
        ("c2", "f", "ann", "notes", 1),
        ("c3", "f", "bob", "todo", "2"),
        ("c4", "other", "ann", "todo", "1"),
        ("c5", "f", "eve", "todo", None),
    ):
        fields: dict[str, Any] = {"app": {"name": app}, "metadata": {"room": room, "lang": "de"}}
        bench.known.put(client(client_id, offer, user=user, **fields))


@pytest.mark.parametrize(
    ("match", "meant"),
    [
        ({}, ["c1", "c2", "c3", "c5"]),
        ({"user": "ann"}, ["c1", "c2"]),
        ({"app": "todo"}, ["c1", "c3", "c5"]),
        ({"user": "ann", "app": "todo"}, ["c1"]),
        ({"metadata": {"room": "1"}}, ["c1", "c2"]),
        ({"metadata": {"room": 1}}, ["c1", "c2"]),
        ({"metadata": {"room": "2", "lang": "de"}}, ["c3"]),
        ({"metadata": {"room": "2", "lang": "en"}}, []),
        ({"user": "nobody"}, []),
    ],
)
async def test_match_means_those_who_offer_the_target_and_fit(
    bench: Bench, match: dict[str, Any], meant: list[str]
) -> None:
    with_clients(bench)
    answer = await bench.ask({"match": match})
    assert (list(answer["results"]), sorted(bench.asked), answer["complete"]) == (meant, meant, True)


async def test_match_means_nobody_that_the_agent_may_not_see_or_use(bench: Bench) -> None:
    with_clients(bench)
    bench.known.put(client("c6", {"type": "function", "name": "f", "permissions": ["keys"]}))
    bench.known.put(client("c7", "f", tenant="acme"))
    assert list((await bench.ask({"match": {}}, ANN))["results"]) == ["c1", "c2"]
    assert (await bench.ask({"match": {"user": "bob"}}, ANN))["results"] == {}


async def test_more_than_may_be_asked_is_refused_with_the_number(bench: Bench) -> None:
    for number in range(101):
        bench.known.put(client(f"c{number}", "f"))
    with pytest.raises(InvalidRequest, match=r"`match`.*101"):
        await bench.ask({"match": {}})
    assert bench.sent == []
    bench.known.remove("c7")
    assert len((await bench.ask({"match": {}}))["results"]) == 100


async def test_named_clients_are_asked_whether_they_are_known_or_not(bench: Bench) -> None:
    bench.known.filled.clear()
    answer = await bench.ask({"clientIds": ["c2", "c1"]})
    assert (list(answer["results"]), bench.asked) == (["c2", "c1"], ["c2", "c1"])


@pytest.mark.parametrize("whom", [ANY, {"match": {}}, {}])
async def test_before_the_first_list_nobody_is_found(bench: Bench, whom: dict[str, Any]) -> None:
    bench.known.filled.clear()
    with pytest.raises(Unavailable):
        await bench.ask(whom)


async def test_every_command_is_taken_in_with_its_bytes(bench: Bench) -> None:
    bench.intake.admit(10)
    seen: list[int] = []

    async def count(address: ClientAddress, command: CommandRequest) -> CommandResponse:
        seen.append(bench.intake.commands)
        return failure("r-1", Unavailable("away"))

    bench.send = count  # type: ignore[method-assign]
    await bench.ask({"clientIds": ["c1", "c2", "c3"]})
    assert (seen, bench.intake.commands) == ([3, 3, 3], 1)
    bench.intake.admit(0)
    with pytest.raises(Overloaded):
        await bench.ask({"clientIds": [f"c{number}" for number in range(100)]})
    assert bench.intake.commands == 2


async def test_bytes_of_all_copies_are_counted(bench: Bench) -> None:
    bench.reaching._intake = Intake(100, max_bytes=10_000)
    await bench.ask({"clientIds": ["c1", "c2"]}, parameters={"text": "x" * 9000})
    with pytest.raises(Overloaded):
        await bench.ask({"clientIds": ["c1", "c2", "c3"]}, parameters={"text": "x" * 9000})
