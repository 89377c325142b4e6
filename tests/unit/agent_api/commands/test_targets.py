import asyncio
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from support.played.known import Known, client

from agent_api.clients.candidates import Candidates
from agent_api.commands.admission import Admission
from agent_api.commands.gather import Gathered
from agent_api.commands.least_busy import LOOKED_AT, LeastBusy
from agent_api.commands.orders import read_order
from agent_api.commands.targets import MAX_TRIES, SKIPPED, Targets
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
from protocol.runtime.clients.lost import LOST_SECONDS
from protocol.subjects import ClientAddress

ANYBODY = Principal("agent", AGENT, "default", float("inf"))
ANN = msgspec.structs.replace(ANYBODY, users=frozenset({"ann"}))
OTHERS = ("others", "x")
ANY = {"any": True}
ACROSS = {"any": True, "acrossUsers": True}
NEVER = float("inf")
MAYBE_EXECUTED = {Code.CLIENT_LOST, Code.TIMEOUT, Code.CANCELLED, Code.INTERNAL, Code.COMMAND_FAILED}
Answer = Callable[[CommandRequest], CommandResponse]


class Bench:
    """Reaching, the clients that it knows, and what each is to answer."""

    def __init__(self, admission: Admission | None = None) -> None:
        candidates, least_busy, self.admission = Candidates(), LeastBusy(), admission or Admission(200)
        self.known = Known(listeners=(candidates.observe, least_busy.observe))
        self.targets = Targets(self.known, candidates, least_busy, lambda address: 0, self.admission, 10_000)
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
        outcome = await self.targets.send(order, principal, self.send)
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


# --- one of one user's ---


async def test_clients_of_several_users_are_ambiguous_unless_the_caller_says_that_any_will_do(bench: Bench) -> None:
    bench.known.put(client("c1", "f", user="ann"))
    bench.known.put(client("c2", "f", user="bob"))
    bench.known.put(client("c3", "other", user="eve"))
    with pytest.raises(AmbiguousClient) as refusal:
        await bench.ask(ANY)
    assert refusal.value.details == {"clients": ["c1", "c2"], "total": 2, "users": ["ann", "bob"]}
    assert bench.sent == []
    assert {(await bench.ask(ACROSS)).client_id for _ in range(2)} == {"c1", "c2"}


@pytest.mark.parametrize(
    ("match", "meant"),
    [
        ({"user": "ann"}, {"c1", "c2"}),
        ({"user": "ann", "app": "todo"}, {"c1"}),
        ({"app": "notes"}, {"c2"}),
        ({"metadata": {"room": 2}}, {"c3"}),
    ],
)
async def test_match_says_whose_any_is(bench: Bench, match: dict[str, Any], meant: set[str]) -> None:
    with_clients(bench)
    assert {(await bench.ask(ANY | {"match": match})).client_id for _ in range(4)} == meant


@pytest.mark.parametrize("match", [{}, {"app": "todo"}, {"metadata": {"lang": "de"}}])
async def test_match_that_leaves_several_users_is_ambiguous(bench: Bench, match: dict[str, Any]) -> None:
    with_clients(bench)
    with pytest.raises(AmbiguousClient, match="several users"):
        await bench.ask(ANY | {"match": match})
    assert (await bench.ask(ACROSS | {"match": match})).client_id in {"c1", "c2", "c3", "c5"}


async def test_match_that_nobody_fits_is_an_unknown_target(bench: Bench) -> None:
    with_clients(bench)
    for match in ({"user": "nobody"}, {"user": "ann", "app": "mail"}, {"metadata": {"room": "9"}}):
        with pytest.raises(UnknownCapability, match="`f`"):
            await bench.ask(ANY | {"match": match})


async def test_token_of_one_user_needs_no_match(bench: Bench) -> None:
    with_clients(bench)
    assert {(await bench.ask(ANY, ANN)).client_id for _ in range(2)} == {"c1", "c2"}


async def test_more_sessions_of_the_user_elsewhere_make_no_difference(bench: Bench) -> None:
    for number in range(5):
        bench.known.put(client(f"a{number}", "other", user="ann"))
    bench.known.put(client("c1", "f", user="ann"))
    bench.known.put(client("c2", "f", user="bob"))
    with pytest.raises(AmbiguousClient):
        await bench.ask(ANY)
    bench.known.remove("c2")
    assert (await bench.ask(ANY)).client_id == "c1"


