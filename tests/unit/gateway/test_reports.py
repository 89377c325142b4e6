"""What a gateway tells the registry: numbered, repeated until acknowledged, bounded, and covered by the digest."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast

import msgspec
import nats.errors
import pytest
from nats.aio.msg import Msg
from support.played.sessions import OWNER, live_session, session
from support.wait import until

from gateway.capabilities.contracts import Contracts
from gateway.reports import Reporter
from gateway.sessions.live import LiveSession, Socket
from protocol.errors import Conflict, PayloadTooLarge, Unavailable
from protocol.frames import AppInfo
from protocol.ids import new_client_id
from protocol.messages import ErrorResponse
from protocol.reports import Digest, EndReason, GatewayPong, Removal, Report, ReportAck
from protocol.runtime.nats.connection import Connection

MAX_PAYLOAD = 1024 * 1024
ACK = object()


class FakeRegistry:
    """A connection on which a registry answers as the test has it: `ACK`, an error to raise, or bytes."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.answer: Any = ACK
        self.max_payload = MAX_PAYLOAD

    async def request(self, subject: str, payload: bytes, timeout_seconds: float) -> Msg:
        report = msgspec.json.decode(payload, type=Report)
        assert subject == "agentbridge._registry.report"
        if len(payload) > self.max_payload:
            raise PayloadTooLarge("the message is larger than NATS takes")
        self.reports.append(report)
        if isinstance(self.answer, Exception):
            raise self.answer
        return Msg(cast("Any", None), data=self.answer if self.answer is not ACK else ack(report.number))

    def numbers(self) -> list[int]:
        return [report.number for report in self.reports]

    async def has_got(self, number: int) -> None:
        await until(lambda: number in self.numbers())


class Stage:
    """A reporter at work, with a registry and sessions of the test's making."""

    def __init__(self, reporter: Reporter, registry: FakeRegistry) -> None:
        self.reporter = reporter
        self.registry = registry
        self.sessions: dict[str, LiveSession] = {}

    def connect(self, *capabilities: Any, metadata: Any = None) -> LiveSession:
        core = session(*capabilities)
        core.client_id = new_client_id()
        core.metadata = metadata or {}
        live = live_session(core, cast("Socket", None), self.reporter.changed)
        self.sessions[core.client_id] = live
        self.reporter.changed(live)
        return live

    def update(self, live: LiveSession) -> None:
        live.core.register(Contracts().read([], OWNER, 0), None, None, None)
        self.reporter.changed(live)

    def end(self, live: LiveSession, reason: EndReason = EndReason.CLOSED) -> None:
        del self.sessions[live.core.client_id]
        self.reporter.ended(live, reason)

    async def settled(self) -> None:
        async with asyncio.timeout(5):
            await self.reporter.say_goodbye()
        pong = self.reporter.pong()
        assert pong == GatewayPong("gw-1", pong.number, len(self.sessions), digest_of(*self.sessions.values()))


@contextlib.asynccontextmanager
async def running_stage(**seconds: float) -> AsyncIterator[Stage]:
    """Run a reporter with these durations: `goodbye_seconds=0.1`."""
    registry = FakeRegistry()
    reporter = Reporter("gw-1", cast("Connection", registry), retry_seconds=0.01, **seconds)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(reporter.run())
        yield Stage(reporter, registry)
        running.cancel()


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with running_stage() as stage:
        yield stage


def ack(number: int) -> bytes:
    return msgspec.json.encode(ReportAck(number))


def removal(live: LiveSession, reason: EndReason = EndReason.CLOSED) -> Removal:
    core = live.core
    return Removal("default", core.client_id, reason, core.principal.sub, core.app.name, core.revision)


def digest_of(*sessions: LiveSession) -> str:
    digest = Digest()
    for live in sessions:
        digest.toggle(live.key, live.core.revision)
    return str(digest)


async def test_pong_covers_what_was_reported(stage: Stage) -> None:
    assert stage.reporter.pong() == GatewayPong("gw-1", 0, 0, str(Digest()))
    one, two = stage.connect("add"), stage.connect()
    assert stage.reporter.pong() == GatewayPong("gw-1", 0, 0, str(Digest())), "not before it is on its way"
    await stage.settled()
    assert stage.reporter.pong() == GatewayPong("gw-1", 1, 2, digest_of(one, two))
    assert stage.registry.reports == [Report("gw-1", 1, [one.record(), two.record()], [])]


async def test_changes_in_a_row_are_told_once_as_they_stand(stage: Stage) -> None:
    live = stage.connect("add")
    stage.update(live)
    stage.update(live)
    await stage.settled()
    assert stage.registry.reports == [Report("gw-1", 1, [live.record()], [])]


