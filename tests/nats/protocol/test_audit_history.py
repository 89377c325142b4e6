"""Reading the audit stream backwards, from a real stream that others fill, too."""

import asyncio
import datetime
from collections.abc import AsyncIterator

import msgspec
import pytest
from support.nats.nats_server import NatsServer
from support.nats.stores import AUDIT_STREAM, make_store
from support.settings import settings_for

from protocol import codec, subjects
from protocol.audit import AuditFilter, AuditRecord
from protocol.runtime.commands.audit_history import AuditHistory, HistoryPage
from protocol.runtime.nats.connection import Connection, connect
from protocol.runtime.settings import Settings
from protocol.runtime.streams import jetstream
from protocol.runtime.streams.positions import Position, epoch_of
from protocol.runtime.streams.stores import audit_of

EVERYTHING = AuditFilter()


@pytest.fixture
async def connection(private_nats: NatsServer) -> AsyncIterator[Connection]:
    async with connect(settings_for(Settings, private_nats.url), "test", "test") as connected:
        yield connected


@pytest.fixture
async def history(connection: Connection) -> AuditHistory:
    """The reader of a stream that is there."""
    await make_store(connection.client, audit_of("default"))
    return await reader(connection)


async def reader(connection: Connection) -> AuditHistory:
    history = AuditHistory(connection)
    await history.start()
    return history


async def store(connection: Connection, number: int, tenant: str = "default", agent: str = "a", count: int = 1) -> None:
    """Store records whose request ids count up from `number`; the last is acknowledged."""
    for each in range(number, number + count):
        record = AuditRecord(
            at=at(0), tenant=tenant, agent=agent, request_id=str(each), outcome="success", duration_ms=1, by="gateway"
        )
        subject, body = subjects.audit(tenant, "c", "success"), codec.encode(record)
        if each == number + count - 1:
            await jetstream.publish(connection, subject, body, {})
        else:
            connection.publish_now(subject, body)


def at(seconds: float) -> str:
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def ids(page: HistoryPage) -> list[str | None]:
    return [found.record.request_id for found in page.found]


async def test_pages_go_back_to_the_beginning_without_a_hole(connection: Connection, history: AuditHistory) -> None:
    await store(connection, 1, count=1000)
    seen: list[str | None] = []
    before, more = None, True
    while more:
        page = await history.page("default", EVERYTHING, 300, before)
        seen += ids(page)
        before, more = page.reached, page.more
    assert seen == [str(number) for number in range(1000, 0, -1)]


async def test_a_tenants_records_are_its_own(connection: Connection, history: AuditHistory) -> None:
    await make_store(connection.client, audit_of("acme"))
    await store(connection, 1)
    await store(connection, 1, tenant="acme", count=3000)
    await store(connection, 2, count=2)
    await store(connection, 1, tenant="acme", count=3000)
    page = await history.page("default", EVERYTHING, 100)
    assert (ids(page), page.more) == (["3", "2", "1"], False)
    assert (await history.page("nobody", EVERYTHING, 100)).found == []


async def test_filters_are_looked_for_within_bounds_and_a_short_page_says_that_there_is_more(
    connection: Connection, history: AuditHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protocol.runtime.commands.audit_history.MAX_LOOKED_THROUGH", 512)
    await store(connection, 1, agent="rare")
    await store(connection, 2, count=1500)
    first = await history.page("default", AuditFilter(agent="rare"), 10)
    assert (first.found, first.more) == ([], True)
    pages = [first]
    while pages[-1].more:
        pages.append(await history.page("default", AuditFilter(agent="rare"), 10, pages[-1].reached))
    assert [ids(page) for page in pages if page.found] == [["1"]]
    assert len(pages) <= 4


async def test_page_is_bounded_by_bytes_too(
    connection: Connection, history: AuditHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protocol.runtime.commands.audit_history.MAX_PAGE_BYTES", 250)
    await store(connection, 1, count=6)
    first = await history.page("default", EVERYTHING, 100)
    second = await history.page("default", EVERYTHING, 100, first.reached)
    assert (ids(first), first.more) == (["6", "5"], True)
    assert ids(second) == ["4", "3"]


async def test_times_narrow(connection: Connection, history: AuditHistory) -> None:
    await store(connection, 1, count=10)
    assert len((await history.page("default", AuditFilter(since=at(-60)), 100)).found) == 10
    assert (await history.page("default", AuditFilter(since=at(3600)), 100)).found == []
    assert (await history.page("default", AuditFilter(until=at(-3600)), 100)).found == []
    assert len((await history.page("default", AuditFilter(until=at(3600), since=at(-3600)), 100)).found) == 10


async def test_what_is_no_record_of_ours_is_passed_over(connection: Connection, history: AuditHistory) -> None:
    await store(connection, 1)
    for junk in (b"", b"{", b"[]", b'{"at":7}', b"\xff"):
        await jetstream.publish(connection, subjects.audit("default", "c", "success"), junk, {})
    assert ids(await history.page("default", EVERYTHING, 10)) == ["1"]


async def test_an_empty_stream_is_an_empty_page_and_so_is_a_missing_one(
    connection: Connection, history: AuditHistory
) -> None:
    page = await history.page("default", EVERYTHING, 10)
    assert (page.found, page.more) == ([], False)
    await jetstream.request(connection, f"STREAM.DELETE.{AUDIT_STREAM}", msgspec.json.Decoder())
    page = await history.page("default", EVERYTHING, 10)
    assert (page.found, page.more) == ([], False)


async def test_many_readers_at_once_get_what_they_asked_for(connection: Connection, history: AuditHistory) -> None:
    await store(connection, 1, count=600)
    epoch = epoch_of((await history.info("default")).created)
    places = [Position(epoch, before) for before in range(100, 120)]
    pages = await asyncio.gather(*(history.page("default", EVERYTHING, 5, place) for place in places))
    assert [ids(page)[0] for page in pages] == [str(before - 1) for before in range(100, 120)]
