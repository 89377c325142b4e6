"""What a registry writes, against a real server: races between registries, and mirrors that have not heard yet."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from nats.aio.msg import Msg
from support.nats.clients_bucket import record
from support.nats.nats_server import NatsServer
from support.nats.stores import EVENTS_STREAM
from support.played.registry_parts import halves
from support.wait import until

from protocol import codec, subjects
from protocol.errors import Conflict, InvalidRequest, Unavailable
from protocol.records import ClientRecord
from protocol.reports import Removal, Report, ReportAck
from protocol.runtime.nats.connection import Connection
from protocol.runtime.streams.jetstream import WrongRevision
from registry.bucket import store
from registry.bucket.gateway_entry import GatewayEntry, read_gateway_entry
from registry.bucket.store import Behind


def report(number: int, *records: ClientRecord, ended: tuple[str, ...] = ()) -> Report:
    removals = [Removal("default", client_id, "closed") for client_id in ended]
    return Report("gw-1", number, list(records), removals)


async def test_one_report_applied_by_two_registries_at_once_counts_once(private_nats: NatsServer) -> None:
    async with halves(private_nats.url, 2) as (both, announced):
        first = report(1, *(record(f"c{number}") for number in range(300)))
        acks = await asyncio.gather(*(half.store.apply(first) for half in both))
        assert acks == [ReportAck(1)] * 2
        await asyncio.gather(*(half.announcer.drain() for half in both))
        await until(lambda: len(announced.of("connected")) == 300)

        info = await both[0].stored("c7"), await both[0].number()
        assert info == (("gw-1", 1), 1)
        held = await stored_announcements(both[0].connection)
        assert held == 300


async def stored_announcements(connection: Connection) -> int:
    """Return how many announcements the events stream holds."""
    info = await connection.client.jetstream().stream_info(EVENTS_STREAM)
    return int(info.state.messages)


async def test_mirror_that_has_not_heard_yet_costs_nothing_but_a_second_look(private_nats: NatsServer) -> None:
    async with halves(private_nats.url, 2) as ((one, other), announced):
        await one.store.apply(report(1, record("a"), record("b")))
        await other.store.apply(report(2, record("a", revision=2)))
        await one.store.apply(report(3, ended=("a", "b", "never")))
        assert [await one.stored(client_id) for client_id in "ab"] == [None, None]
        await until(lambda: len(announced.messages) == 5)
        assert announced.of("disconnected") == {"a", "b"}

        await other.store.apply(report(4, record("a", revision=3)))  # over the marker that the removal left
        assert await one.stored("a") == ("gw-1", 3)


async def test_report_is_repeated_announcements_are_not(private_nats: NatsServer) -> None:
    """A registry that died between the records and the number leaves the report to be applied again."""
    async with halves(private_nats.url, 2) as ((dying, heir), _):
        await dying.store.apply(report(1, record("a")))
        await dying.announcer.drain()
        own = await dying.bucket.read(subjects.gateway_key("gw-1"))
        await dying.bucket.remove(subjects.gateway_key("gw-1"), own.revision)
        await heir.store.apply(report(1, record("a")))
        await heir.announcer.drain()
        assert await stored_announcements(heir.connection) == 1


@pytest.mark.parametrize("synced", [False, True])
async def test_what_a_registry_wrote_and_did_not_live_to_announce_is_announced_by_the_repeated_report(
    private_nats: NatsServer, monkeypatch: pytest.MonkeyPatch, synced: bool
) -> None:
    """Whether or not a sync comes first, which names the report before: the last that the gateway knows of."""
    async with halves(private_nats.url, 2) as ((dying, heir), announced):
        await dying.store.apply(report(1, record("name", app={"name": "old"}), record("list"), record("end")))
        now = [record("name", app={"name": "new"}, revision=2), record("list", revision=2), record("fresh")]
        end = Removal("default", "end", "closed", "user-1", "", 1)
        told = Report("gw-1", 2, now, [end], {"default.name": "old", "default.list": ""})
        before = len(announced.messages)

        monkeypatch.setattr(dying.announcer, "announce", nothing)
        monkeypatch.setattr(dying.announcer, "announce_update", nothing)
        monkeypatch.setattr(dying.store, "_reach", die)
        with pytest.raises(asyncio.CancelledError):
            await dying.store.apply(told)
        assert [await heir.stored(each) for each in ("name", "end")] == [("gw-1", 2), None]
        assert len(announced.messages) == before

        if synced:
            await heir.follow()
            await heir.store.sync("gw-1", 1, now, await heir.store.before_sync("gw-1"))
        assert await heir.store.apply(told) == ReportAck(2)
        await until(lambda: len(announced.messages) >= before + 5)
        found = {(each["change"], each["clientId"], each["app"], each.get("reason")) for each in announced.messages}
        assert found >= {
            ("updated", "name", "old", "renamed"),
            ("updated", "name", "new", None),
            ("updated", "list", "", None),
            ("connected", "fresh", "", None),
            ("disconnected", "end", "", "closed"),
        }


async def nothing(*_: object) -> None:
    """Announce nothing."""


async def die(*_: object) -> None:
    """End as a registry that is killed does."""
    raise asyncio.CancelledError


async def test_sync_announces_again_what_was_written_since_the_last_number(
    private_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry that died in a sync leaves no report to be repeated."""
    async with halves(private_nats.url, 2) as ((dying, heir), announced):
        await dying.store.apply(report(1, record("known")))
        before = await heir.store.before_sync("gw-1")
        monkeypatch.setattr(dying.announcer, "announce", nothing)
        monkeypatch.setattr(dying.store, "_write", die)
        with pytest.raises(asyncio.CancelledError):
            await dying.store.sync("gw-1", 5, [record("known"), record("lost")], before)
        await heir.store.sync("gw-1", 5, [record("known"), record("lost")], before)
        assert await heir.number() == 5
        await until(lambda: "lost" in announced.of("connected"))
        assert announced.changes() == [("connected", "known"), ("connected", "lost")]


