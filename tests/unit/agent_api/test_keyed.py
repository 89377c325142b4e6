"""Orders under idempotency keys, with a bucket and gateways that the test plays."""

import itertools
import json
from collections.abc import Callable, Coroutine
from typing import Any, cast

import msgspec
import pytest
from support.known import Known, client

from agent_api.commands.balance import Balance
from agent_api.commands.bodies import read_order
from agent_api.commands.candidates import Candidates
from agent_api.commands.gathering import Gathered
from agent_api.commands.intake import Intake
from agent_api.commands.keyed import Keyed
from agent_api.commands.reaching import SKIPPED, Reaching
from agent_api.commands.refusals import Refusals
from agent_api.commands.sending import Commands
from protocol.access import AGENT, Principal
from protocol.audit import AuditRecord
from protocol.errors import (
    BY_CODE,
    BridgeError,
    ClientLost,
    ClientNotFound,
    Conflict,
    DeadlineExceeded,
    Overloaded,
    Unavailable,
)
from protocol.idempotency import Entry, content_of, entry_key
from protocol.messages import CommandRequest, CommandResponse, failure
from protocol.runtime.audit import AuditTrail
from protocol.runtime.entries import Entries, Stored
from protocol.runtime.listening import OnProgress
from protocol.subjects import ClientAddress

ANYBODY = Principal("agent", AGENT, "default", float("inf"))
ANY = {"any": True}
Gateway = Callable[[ClientAddress, CommandRequest], Coroutine[Any, Any, CommandResponse]]


class Bucket:
    """The entries, of which one for each key is enough here. `away` is raised by every reading."""

    def __init__(self) -> None:
        self.stored: dict[str, Entry] = {}
        self.away: BridgeError | None = None
        self.gone_gateways: set[str] = set()
        self.on_ping: Callable[[], object] = lambda: None

    async def read(self, key: str) -> Stored:
        if self.away is not None:
            raise self.away
        return Stored(1, self.stored.get(key))

    async def is_gone(self, gateway_id: str) -> bool:
        self.on_ping()
        return gateway_id in self.gone_gateways

    async def lose(self, key: str, stored: Stored) -> Stored:
        assert stored.entry is not None
        self.stored[key] = stored.entry.lose()
        return Stored(2, self.stored[key])


class Records:
    """The audit trail."""

    def __init__(self) -> None:
        self.all: list[AuditRecord] = []

    def publish(self, record: AuditRecord) -> None:
        self.all.append(record)


class Bench:
    """An agent API's commands. What a gateway does is `gateways[client id]`; else it says that all went well."""

    def __init__(self) -> None:
        candidates, balance = Candidates(), Balance()
        self.known = Known(listeners=(candidates.observe, balance.observe))
        reaching = Reaching(self.known, candidates, balance, lambda address: 0, Intake(100), 10_000)
        self.bucket, self.trail = Bucket(), Records()
        keyed = Keyed(cast("Entries", self.bucket), reaching)
        refusals = Refusals(cast("AuditTrail", self.trail))
        self.commands = Commands(self, reaching, keyed, refusals, passes_tokens_on=False)
        self.gateways: dict[str, Gateway] = {}
        self.sent: list[tuple[str, CommandRequest]] = []
        self.heard: list[tuple[str, str]] = []

    async def call(
        self, address: ClientAddress, command: CommandRequest, token: str | None, on_progress: OnProgress | None = None
    ) -> CommandResponse:
        self.sent.append((address.client_id, command))
        return await self.gateways.get(address.client_id, success)(address, command)

    async def ask(self, whom: dict[str, Any], key: str | None = "k", timeout_ms: int = 1000, **command: Any) -> Any:
        body = {"command": {"target": "f", "requestId": "mine", "idempotencyKey": key, **command}, **whom}
        order = read_order(json.dumps(body).encode(), timeout_ms, timeout_ms)
        outcome = await self.commands.send(order, ANYBODY, None)
        return json.loads(msgspec.json.encode(outcome)) if isinstance(outcome, Gathered) else outcome

    def remember(
        self,
        client_id: str,
        key: str = "k",
        *,
        gateway_id: str = "gw-1",
        ended: bool = True,
        target: str = "f",
        request_id: str = "first",
    ) -> str:
        """Have an entry under a key, and return where it lies."""
        place = entry_key(ANYBODY, key)
        entry = Entry(
            body=content_of(CommandRequest(target=target)),
            claim="claim",
            gateway_id=gateway_id,
            client_id=client_id,
            user="ann",
            request_id=request_id,
            at="now",
        )
        outcome = CommandResponse(request_id=request_id, status="success", client_id=client_id, duration_ms=1)
        self.bucket.stored[place] = entry.end(outcome, 10_000) if ended else entry
        return place

    @property
    def records(self) -> list[tuple[str | None, str, bool]]:
        """What was recorded here: whom it was for, how it ended, whether it was remembered."""
        assert {record.request_id for record in self.trail.all} <= {"mine"}
        return sorted((record.client_id or "", record.outcome, record.replayed) for record in self.trail.all)


async def success(address: ClientAddress, command: CommandRequest) -> CommandResponse:
    assert command.request_id is not None
    return CommandResponse(request_id=command.request_id, status="success", client_id=address.client_id, duration_ms=1)


def raising(error: BridgeError) -> Gateway:
    async def fail(address: ClientAddress, command: CommandRequest) -> CommandResponse:
        raise error

    return fail


def refusing(error: BridgeError) -> Gateway:
    async def refuse(address: ClientAddress, command: CommandRequest) -> CommandResponse:
        assert command.request_id is not None
        return failure(command.request_id, error, address.client_id)

    return refuse


@pytest.fixture
async def bench() -> Bench:
    return Bench()


# --- records: of each client one, by the gateway where that answered ---


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


# --- clients that are lost while their command is under way ---


def losing(then: Callable[[], object]) -> Gateway:
    """Lose the client once the gateway has done something with the entry."""

    async def lose(address: ClientAddress, command: CommandRequest) -> CommandResponse:
        then()
        raise ClientLost("lost")

    return lose


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


# --- ids ---


@pytest.mark.parametrize("whom", [{"clientId": "c1"}, ANY, {}, {"clientIds": ["c1", "c2"]}])
async def test_keyed_command_goes_under_an_id_of_its_own_and_is_answered_under_the_caller_s(
    bench: Bench, whom: dict[str, Any]
) -> None:
    bench.known.put(client("c1", "f"))
    for _ in range(2):
        answer = await bench.ask(whom)
        told = (
            [each["requestId"] for each in answer["results"].values()] if "clientIds" in whom else [answer.request_id]
        )
        assert set(told) == {"mine"}
    commands = [command for _, command in bench.sent]
    assert {command.caller_request_id for command in commands} == {"mine"}
    assert len({"mine", *(command.request_id for command in commands)}) == len(commands) + 1


async def test_command_without_a_key_goes_under_the_caller_s_id(bench: Bench) -> None:
    await bench.ask({"clientId": "c1"}, key=None)
    [(_, command)] = bench.sent
    assert (command.request_id, command.caller_request_id) == ("mine", None)


# --- twins that mean other clients ---


def first_refusing(error: BridgeError, times: int = 1, then: Callable[[], object] = lambda: None) -> Gateway:
    """Refuse so many times, do something after the last, and then answer."""
    refused = itertools.count(1)

    async def answer(address: ClientAddress, command: CommandRequest) -> CommandResponse:
        number = next(refused)
        if number == times:
            then()
        return await (refusing(error) if number <= times else success)(address, command)

    return answer


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
