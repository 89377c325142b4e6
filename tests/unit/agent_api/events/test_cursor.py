"""A reader's place: what it is handed, how much at a time, and when it is too slow. Filters and positions."""

import asyncio
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_api.events.cursor import MAX_BATCH, MAX_BEHIND_SECONDS, MAX_SCANNED, Cursor, EventPage
from agent_api.events.fanout import Fanout
from agent_api.events.filters import Filters, matches, visible
from agent_api.events.gaps import Gap, expired, gap_of, recreated, unknown
from agent_api.events.history import History
from agent_api.events.messages import Message, read_message
from agent_api.events.reader import Reader
from agent_api.events.ring import OVERHEAD_BYTES, Ring
from agent_api.events.wakeups import Wakeups
from protocol.access import AGENT, APP, ClientView, Principal
from protocol.errors import BridgeError, Overloaded
from protocol.runtime.streams.jetstream import StreamInfo, StreamState
from protocol.runtime.streams.positions import Position, epoch_of, parse_position
from protocol.runtime.streams.stores import TenantStore
from protocol.shares import Shares

LATE = MAX_BEHIND_SECONDS - 1
CREATED = "2026-01-01T00:00:00.5Z"
EPOCH = "202601010000005"
AGENT_ONE = Principal("agent-1", AGENT, "default", float("inf"))
ANN = ClientView("default", "c1", "ann", "todo")


def message(sequence: int, name: str = "e", client: ClientView = ANN, data: bytes = b"{}") -> Message:
    return Message(Position(EPOCH, sequence), "event", name, client, data)


def info(last: int, first: int = 1, created: str = CREATED) -> StreamInfo:
    return StreamInfo({}, created, StreamState(last, first))


class Somebody:
    """Listens, and counts how often it is woken."""

    def __init__(self, cursor: Cursor) -> None:
        self.cursor = cursor
        self.woken = 0

    def wake(self) -> None:
        self.woken += 1

    def end(self, error: BridgeError) -> None:
        raise AssertionError(error)

    def count_held(self) -> None:
        raise AssertionError


def fanout_at(last: int, **limits: int) -> Fanout:
    fanout = Fanout(Ring(**limits))
    fanout.begin(info(last))
    return fanout


def reader_of(fanout: Fanout, filters: Filters | None = None, principal: Principal = AGENT_ONE) -> Somebody:
    somebody = Somebody(Cursor(principal, filters or Filters(), fanout.ring.end))
    fanout.add(somebody)
    assert fanout.attach(somebody)
    return somebody


def sequences(items: list[Message | Gap]) -> list[int]:
    return [item.position.sequence for item in items]


def test_reader_is_woken_once_for_a_burst_that_it_then_takes_in_batches() -> None:
    fanout = fanout_at(0)
    reader = reader_of(fanout)
    for sequence in range(1, MAX_BATCH + 11):
        fanout.deliver(sequence, message(sequence))
    assert reader.woken == 1
    assert sequences(reader.cursor.take(fanout.ring, 0.0)) == list(range(1, MAX_BATCH + 1))
    assert sequences(reader.cursor.take(fanout.ring, 0.0)) == list(range(MAX_BATCH + 1, MAX_BATCH + 11))
    assert reader.cursor.waiting


def test_reader_is_not_woken_for_what_it_does_not_want_or_may_not_see() -> None:
    fanout = fanout_at(0)
    limited = Principal("agent-2", AGENT, "default", float("inf"), users=frozenset({"bob"}))
    readers = [
        reader_of(fanout, Filters(names=("other",))),
        reader_of(fanout, Filters(client_id="c2")),
        reader_of(fanout, principal=limited),
        reader_of(fanout, principal=Principal("agent-3", AGENT, "acme", float("inf"))),
        reader_of(fanout, principal=Principal("app", APP, "default", float("inf"))),
    ]
    fanout.deliver(1, message(1))
    assert [reader.woken for reader in readers] == [0] * len(readers)
    for reader in readers:
        reader.cursor.settle(fanout.ring)
        assert reader.cursor.position == Position(EPOCH, 1)


def test_long_search_for_little_is_done_in_parts() -> None:
    fanout = fanout_at(0)
    for sequence in range(1, MAX_SCANNED + 2):
        fanout.deliver(sequence, message(sequence, "rare" if sequence > MAX_SCANNED else "often"))
    somebody = Somebody(Cursor(AGENT_ONE, Filters(names=("rare",)), Position(EPOCH, 0)))
    assert fanout.attach(somebody)
    assert somebody.cursor.take(fanout.ring, 0.0) == []
    assert not somebody.cursor.waiting
    assert sequences(somebody.cursor.take(fanout.ring, 0.0)) == [MAX_SCANNED + 1]