async def test_update_and_removal_follow_with_the_next_numbers(stage: Stage) -> None:
    live, other = stage.connect("add"), stage.connect()
    await stage.settled()
    stage.update(live)
    await stage.settled()
    assert stage.reporter.pong() == GatewayPong("gw-1", 2, 2, digest_of(live, other))
    stage.end(live, EndReason.TOO_SLOW)
    await stage.settled()
    assert stage.registry.reports[1:] == [
        Report("gw-1", 2, [live.record()], [], {live.key: ""}),
        Report("gw-1", 3, [], [removal(live, EndReason.TOO_SLOW)]),
    ]
    assert stage.reporter.pong() == GatewayPong("gw-1", 3, 1, digest_of(other))


async def test_session_that_was_never_reported_needs_no_report(stage: Stage) -> None:
    stage.end(stage.connect())
    other = stage.connect()
    await stage.settled()
    assert stage.registry.reports == [Report("gw-1", 1, [other.record()], [])]


async def test_session_that_ends_while_its_report_is_on_its_way_is_removed_by_the_next(stage: Stage) -> None:
    stage.registry.answer = TimeoutError()
    live = stage.connect()
    await stage.registry.has_got(1)
    stage.end(live)
    stage.registry.answer = ACK
    await stage.settled()
    assert [(report.number, report.removals) for report in stage.registry.reports[-2:]] == [
        (1, []),
        (2, [removal(live)]),
    ]
    assert stage.reporter.pong() == GatewayPong("gw-1", 2, 0, str(Digest()))


@pytest.mark.parametrize(
    "answer",
    [
        TimeoutError(),
        Unavailable("NATS is away"),
        PayloadTooLarge("a server that takes less has come"),
        msgspec.json.encode(ErrorResponse(Conflict("not the next number").body())),
        ack(7),
        b'{"stream":"stray","seq":1}',
        b"\xff",
        b"",
    ],
)
async def test_report_is_repeated_to_the_byte_until_it_is_acknowledged(stage: Stage, answer: Any) -> None:
    stage.registry.answer = answer
    live = stage.connect("add")
    await until(lambda: len(stage.registry.reports) >= 3)
    stage.update(live)
    assert stage.registry.numbers() == [1] * len(stage.registry.reports)
    assert all(report == stage.registry.reports[0] for report in stage.registry.reports)
    stage.registry.answer = ACK
    await stage.settled()
    assert stage.registry.reports[-1] == Report("gw-1", 2, [live.record()], [], {live.key: ""})


async def test_record_above_a_lowered_limit_is_told_without_capabilities_and_holds_up_nobody(stage: Stage) -> None:
    stage.registry.max_payload = 40_000
    large = stage.connect(*(f"{number}-{'x' * 200}" for number in range(400)))
    small = stage.connect("add")
    await stage.settled()
    told = [record for report in stage.registry.reports for record in report.records]
    assert told == [large.record().reduced(), small.record()]
    assert stage.reporter.pong().digest == digest_of(large, small)
    assert stage.reporter.page(stage.sessions.values(), "").records == sorted(told, key=lambda each: each.client_id)


async def test_report_that_became_too_large_while_it_was_repeated_is_told_in_smaller_ones(stage: Stage) -> None:
    """Its number is told without changes, for the registry may have applied it; then come the changes."""
    stage.registry.answer = TimeoutError()
    sessions = [stage.connect(f"{number}-{'x' * 200}", f"{'y' * 200}") for number in range(100)]
    await until(lambda: stage.registry.reports)
    stage.registry.max_payload, stage.registry.answer = 20_000, ACK
    stage.end(sessions[7])
    await stage.settled()
    first, *others = [report for report in stage.registry.reports if len(msgspec.json.encode(report)) < 20_000]
    assert (first.number, first.records, first.removals) == (1, [], [])
    assert [report.number for report in others] == list(range(2, len(others) + 2))
    told = [record.client_id for report in others for record in report.records]
    assert told == [live.core.client_id for live in sessions if live is not sessions[7]]
    assert [gone.client_id for report in others for gone in report.removals] == [sessions[7].core.client_id]
    assert stage.reporter.pong().digest == digest_of(*(live for live in sessions if live is not sessions[7]))


async def test_report_in_flight_does_not_count_until_it_is_acknowledged(stage: Stage) -> None:
    """A registry that took it for applied would acknowledge the repeat without announcing what it tells of."""
    live = stage.connect("add")
    await stage.settled()
    before = digest_of(live)
    stage.registry.answer = TimeoutError()
    stage.update(live)
    await stage.registry.has_got(2)
    assert stage.reporter.pong() == GatewayPong("gw-1", 1, 1, before, reporting=True)
    assert stage.reporter.page(stage.sessions.values(), "").number == 1
    stage.registry.answer = ACK
    await stage.settled()
    assert stage.reporter.pong() == GatewayPong("gw-1", 2, 1, digest_of(live))
    assert stage.reporter.page(stage.sessions.values(), "").number == 2