@pytest.mark.parametrize("heirs_way", ["withdraw", "sync", "sync that had begun", "report"])
async def test_sessions_that_a_dead_registry_withdrew_are_announced_by_its_heir(
    private_nats: NatsServer, monkeypatch: pytest.MonkeyPatch, heirs_way: str
) -> None:
    """It died after the records were removed, before anybody was told."""
    async with halves(private_nats.url, 2) as ((dying, heir), announced):
        for half in (dying, heir):
            await half.follow()
        await dying.store.apply(report(1, record("a", app={"name": "todo"}, revision=7), record("b")))
        await until(lambda: all(len(half.mirror.clients("default")) == 2 for half in (dying, heir)))
        before = await heir.store.before_sync("gw-1")
        monkeypatch.setattr(store, "SYNC_ANNOUNCED_SECONDS", 0.1)
        dying.running[0].cancel()  # it announces nothing any more
        with pytest.raises(Unavailable):
            await dying.store.withdraw("gw-1")
        await until(lambda: not heir.mirror.clients("default"))
        monkeypatch.undo()
        assert announced.reasons() == {}
        if heirs_way == "withdraw":
            await heir.store.withdraw("gw-1")
        elif heirs_way == "sync":
            await heir.store.sync("gw-1", 1, [], await heir.store.before_sync("gw-1"))
        elif heirs_way == "sync that had begun":
            await heir.store.sync("gw-1", 1, [], before)
        else:
            await heir.store.apply(report(2))
        await heir.announcer.drain()
        gone = {each["clientId"]: each for each in announced.messages if each["change"] == "disconnected"}
        assert {key: each["reason"] for key, each in gone.items()} == {"a": "gateway_lost", "b": "gateway_lost"}
        assert (gone["a"]["user"], gone["a"]["app"], gone["a"]["revision"]) == ("user-1", "todo", 7)
        assert read_gateway_entry((await heir.bucket.read(subjects.gateway_key("gw-1"))).data).leaving == []


async def test_removal_whose_acknowledgement_was_lost_is_announced_by_the_repeated_report(
    private_nats: NatsServer,
) -> None:
    async with halves(private_nats.url) as ((half,), announced):
        await half.store.apply(report(1, record("a", revision=3)))
        stored = await half.bucket.read("default.a")
        await half.bucket.remove("default.a", stored.revision)  # the registry did not learn that this was done
        await half.store.apply(Report("gw-1", 2, [], [Removal("default", "a", "too_slow", "ann", "todo", 3)]))
        await until(lambda: announced.reasons() == {"a": "too_slow"})
        gone = announced.messages[-1]
        assert (gone["user"], gone["app"], gone["revision"]) == ("ann", "todo", 3)