def outrun_reader() -> tuple[Fanout, Somebody]:
    """Have five messages come at once, of which memory holds three, for a reader that had caught up."""
    fanout = fanout_at(0, max_messages=3)
    reader = reader_of(fanout)
    for sequence in range(1, 6):
        fanout.deliver(sequence, message(sequence))
    assert reader.cursor.take(fanout.ring, 0.0) == []
    assert not reader.cursor.live
    return fanout, reader


def test_reader_that_memory_outruns_goes_on_in_history() -> None:
    fanout, reader = outrun_reader()
    assert reader.cursor.position == Position(EPOCH, 0)
    assert not fanout.attach(reader)
    assert sequences(reader.cursor.turn(EventPage([message(1), message(2)], reached=2))) == [1, 2]
    assert fanout.attach(reader)
    assert sequences(reader.cursor.take(fanout.ring, LATE)) == [3, 4, 5]
    fanout.deliver(6, message(6))
    assert sequences(reader.cursor.take(fanout.ring, 9 * LATE)) == [6]  # it had caught up


def test_outrun_reader_that_does_not_come_in_time_to_where_the_messages_were_is_too_slow() -> None:
    fanout, reader = outrun_reader()
    reader.cursor.turn(EventPage([message(1)], reached=1))
    assert reader.cursor.take(fanout.ring, LATE) == []
    with pytest.raises(Overloaded):
        reader.cursor.take(fanout.ring, MAX_BEHIND_SECONDS)
    assert reader.cursor.position == Position(EPOCH, 1)  # from there it may resume


def test_outrun_reader_that_keeps_its_distance_is_not_too_slow() -> None:
    fanout, reader = outrun_reader()
    for passed in range(1, 10):
        reached = 5 * passed
        for sequence in range(reached + 1, reached + 6):
            fanout.deliver(sequence, message(sequence))
        reader.cursor.turn(EventPage(reached=reached))
        assert reader.cursor.take(fanout.ring, passed * LATE) == []
        assert not fanout.attach(reader)
    with pytest.raises(Overloaded):
        reader.cursor.take(fanout.ring, 9 * LATE + MAX_BEHIND_SECONDS)


class Clock:
    """A clock that a test moves on."""

    def __init__(self) -> None:
        self.now = asyncio.get_running_loop().time()

    def time(self) -> float:
        """Return the time, as an event loop does."""
        return self.now


class SlowPast:
    """History of a process that has much else to do: each page has one message and takes a thousand seconds."""

    def __init__(self, clock: Clock) -> None:
        self.shares = Shares(1_000_000, "full")
        self._clock = clock

    async def read(self, store: TenantStore, after: Position, *_: object) -> EventPage:
        """Return the next message, late."""
        self._clock.now += 1000
        return EventPage([message(after.sequence + 1)], after.sequence + 1)


async def test_reader_is_too_slow_by_the_time_that_it_takes_and_not_by_what_it_waits_for() -> None:
    clock = Clock()
    fanout = fanout_at(0, max_messages=3)
    reader = Reader(Cursor(AGENT_ONE, Filters(), fanout.ring.end), fanout, cast("History", SlowPast(clock)), Wakeups())
    reader._loop = cast("asyncio.AbstractEventLoop", clock)
    fanout.attach(reader)
    for sequence in range(1, 9):
        fanout.deliver(sequence, message(sequence))
    for sequence in (1, 2, 3):
        assert sequences(await reader.next()) == [sequence]
    clock.now += LATE
    assert sequences(await reader.next()) == [4]
    clock.now += 2
    with pytest.raises(Overloaded):
        await reader.next()


def test_gap_leaves_no_goal_that_the_stream_cannot_reach() -> None:
    fanout, reader = outrun_reader()
    fanout.begin(info(2))
    reader.cursor.lose(unknown(Position(EPOCH, 2)))
    assert reader.cursor.take(fanout.ring, 2 * LATE) == [unknown(Position(EPOCH, 2))]
    assert reader.cursor.take(fanout.ring, 9 * LATE) == []


def test_reader_that_is_still_catching_up_falls_back_on_history_instead() -> None:
    fanout = fanout_at(0, max_messages=3)
    fanout.deliver(1, message(1))
    somebody = Somebody(Cursor(AGENT_ONE, Filters(), Position(EPOCH, 0)))
    assert fanout.attach(somebody)
    for sequence in range(2, 6):
        fanout.deliver(sequence, message(sequence))
    assert somebody.cursor.take(fanout.ring, 0.0) == []
    assert not somebody.cursor.live
    assert not fanout.attach(somebody)
    assert sequences(somebody.cursor.turn(EventPage([message(1), message(2)], reached=2))) == [1, 2]
    assert fanout.attach(somebody)
    assert sequences(somebody.cursor.take(fanout.ring, 0.0)) == [3, 4, 5]


