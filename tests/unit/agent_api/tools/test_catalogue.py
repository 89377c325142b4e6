"""The catalogue holds the loop for a moment only, whatever it has to read, and nobody sees half of a change."""

import asyncio
import json
from collections.abc import Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from typing import Any, cast

import msgspec
import pytest
from support.holds import MAX_HOLD_SECONDS, longest_hold
from support.nats.clients_bucket import record

from agent_api.tools import ages, catalogue, slices
from agent_api.tools.ages import MAX_ASKED, ToolAges
from agent_api.tools.catalogue import ToolCatalogue
from agent_api.tools.listing import ToolListing, listing_of
from agent_api.tools.news import ToolNews
from agent_api.tools.toolbox import Toolbox
from agent_api.tools.views import Narrowing, ToolView
from protocol.access import Principal
from protocol.discovery import Client
from protocol.records import ClientRecord, read_capabilities
from protocol.runtime.clients.lost import LostClients
from protocol.runtime.nats.connection import Connection

AGENT = Principal("agent", "agent", "default", float("inf"))
NOTHING = msgspec.Raw(b"{}")
ONE, TWO = {"type": "object", "required": ["a"]}, {"type": "object", "required": ["b"]}


class Known:
    """Connected clients."""

    lost = LostClients()

    def __init__(self, clients: Sequence[Client]) -> None:
        self.filled = asyncio.Event()
        self.filled.set()
        self._clients = {client.record.client_id: client for client in clients}

    def clients(self, tenant: str) -> Mapping[str, Client]:
        return self._clients if tenant == "default" else {}


class OtherApis:
    """What other agent APIs know of the ages of tools: nothing. `asked` are the questions."""

    def __init__(self) -> None:
        self.asked: list[Sequence[str]] = []
        self.answers = asyncio.Event()
        self.answers.set()

    async def ask(self, tenant: str, digests: Sequence[str]) -> Mapping[str, str]:
        self.asked.append(digests)
        await self.answers.wait()
        return {}


alive: list[ToolCatalogue] = []  # lest its end is taken for work


@pytest.fixture(autouse=True)
def _end_of_catalogues() -> Iterator[None]:
    yield
    alive.clear()


def catalogue_of(clients: Sequence[Client], others: OtherApis | None = None) -> ToolCatalogue:
    alive.append(ToolCatalogue(Known(clients), ToolNews(), cast("ToolAges", others or OtherApis())))
    return alive[-1]


def function(name: str, properties: int = 1, **fields: Any) -> dict[str, Any]:
    texts = {f"p{n}": {"type": "string", "description": f"the {n}th of {name}"} for n in range(properties)}
    return {"type": "function", "name": name, "parameters": {"type": "object", "properties": texts}, **fields}


def clients_with(capabilities: list[Any], count: int = 1, first: int = 0) -> list[Client]:
    """Return clients of as many users that offer the same."""
    raw = msgspec.Raw(json.dumps(capabilities).encode())
    one, read = record("c", capabilities=bytes(memoryview(raw))), read_capabilities(raw)
    return [Client(_named(one, number), read) for number in range(first, first + count)]


def _named(one: ClientRecord, number: int) -> ClientRecord:
    at = f"2026-01-01T00:{number // 60 % 60:02}:{number % 60:02}.000Z"
    user = f"user-{number}"
    return msgspec.structs.replace(one, client_id=f"c{number}", principal=user, user=user, connected_at=at)


def limited_to(user: str) -> Principal:
    return msgspec.structs.replace(AGENT, users=frozenset({user}))


def limited_list() -> Coroutine[Any, Any, Any]:
    return catalogue_of(clients_with([function("f")], 10_000)).listing(limited_to("user-9999"))


def list_of_one_application() -> Coroutine[Any, Any, Any]:
    return catalogue_of(clients_with([function("f")], 10_000)).listing(AGENT, Narrowing(app="nothing"))