async def test_repeated_removal_is_stored_once_and_so_is_the_next_life_of_its_client(
    private_nats: NatsServer,
) -> None:
    async with halves(private_nats.url, 2) as ((dying, heir), _):
        end = Report("gw-1", 2, [], [Removal("default", "a", "closed", "ann", "", 1)])
        await dying.store.apply(report(1, record("a")))
        await dying.store.apply(end)
        own = await dying.bucket.read(subjects.gateway_key("gw-1"))
        await dying.bucket.put(subjects.gateway_key("gw-1"), codec.encode(GatewayEntry(1)), own.revision)
        await heir.store.apply(end)
        assert await stored_announcements(heir.connection) == 2
        await heir.store.apply(report(3, record("a")))  # as after a withdrawal: with the revision that it had
        assert await stored_announcements(heir.connection) == 3


async def test_application_that_changes_its_name_is_announced_under_both(private_nats: NatsServer) -> None:
    """Who may see only the former name learns that the client goes, who may see only the present that it is there."""
    async with halves(private_nats.url, 2) as ((half, _), announced):
        for number, app in enumerate(({}, {"name": "todo"}, {"name": "todo", "version": "2"}, {"name": "notes"}), 1):
            await half.store.apply(report(number, record("a", app=app, revision=number)))
        await until(lambda: len(announced.messages) == 5)
        told = [(each["change"], each["app"], each["revision"], each.get("reason")) for each in announced.messages]
        assert told == [
            ("connected", "", 1, None),
            ("updated", "todo", 2, None),
            ("updated", "todo", 3, None),
            ("updated", "todo", 4, "renamed"),
            ("updated", "notes", 4, None),
        ]
        await half.announcer.drain()
        assert await stored_announcements(half.connection) == 5


async def test_report_is_acknowledged_only_when_it_is_announced(
    private_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "ANNOUNCED_SECONDS", 0.1)
    async with halves(private_nats.url) as ((half,), _):
        jetstream = half.connection.client.jetstream()
        await jetstream.add_stream(name="in_the_way", subjects=["agentbridge.default.client.*.never"])
        for _ in range(2):
            with pytest.raises(Unavailable):
                await half.store.apply(report(1, record("a")))
        assert await half.number() == 0
        await jetstream.delete_stream("in_the_way")
        await half.announcer.drain()
        assert await half.store.apply(report(1, record("a"))) == ReportAck(1)
        assert await stored_announcements(half.connection) == 1


@pytest.mark.parametrize(("number", "error"), [(1, Conflict), (4, Behind), (9, Behind)])
async def test_report_out_of_turn_changes_nothing(
    private_nats: NatsServer, number: int, error: type[Exception]
) -> None:
    async with halves(private_nats.url) as ((half,), _):
        for applied in (1, 2):
            await half.store.apply(report(applied))
        with pytest.raises(error):
            await half.store.apply(report(number, record("a")))
        assert (await half.stored("a"), await half.number()) == (None, 2)


async def test_reports_of_one_gateway_are_applied_one_after_the_other(private_nats: NatsServer) -> None:
    async with halves(private_nats.url) as ((half,), _):
        reports = [report(number, record("a", revision=number)) for number in range(1, 20)]
        await asyncio.gather(*(half.store.apply(each) for each in reports))
        assert (await half.stored("a"), await half.number()) == (("gw-1", 19), 19)


@pytest.mark.parametrize(
    "bad",
    [
        Report("gw.1", 1, [], []),
        report(1, record("a", gateway_id="gw-2")),
        report(1, record("*")),
        report(1, ended=("a.b",)),
    ],
)
async def test_ids_that_are_none_are_refused(private_nats: NatsServer, bad: Report) -> None:
    async with halves(private_nats.url) as ((half,), _):
        with pytest.raises(InvalidRequest):
            await half.store.apply(bad)


async def test_record_that_cannot_be_read_gives_way(private_nats: NatsServer) -> None:
    async with halves(private_nats.url) as ((half,), announced):
        await half.bucket.put("default.a", b"no json", 0)
        await half.store.apply(report(1, record("a")))
        assert await half.stored("a") == ("gw-1", 1)
        await until(lambda: announced.of("connected") == {"a"})