def test_reader_ahead_of_its_process_waits_without_hearing_anything_twice() -> None:
    fanout = fanout_at(5)
    somebody = Somebody(Cursor(AGENT_ONE, Filters(), Position(EPOCH, 7)))
    assert not fanout.attach(somebody)
    assert somebody.cursor.turn(EventPage(reached=7)) == []  # the stream confirms that it is there
    assert fanout.attach(somebody)
    for sequence in (6, 7):
        fanout.deliver(sequence, message(sequence))
    assert somebody.woken == 0
    fanout.deliver(8, message(8))
    assert sequences(somebody.cursor.take(fanout.ring, 0.0)) == [8]


def test_stream_that_was_set_back_is_a_gap_for_those_alone_who_were_further() -> None:
    fanout = fanout_at(0)
    ahead, behind = reader_of(fanout), Somebody(Cursor(AGENT_ONE, Filters(), Position(EPOCH, 3)))
    fanout.add(behind)
    for sequence in range(1, 9):
        fanout.deliver(sequence, message(sequence))
    ahead.cursor.take(fanout.ring, 0.0)
    fanout.begin(info(5))
    assert ahead.woken == 2
    assert ahead.cursor.position == Position(EPOCH, 8)  # it resumes before the gap, until it has been told
    assert ahead.cursor.take(fanout.ring, 0.0) == [unknown(Position(EPOCH, 5))]
    assert fanout.attach(ahead)
    fanout.deliver(6, message(6))
    assert sequences(ahead.cursor.take(fanout.ring, 0.0)) == [6]
    assert behind.cursor.take(fanout.ring, 0.0) == []
    assert behind.cursor.position == Position(EPOCH, 3)


def test_page_that_was_read_while_the_stream_was_set_back_is_not_believed() -> None:
    cursor = Cursor(AGENT_ONE, Filters(), Position(EPOCH, 8))
    gap = unknown(Position(EPOCH, 5))
    cursor.lose(gap)
    assert cursor.turn(EventPage([message(9)], reached=9)) == [gap]
    assert cursor.position == Position(EPOCH, 5)


def test_page_hands_out_only_what_is_for_the_reader() -> None:
    foreign = ClientView("acme", "c1", "ann", "todo")
    cursor = Cursor(AGENT_ONE, Filters(names=("a*",)), Position(EPOCH, 0))
    page = EventPage([message(1, "a1"), message(2, "b1"), message(3, "a2", foreign), message(4, "a3")], reached=9)
    assert sequences(cursor.turn(page)) == [1, 4]
    assert cursor.position == Position(EPOCH, 9)


def test_ring_is_bounded_in_bytes() -> None:
    fanout = fanout_at(0, max_bytes=3 * (OVERHEAD_BYTES + 2000))
    for sequence in range(1, 11):
        fanout.deliver(sequence, message(sequence, data=b"x" * 1000))
    assert sequences(list(fanout.ring.since(fanout.ring.floor))) == [8, 9, 10]
    assert (fanout.ring.floor, fanout.ring.last) == (7, 10)


def test_message_that_is_none_of_ours_moves_the_position_on() -> None:
    fanout = fanout_at(0)
    reader = reader_of(fanout)
    fanout.deliver(1, None)
    reader.cursor.settle(fanout.ring)
    assert reader.cursor.position == Position(EPOCH, 1)


@pytest.mark.parametrize(
    ("position", "gap"),
    [
        (Position(EPOCH, 9), None),
        (Position(EPOCH, 3), None),
        (Position(EPOCH, 2), expired(Position(EPOCH, 3))),
        (Position(EPOCH, 10), unknown(Position(EPOCH, 9))),
        (Position("1", 5), recreated(Position(EPOCH, 3))),
    ],
)
def test_gap_is_what_the_stream_does_not_lead_on_from(position: Position, gap: Gap | None) -> None:
    assert gap_of(position, info(9, first=4)) == gap


def test_position_of_a_stream_that_never_held_anything_is_no_gap() -> None:
    assert gap_of(Position(EPOCH, 0), info(0, first=0)) is None


def test_positions_are_read_as_they_are_written() -> None:
    position = Position(epoch_of(CREATED), 42)
    assert str(position) == f"{EPOCH}-42"
    assert parse_position(str(position)) == position