async def test_update_tells_what_the_application_called_itself_in_the_report_before(stage: Stage) -> None:
    live = stage.connect("add")
    for name in ("old", "new"):
        await stage.settled()
        live.core.register(Contracts().read([], OWNER, 0), AppInfo(name), None, None)
        stage.reporter.changed(live)
    await stage.settled()
    assert [report.former for report in stage.registry.reports] == [{}, {live.key: ""}, {live.key: "old"}]


async def test_reports_stay_below_what_nats_takes(stage: Stage) -> None:
    """Many, large, and large by their metadata: each is told, once, in messages of bounded size."""
    large = [stage.connect({"name": "big", "description": "x" * 600_000}) for _ in range(2)]
    described = [stage.connect(metadata={"k": "x" * 16_000}) for _ in range(100)]
    many = [stage.connect() for _ in range(1200)]
    await stage.settled()
    told = [record.client_id for report in stage.registry.reports for record in report.records]
    assert sorted(told) == sorted(live.core.client_id for live in large + described + many)
    assert stage.reporter.pong().digest == digest_of(*large, *described, *many)


async def test_removals_are_bounded_too(stage: Stage) -> None:
    live = [stage.connect() for _ in range(1200)]
    await stage.settled()
    before = len(stage.registry.reports)
    for one in live:
        stage.end(one, cast("EndReason", "x" * 100))
    await stage.settled()
    told = [removal.client_id for report in stage.registry.reports[before:] for removal in report.removals]
    assert told == [one.core.client_id for one in live]
    assert stage.reporter.pong().sessions == 0


async def test_large_record_does_not_join_many_removals(stage: Stage) -> None:
    live = [stage.connect() for _ in range(400)]
    await stage.settled()
    for one in live:
        stage.end(one, cast("EndReason", "x" * 300))
    stage.connect({"name": "big", "description": "x" * 950_000})
    await stage.settled()
    assert stage.reporter.pong().sessions == 1


async def test_pages_are_bounded_ordered_and_complete(stage: Stage) -> None:
    live = [stage.connect({"name": "f", "description": "x" * 50_000}) for _ in range(40)]
    live.append(stage.connect({"name": "f", "description": "x" * 900_000}))
    await stage.settled()
    unreported, gone = stage.connect(), live.pop(3)
    stage.end(gone)
    found, after, pages = [], "", 0
    while True:
        page = stage.reporter.page(stage.sessions.values(), after)
        assert len(msgspec.json.encode(page)) < MAX_PAYLOAD
        found += page.records
        pages += 1
        if page.after is None:
            break
        after = page.after
    assert [record.client_id for record in found] == sorted(one.core.client_id for one in live)
    assert unreported.core.client_id not in {record.client_id for record in found}
    assert pages >= 4


async def test_pages_of_nothing_are_one_empty_page(stage: Stage) -> None:
    page = stage.reporter.page(stage.sessions.values(), "")
    assert (page.number, page.records, page.after) == (0, [], None)
    assert stage.reporter.page(stage.sessions.values(), "zzz").records == []


async def test_goodbye_waits_until_the_registry_knows_but_not_for_ever() -> None:
    async with running_stage(goodbye_seconds=0.1) as stage:
        live = stage.connect()
        await until(lambda: stage.reporter.pong().number == 1)
        stage.registry.answer = TimeoutError()
        stage.end(live)
        async with asyncio.timeout(5):
            await stage.reporter.say_goodbye()
        assert stage.reporter.pong().number in (1, 2)
        stage.registry.answer = ACK
        await until(lambda: stage.registry.reports[-1].removals == [removal(live)])


async def test_goodbye_does_not_wait_for_a_registry_that_is_not_there() -> None:
    async with running_stage(goodbye_seconds=600) as stage:
        stage.registry.answer = nats.errors.NoRespondersError()
        stage.connect()
        async with asyncio.timeout(30):
            await stage.reporter.say_goodbye()


async def test_goodbye_waits_for_a_registry_that_is_back() -> None:
    async with running_stage(goodbye_without_registry_seconds=600) as stage:
        live = stage.connect()
        await stage.settled()
        stage.registry.answer = nats.errors.NoRespondersError()
        stage.end(live)
        await stage.registry.has_got(2)
        stage.registry.answer = ACK
        await stage.reporter.say_goodbye()
        assert stage.reporter.pong().number == 2