def limited_call() -> Coroutine[Any, Any, Any]:
    return Toolbox(catalogue_of(clients_with([function("f")], 10_000))).take(limited_to("user-9999"), "f", NOTHING)


def many_capabilities() -> Coroutine[Any, Any, Any]:
    return catalogue_of(clients_with([function(f"f{n}", 10) for n in range(500)])).listing(AGENT)


def many_actions() -> Coroutine[Any, Any, Any]:
    actions = {f"a{n}": {"parameters": {"type": "object", "required": [str(n)]}} for n in range(5_000)}
    return catalogue_of(clients_with([{"type": "component", "id": "c", "actions": actions}])).listing(AGENT)


def many_of_one_name() -> Coroutine[Any, Any, Any]:
    clients = [client for n in range(1_000) for client in clients_with([function("add", title=str(n))], 1, n)]
    return catalogue_of(clients).listing(AGENT)


def many_of_one_name_out_of_sight() -> Coroutine[Any, Any, Any]:
    clients = [client for n in range(1_000) for client in clients_with([function("add", title=str(n))], 1, n)]
    return catalogue_of(clients).listing(limited_to("user-999"))


def large_schemas() -> Coroutine[Any, Any, Any]:
    return catalogue_of(clients_with([function(f"f{n}", 900) for n in range(10)])).listing(AGENT)


def very_many_arguments() -> Coroutine[Any, Any, Any]:
    arguments = msgspec.Raw(json.dumps({str(number): 1 for number in range(90_000)}).encode())
    return Toolbox(catalogue_of(clients_with([function("f")]))).take(AGENT, "f", arguments)


def search() -> Coroutine[Any, Any, Any]:
    query = msgspec.Raw(b'{"query": "f1 f2"}')
    return Toolbox(catalogue_of(clients_with([function(f"f{n}") for n in range(500)]))).take(AGENT, "find_tools", query)