@pytest.mark.parametrize(
    "text", ["", "-", "1", "1-", "-1", "a-1", "1-01", "1-1 ", "1-1\n", "\u0661-1", "1-" + "9" * 20, "9" * 33 + "-1"]
)
def test_what_is_no_position_is_none(text: str) -> None:
    assert parse_position(text) is None


@pytest.mark.parametrize(
    ("name", "pattern", "fits"),
    [
        ("todo.added", "todo.added", True),
        ("todo.added", "todo.*", True),
        ("todo.added", "*", True),
        ("", "*", True),
        ("todo.added", "*.added", True),
        ("todo.added", "t*d*d", True),
        ("todo", "todo*todo", False),
        ("todo", "todo.*", False),
        ("todo.added", "TODO.*", False),
        ("a?c", "a?c", True),
        ("abc", "a?c", False),
        ("abc", "[a]bc", False),
        ("line\nbreak", "line*break", True),
    ],
)
def test_only_the_star_stands_for_anything(name: str, pattern: str, fits: bool) -> None:
    assert matches(name, pattern) is fits


@given(st.lists(st.text("ab", max_size=3), min_size=1, max_size=5), st.text("ab", max_size=6))
def test_star_stands_for_any_text(parts: list[str], between: str) -> None:
    assert matches(between.join(parts), "*".join(parts))


def test_hostile_pattern_takes_no_time() -> None:
    assert not matches("a" * 256, "*a" * 120 + "*b*")


@pytest.mark.parametrize(
    ("filters", "subject"),
    [
        (Filters(), "agentbridge.default.*.*.*"),
        (Filters(client_id="c1"), "agentbridge.default.*.c1.*"),
        (Filters(changes=False), "agentbridge.default.event.*.*"),
        (Filters(names=("todo.added",), changes=False), "agentbridge.default.event.*.todo%2Eadded"),
        (Filters(names=("todo.*",), changes=False), "agentbridge.default.event.*.*"),
        (Filters(names=("a", "b"), changes=False), "agentbridge.default.event.*.*"),
        (Filters(names=(), client_id="c1"), "agentbridge.default.client.c1.*"),
        (Filters(names=("a",)), "agentbridge.default.*.*.*"),
    ],
)
def test_history_is_read_by_the_narrowest_subject(filters: Filters, subject: str) -> None:
    assert filters.subject("default") == subject


def test_filters_narrow_together_and_changes_are_a_choice_of_their_own() -> None:
    change = Message(Position(EPOCH, 1), "client", "connected", ANN, b"{}")
    assert visible(change, AGENT_ONE, Filters(user="ann", app="todo", names=()))
    assert not visible(change, AGENT_ONE, Filters(changes=False))
    assert not visible(change, AGENT_ONE, Filters(app="other"))
    assert not visible(message(1), AGENT_ONE, Filters(names=()))
    assert not visible(message(1), AGENT_ONE, Filters(user="bob"))


BODY = b'{"event":"a b","clientId":"c1","user":"ann","app":"todo","at":"x","data":{\n"a":1}}'


def test_message_is_read_from_its_subject_and_body() -> None:
    position = Position(EPOCH, 1)
    read = read_message("agentbridge.acme.event.c1.a%20b", position, BODY)
    assert read is not None
    assert (read.kind, read.name, read.client, read.data) == (
        "event",
        "a b",
        ClientView("acme", "c1", "ann", "todo"),
        BODY,
    )


@pytest.mark.parametrize(
    ("subject", "body"),
    [
        ("agentbridge.acme.event.c2.a%20b", BODY),
        ("agentbridge.acme.event.c1.other", BODY),
        ("agentbridge.acme.client.c1.connected", BODY),
        ("agentbridge.acme.event.c1.a%20b", b"no json"),
        ("agentbridge.acme.event.c1.a%20b", BODY.replace(b"ann", b"\xff")),
        ("agentbridge.acme.event.c1.", b'{"event":"","clientId":"c1","user":"ann","app":"todo"}'),
        ("agentbridge.acme.audit.c1.ok", BODY),
        ("elsewhere", BODY),
    ],
)
def test_message_that_contradicts_its_subject_is_left_out(subject: str, body: bytes) -> None:
    assert read_message(subject, Position(EPOCH, 1), body) is None


def test_message_is_written_once_for_all() -> None:
    written = list[Message]()

    def write(each: Message) -> bytes:
        written.append(each)
        return b"x"

    one = message(1)
    assert (one.written(write), one.written(write)) == (b"x", b"x")
    assert written == [one]
