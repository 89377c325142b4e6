"""Every message once, in order, or a gap: whatever the order of arrivals, readings, breaks and losses."""

from collections import defaultdict
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from agent_api.events.cursor import Cursor, EventPage, Item
from agent_api.events.fanout import Fanout
from agent_api.events.filters import Filters, visible
from agent_api.events.gaps import Gap, gap_of
from agent_api.events.messages import Message
from agent_api.events.ring import Ring
from protocol.access import AGENT, ClientView, Principal
from protocol.errors import BridgeError
from protocol.runtime.streams.jetstream import StreamInfo, StreamState
from protocol.runtime.streams.positions import Position, epoch_of

AGENT_ONE = Principal("agent-1", AGENT, "default", float("inf"))
RING_MESSAGES, PAGE_MESSAGES = 4, 3
CLIENTS = ("mine", "another", "foreign")


class Stream:
    """What a server keeps: messages of several clients, the oldest of which it may let go."""

    def __init__(self) -> None:
        self.created = "2026-01-01T00:00:00Z"
        self.lives = defaultdict[str, dict[int, Message]](dict)
        self.first, self.last = 1, 0

    @property
    def epoch(self) -> str:
        return epoch_of(self.created)

    @property
    def messages(self) -> dict[int, Message]:
        return self.lives[self.epoch]

    @property
    def info(self) -> StreamInfo:
        return StreamInfo({}, self.created, StreamState(self.last, self.first))

    def publish(self, client_ids: list[str]) -> None:
        for client_id in client_ids:
            self.last += 1
            view = ClientView("acme" if client_id == "foreign" else "default", client_id, "ann", "todo")
            self.messages[self.last] = Message(Position(self.epoch, self.last), "event", "e", view, b"{}")

    def purge(self, number: int) -> None:
        self.first = min(self.first + number, self.last + 1)

    def recreate(self) -> None:
        self.created = f"{int(self.created[:4]) + 1}-01-01T00:00:00Z"
        self.first, self.last = 1, 0

    def page(self, after: Position, until: int) -> EventPage:
        """Return what `History.read()` would."""
        if gap := gap_of(after, self.info):
            return EventPage(gap=gap)
        start = max(after.sequence + 1, self.first)
        found = [m for n in range(start, self.last + 1) if (m := self.messages[n]).client.tenant == "default"]
        if len(found) > PAGE_MESSAGES:
            return EventPage(found[:PAGE_MESSAGES], found[PAGE_MESSAGES - 1].position.sequence)
        return EventPage(found, min(max([until, after.sequence, *(m.position.sequence for m in found)]), self.last))