@pytest.mark.parametrize(
    "work",
    [
        *(limited_list, list_of_one_application, limited_call, many_capabilities, many_actions, many_of_one_name),
        *(many_of_one_name_out_of_sight, large_schemas, very_many_arguments, search),
    ],
)
async def test_loop_is_held_for_a_moment_only(work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    assert await longest_hold(work()) < MAX_HOLD_SECONDS


# --- changes and lists in slices ---


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every step pause, and so let others in."""
    monkeypatch.setattr(slices, "SLICE_SECONDS", -1)


def count_lists(monkeypatch: pytest.MonkeyPatch) -> list[ToolView]:
    """Return the views of which lists are made from now on."""
    made: list[ToolView] = []

    def counted(view: ToolView) -> Generator[None, None, ToolListing]:
        made.append(view)
        return listing_of(view)

    monkeypatch.setattr(catalogue, "listing_of", counted)
    return made


async def steps(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.usefixtures("pauses")
async def test_change_that_was_given_up_in_the_middle_is_made_by_the_next_request() -> None:
    clients = clients_with([function(f"f{n}") for n in range(50)])
    tools = catalogue_of(clients)
    expected = await catalogue_of(clients).listing(AGENT)
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(tools.listing(AGENT))
        await steps(20)
        assert not asking.done()
        asking.cancel()
    assert await tools.listing(AGENT) == expected


@pytest.mark.usefixtures("pauses")
async def test_tenant_without_requests_is_forgotten_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "IDLE_SECONDS", -3600)
    news = ToolNews()
    known = Known(clients_with([function(f"f{n}", 0) for n in range(100)]))
    tools = ToolCatalogue(known, news, cast("ToolAges", OtherApis()))
    await tools.listing(AGENT)
    assert news.room.held == 100
    kept = news.tenants["default"].tools
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(tools.view(msgspec.structs.replace(AGENT, tenant="elsewhere")))
        await steps(50)
        assert not asking.done()
    assert (news.room.held, list(news.tenants)) == (0, ["elsewhere"])
    assert (list(kept), kept.groups, kept.clients) == ([], {}, {})
    assert len((await tools.listing(AGENT)).tools) == 100  # it is read anew, if it is asked for


@pytest.mark.usefixtures("pauses")
async def test_nobody_sees_half_a_change() -> None:
    tools = catalogue_of(clients_with([function(f"f{n}") for n in range(50)]))
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(tools.listing(AGENT))
        await steps(20)
        assert not reading.done()
        view = await tools.view(AGENT)
        assert len(list(view.groups())) == 50


@pytest.mark.usefixtures("pauses")
async def test_list_is_of_one_moment() -> None:
    old, new = (
        clients_with([function(f"f{n}") for n in range(50)]),
        clients_with([function(f"g{n}") for n in range(50)]),
    )
    known, news = Known(old), ToolNews()
    tools = ToolCatalogue(known, news, cast("ToolAges", OtherApis()))
    await tools.view(AGENT)
    async with asyncio.TaskGroup() as tasks:
        listing = tasks.create_task(tools.listing(AGENT))
        await steps(20)
        news.tenants["default"].note("c0", new[0])
        changed = tasks.create_task(tools.listing(AGENT))
    assert {tool.name[0] for tool in listing.result().tools} == {"f"}
    assert {tool.name[0] for tool in changed.result().tools} == {"g"}


@pytest.mark.usefixtures("pauses")
async def test_hosts_that_ask_at_once_have_a_list_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = count_lists(monkeypatch)
    tools = catalogue_of(clients_with([function(f"f{n}") for n in range(50)]))
    lists = await asyncio.gather(*(tools.listing(AGENT) for _ in range(20)))
    assert len(made) == 1
    assert all(each is lists[0] for each in lists)


@pytest.mark.usefixtures("pauses")
async def test_change_that_a_principal_does_not_see_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    made = count_lists(monkeypatch)
    news = ToolNews()
    tools = ToolCatalogue(Known([]), news, cast("ToolAges", OtherApis()))
    mine, others = clients_with([function("f")], 2)
    changes = tools.changes(limited_to("user-0"), Narrowing(), 0)
    await anext(changes)
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        telling = tasks.create_task(_next(changes))
        news.tenants["default"].note("c1", others)
        while len(made) < 2:  # the change of another user is compared
            await asyncio.sleep(0)
        news.tenants["default"].note("c0", mine)
        await telling
        assert len(made) == 3  # it was its own change that was told
    await changes.aclose()


async def _next(changes: Any) -> None:
    await anext(changes)


# --- ages ---


def rivals() -> list[Client]:
    return [*clients_with([function("add", parameters=ONE)]), *clients_with([function("add", parameters=TWO)], 1, 1)]


async def test_ages_are_asked_for_again_if_the_request_that_asked_was_given_up() -> None:
    others = OtherApis()
    others.answers.clear()
    tools = catalogue_of(rivals(), others)
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(tools.listing(AGENT))
        await steps(5)
        assert len(others.asked) == 1
        asking.cancel()
    others.answers.set()
    await tools.listing(AGENT)
    await tools.listing(AGENT)
    assert [len(digests) for digests in others.asked] == [2, 2]


class Published:
    """A connection that keeps what is published."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []

    def new_inbox(self) -> str:
        return "_INBOX.test"

    async def publish(self, subject: str, data: bytes, *, reply: str) -> None:
        self.messages.append(data)


async def test_all_tools_are_asked_for_in_as_many_messages_as_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ages, "ANSWER_SECONDS", 0)
    published = Published()
    digests = [f"{number:064x}" for number in range(2 * MAX_ASKED + 1)]
    await ToolAges(cast("Connection", published), ToolNews()).ask("default", digests)
    asked = [json.loads(message)["digests"] for message in published.messages]
    assert [len(each) for each in asked] == [MAX_ASKED, MAX_ASKED, 1]
    assert [digest for each in asked for digest in each] == digests