async def test_session_that_the_user_sees_goes_first_then_the_one_seen_last(bench: Bench) -> None:
    def session(client_id: str, *, visible: bool, focused: str | None) -> None:
        bench.known.put(client(client_id, "f", metadata={"visible": visible}, focused_at=focused))

    session("never", visible=False, focused=None)
    session("old", visible=False, focused="2026-01-01T00:00:01.000Z")
    session("new", visible=False, focused="2026-01-01T00:00:09.000Z")
    assert [(await bench.ask(ANY)).client_id for _ in range(2)] == ["new", "new"]
    session("beside", visible=True, focused="2026-01-01T00:00:02.000Z")
    session("seen", visible=True, focused="2026-01-01T00:00:03.000Z")
    assert [(await bench.ask(ANY)).client_id for _ in range(2)] == ["seen", "seen"]
    bench.errors["seen"] = Overloaded("busy")
    assert (await bench.ask(ANY)).client_id == "beside"


async def test_next_try_stays_with_the_user_of_the_first(bench: Bench) -> None:
    bench.known.put(client("c1", "f", user="ann"))

    async def busy(address: ClientAddress, command: CommandRequest) -> CommandResponse:
        bench.sent.append((address, command))
        bench.known.remove("c1")
        bench.known.put(client("c2", "f", user="bob"))
        return failure("r-1", Overloaded("busy"), address.client_id)

    bench.send = busy  # type: ignore[method-assign]
    assert ((await bench.ask(ANY)).error.code, bench.asked) == ("overloaded", ["c1"])


# --- nobody is there ---


@pytest.mark.parametrize("whom", [{}, ANY, ACROSS, ANY | {"match": {"user": "ann"}}])
async def test_target_of_a_client_that_was_lost_a_moment_ago_is_unavailable(bench: Bench, whom: dict[str, Any]) -> None:
    bench.known.put(client("c1", "f"))
    bench.known.remove("c1", lost_at=NEVER)
    with pytest.raises(Unavailable, match="`f` were lost a moment ago"):
        await bench.ask(whom)


async def test_target_of_a_client_that_closed_or_was_lost_long_ago_is_unknown(bench: Bench) -> None:
    for number, lost_at in enumerate((None, asyncio.get_running_loop().time() - LOST_SECONDS)):
        bench.known.put(client(f"c{number}", "f"))
        bench.known.remove(f"c{number}", lost_at=lost_at)
        with pytest.raises(UnknownCapability):
            await bench.ask({})


async def test_lost_client_that_is_not_meant_makes_no_difference(bench: Bench) -> None:
    bench.known.put(client("c1", {"name": "f", "permissions": ["keys"]}, user="bob"))
    bench.known.remove("c1", lost_at=NEVER)
    holder = msgspec.structs.replace(ANYBODY, permissions=frozenset({"keys"}))
    for whom, principal in (({}, ANYBODY), ({}, ANN), (ANY | {"match": {"user": "ann"}}, holder)):
        with pytest.raises(UnknownCapability):
            await bench.ask(whom, principal)
    with pytest.raises(Unavailable):
        await bench.ask({}, holder)


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
    bench.admission.admit(OTHERS, 10)
    seen: list[int] = []

    async def count(address: ClientAddress, command: CommandRequest) -> CommandResponse:
        seen.append(bench.admission.commands)
        return failure("r-1", Unavailable("away"))

    bench.send = count  # type: ignore[method-assign]
    await bench.ask({"clientIds": ["c1", "c2", "c3"]})
    assert (seen, bench.admission.commands) == ([3, 3, 3], 1)
    bench.admission.admit(OTHERS)
    with pytest.raises(Overloaded):
        await bench.ask({"clientIds": [f"c{number}" for number in range(100)]})
    assert bench.admission.commands == 2


async def test_bytes_of_all_copies_are_counted() -> None:
    bench = Bench(Admission(100, max_bytes=10_000))
    await bench.ask({"clientIds": ["c1", "c2"]}, parameters={"text": "x" * 9000})
    with pytest.raises(Overloaded):
        await bench.ask({"clientIds": ["c1", "c2", "c3"]}, parameters={"text": "x" * 9000})