class Process:
    """One agent API: what its consumer has delivered so far."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.flow = Fanout(Ring(RING_MESSAGES))
        self.flow.begin(stream.info)

    def deliver(self, number: int = 10_000) -> None:
        """Deliver so many of what the stream has and this process has not got, as an ordered consumer would."""
        ring, stream = self.flow.ring, self.stream
        if ring.epoch != stream.epoch:
            self.flow.begin(stream.info)
        for sequence in range(max(ring.last + 1, stream.first), min(ring.last + number, stream.last) + 1):
            self.flow.deliver(sequence, stream.messages[sequence])

    def restart_of_nats(self) -> None:
        self.flow.begin(self.stream.info)


class Reader:
    """What stands between a cursor and its process, without waiting; and the ledger of what has come."""

    def __init__(self, process: Process, cursor: Cursor) -> None:
        self.process, self.cursor = process, cursor
        self.handled = cursor.position
        process.flow.add(self)

    def wake(self) -> None:
        """Nobody waits here."""

    def end(self, error: BridgeError) -> None:
        """Nobody ends it here."""

    def count_held(self) -> None:
        """Nothing is held here."""

    def read(self) -> bool:
        """Take one step; return whether it led anywhere."""
        before = self.position
        items = self.step()
        for item in items:
            self.note(item)
        return bool(items) or not self.cursor.waiting or self.position != before

    def step(self) -> list[Item]:
        flow, cursor = self.process.flow, self.cursor
        items = cursor.take(flow.ring, 0.0)
        if items or cursor.live or flow.attach(self):
            return items
        until = flow.ring.last if flow.ring.epoch == cursor.position.epoch else 0
        return cursor.turn(self.process.stream.page(cursor.position, until))

    @property
    def position(self) -> Position:
        self.cursor.settle(self.process.flow.ring)
        return self.cursor.position

    def come_back(self, process: Process, since: Position) -> None:
        self.process.flow.remove(self)
        self.process, self.cursor = process, Cursor(self.cursor.principal, self.cursor.filters, since)
        process.flow.add(self)

    def note(self, item: Item) -> None:
        if isinstance(item, Gap):
            self.check_gap(item)
        else:
            self.check_message(item)
        self.handled = item.position

    def check_gap(self, gap: Gap) -> None:
        stream, (epoch, sequence) = self.process.stream, self.handled
        if gap.reason == "recreated":
            assert gap.position == Position(stream.epoch, stream.first - 1) != self.handled
        else:
            assert (gap.reason, gap.position.epoch) == ("expired", epoch)
            assert sequence < gap.position.sequence < stream.first

    def check_message(self, message: Message) -> None:
        assert message.position.epoch == self.handled.epoch, "another stream's, without a gap"
        assert message.position > self.handled, "twice, or out of order"
        assert not self.skipped(message.position.sequence)

    def skipped(self, until: int) -> list[Message]:
        """Return what this reader should have got between what it has handled and a sequence."""
        life = self.process.stream.lives[self.handled.epoch]
        between = (life.get(sequence) for sequence in range(self.handled.sequence + 1, until))
        return [message for message in between if message is not None and self.wants(message)]

    def wants(self, message: Message) -> bool:
        return visible(message, self.cursor.principal, self.cursor.filters)


actions = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.lists(st.sampled_from(CLIENTS), min_size=1, max_size=6)),
        st.tuples(st.just("deliver"), st.integers(0, 1), st.integers(1, 9)),
        st.tuples(st.just("read")),
        st.tuples(st.just("read")),
        st.tuples(st.just("come back"), st.integers(0, 1), st.booleans()),
        st.tuples(st.just("restart"), st.integers(0, 1)),
        st.tuples(st.just("purge"), st.integers(1, 5)),
        st.tuples(st.just("recreate")),
    ),
    min_size=20,
    max_size=60,
)


@settings(max_examples=400)
@given(st.sampled_from([Filters(), Filters(client_id="mine"), Filters(client_id="nobody")]), actions)
def test_reader_gets_every_message_once_and_in_order_or_a_gap(filters: Filters, doings: list[tuple[Any, ...]]) -> None:
    stream = Stream()
    processes = [Process(stream), Process(stream)]
    reader = Reader(processes[0], Cursor(AGENT_ONE, filters, processes[0].flow.ring.end))
    for doing, *details in doings:
        perform(doing, details, stream, processes, reader)
    stream.publish(["mine"])  # what was let go before it was delivered shows with the next
    for process in processes:
        process.deliver()
    for _ in range(200):
        reader.read()
    assert reader.cursor.live
    assert reader.position == Position(stream.epoch, stream.last)
    assert reader.handled.epoch == stream.epoch
    assert not reader.skipped(stream.last + 1)


def perform(doing: str, details: list[Any], stream: Stream, processes: list[Process], reader: Reader) -> None:
    match doing, details:
        case "deliver", [which, number]:
            processes[which].deliver(number)
        case "come back", [which, by_heartbeat]:
            reader.come_back(processes[which], reader.position if by_heartbeat else reader.handled)
        case "restart", [which]:
            processes[which].restart_of_nats()
        case "read", []:
            reader.read()
        case _:
            getattr(stream, doing)(*details)