async def test_sync_leaves_alone_what_others_have_written_since_it_began(private_nats: NatsServer) -> None:
    async with halves(private_nats.url) as ((half,), announced):
        await half.follow()
        await half.store.apply(report(1, record("kept"), record("gone"), record("changed"), record("moved")))
        await until(lambda: len(half.mirror.clients("default")) == 4)
        before = await half.store.before_sync("gw-1")
        await half.store.apply(report(2, record("changed", revision=2), record("new")))
        await half.store.apply(Report("gw-2", 1, [record("moved", gateway_id="gw-2", revision=2)], []))

        await half.store.sync("gw-1", 1, [record("kept"), record("changed")], before)
        found = {each: await half.stored(each) for each in ("kept", "gone", "changed", "moved", "new")}
        assert found == {
            "kept": ("gw-1", 1),
            "gone": None,
            "changed": ("gw-1", 2),
            "moved": ("gw-2", 2),
            "new": ("gw-1", 1),
        }
        assert await half.number() == 2
        await until(lambda: announced.reasons() == {"gone": "unreported"})


async def test_withdrawal_leaves_alone_what_has_a_new_owner(private_nats: NatsServer) -> None:
    async with halves(private_nats.url, 2) as ((half, other), announced):
        await half.follow()
        await half.store.apply(report(1, record("a"), record("b")))
        await until(lambda: len(half.mirror.clients("default")) == 2)
        await other.store.apply(Report("gw-2", 1, [record("b", gateway_id="gw-2", revision=2)], []))
        assert await half.store.withdraw("gw-1") in (1, 2)
        assert [await half.stored(each) for each in "ab"] == [None, ("gw-2", 2)]
        await until(lambda: announced.reasons() == {"a": "gateway_lost"})
        assert await half.number() == 0


async def test_write_over_another_revision_is_refused(private_nats: NatsServer) -> None:
    async with halves(private_nats.url) as ((half,), _):
        revision = await half.bucket.put("default.a", b"1", 0)
        for expected in (0, revision + 1):
            with pytest.raises(WrongRevision):
                await half.bucket.put("default.a", b"2", expected)
            with pytest.raises(WrongRevision):
                await half.bucket.remove("default.a", expected)
        marker = await half.bucket.remove("default.a", revision)
        assert (await half.bucket.read("default.a")).revision == marker
        assert (await half.bucket.read("default.never")).revision == 0


async def test_announcements_survive_a_restart_of_nats_in_order(private_nats: NatsServer) -> None:
    async with halves(private_nats.url) as ((half,), _):
        private_nats.kill()
        await until(lambda: not half.connection.connected)
        for revision in range(1, 4):
            await half.announcer.announce("updated", record("a", revision=revision), revision)
        with pytest.raises(Unavailable):
            await half.bucket.read("default.a")
        await private_nats.start()
        async with asyncio.timeout(10):
            await half.announcer.drain()
        stored = [await stored_announcement(half.connection, seq) for seq in (1, 2, 3)]
        assert [each["revision"] for each in stored] == [1, 2, 3]


async def test_announcement_that_is_repeated_is_not_overtaken_by_the_next_of_its_client(
    private_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with halves(private_nats.url) as ((half,), _):
        monkeypatch.setattr(half.connection, "request", losing_the_first(".connected", half.connection.request))
        for client_id in ("a", "b"):
            await half.announcer.announce("connected", record(client_id), 1)
            await half.announcer.announce("disconnected", record(client_id), 2, "closed")
        await half.announcer.drain()
        stored = [await stored_announcement(half.connection, seq) for seq in range(1, 5)]
        for client_id in ("a", "b"):
            assert [each["change"] for each in stored if each["clientId"] == client_id] == ["connected", "disconnected"]


def losing_the_first(ending: str, request: Callable[..., Awaitable[Msg]]) -> Callable[..., Awaitable[Msg]]:
    """Return a `Connection.request` that loses the first request on each subject with this ending."""
    lost = set()

    async def lose_or_send(subject: str, *rest: Any, **named: Any) -> Msg:
        if subject.endswith(ending) and subject not in lost:
            lost.add(subject)
            raise Unavailable("NATS is away")
        return await request(subject, *rest, **named)

    return lose_or_send


async def stored_announcement(connection: Connection, sequence: int) -> Any:
    message = await connection.client.jetstream().get_msg(EVENTS_STREAM, sequence)
    return json.loads(message.data or b"")
