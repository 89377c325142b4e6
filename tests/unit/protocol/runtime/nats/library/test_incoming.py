"""What the server sends, in whatever chunks: the handlers see every message, once and in order."""

import asyncio
import itertools
import time
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from protocol.runtime.nats.library import incoming
from protocol.runtime.nats.library.subscriptions import HandOver

DIRECT, QUEUED, UNKNOWN = 1, 2, 3
STATUS = b"NATS/1.0 503\r\n\r\n"
Sent = tuple[int, str, str, bytes, dict[str, str] | None]

headers = st.sampled_from([None, {"Authorization": "Bearer x"}, {"A": "1", "B": "zwei"}])
messages = st.tuples(
    st.sampled_from([DIRECT, DIRECT, DIRECT, QUEUED, UNKNOWN]),
    st.sampled_from(["a.b", "agentbridge.default.command.c1"]),
    st.sampled_from(["", "_INBOX.x.1"]),
    st.binary(max_size=80) | st.just(b"MSG a 1 0\r\n\r\n") | st.just(b"z" * 5000),
    headers,
)


class _Pausing:
    """A transport that remembers whether it reads."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def is_closing(self) -> bool:
        return False

    def is_reading(self) -> bool:
        return self.told[-1:] != ["pause"]

    def pause_reading(self) -> None:
        self.told.append("pause")

    def resume_reading(self) -> None:
        self.told.append("resume")


class _Stage:
    """A client of the library that is fed by hand, with a direct and an ordinary subscription."""

    def __init__(self) -> None:
        self.seen: list[Sent] = []
        self.client = Client()
        self.reader = asyncio.StreamReader()
        self.transport = _Pausing()
        self.reader._transport = self.transport  # type: ignore[attr-defined]
        self.client._transport = self  # type: ignore[assignment]
        direct, queued = Subscription(self.client, DIRECT, ">"), Subscription(self.client, QUEUED, ">")
        direct._pending_queue = HandOver(self._see)  # type: ignore[assignment]
        self.client._subs = {DIRECT: direct, QUEUED: queued}
        self.queue = queued._pending_queue

    @property
    def _io_reader(self) -> asyncio.StreamReader:
        return self.reader

    async def read(self) -> None:
        """Read as the library does."""
        while not self.reader.at_eof():
            await self.client._ps.parse(await self.reader.read(32_768))

    async def play(self, chunks: list[bytes], *, at_once: bool, before: Sequence[bytes] = ()) -> None:
        """Feed the chunks, together or with turns of the event loop between them.

        The library has read what comes `before`, but for its last chunk, which is still in its reader.
        """
        task = asyncio.get_running_loop().create_task(self.read())
        await asyncio.sleep(0)
        for chunk in before:
            await asyncio.sleep(0)
            self.reader.feed_data(chunk)
        incoming.divert(self.client)
        for chunk in chunks:
            self.reader.feed_data(chunk)
            if not at_once:
                await asyncio.sleep(0)
                await asyncio.sleep(0)
        while self.transport.told[-1:] == ["pause"]:
            await asyncio.sleep(0)
        self.reader.feed_eof()
        await task

    def _see(self, msg: Msg) -> None:
        self.seen.append((msg.sid, msg.subject, msg.reply, msg.data, msg.headers))

    def queued(self) -> list[Sent]:
        return [
            (msg.sid, msg.subject, msg.reply, msg.data, msg.headers)
            for msg in (self.queue.get_nowait() for _ in range(self.queue.qsize()))
        ]


def on_the_wire(message: Sent) -> bytes:
    sid, subject, reply, payload, named = message
    words = ["MSG" if named is None else "HMSG", subject, str(sid), *([reply] if reply else [])]
    block = b"" if named is None else b"NATS/1.0\r\n" + _lines(named) + b"\r\n"
    sizes = [len(payload)] if named is None else [len(block), len(block) + len(payload)]
    return " ".join([*words, *map(str, sizes)]).encode() + b"\r\n" + block + payload + b"\r\n"


def _lines(named: dict[str, str]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in named.items()).encode()


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(ends)]


@given(
    st.lists(messages | st.just("+OK\r\n"), max_size=12),
    st.lists(st.integers(0, 40_000), max_size=8),
    st.booleans(),
)
async def test_every_message_is_handled_once_and_in_order(
    sent: list[Sent | str], places: list[int], at_once: bool
) -> None:
    stage = _Stage()
    wire = b"".join(each.encode() if isinstance(each, str) else on_the_wire(each) for each in sent)
    await stage.play(cut(wire, places), at_once=at_once)
    for sid, seen in ((DIRECT, stage.seen), (QUEUED, stage.queued())):
        assert seen == [each for each in sent if not isinstance(each, str) and each[0] == sid]


@given(
    st.lists(messages | st.just("+OK\r\n"), min_size=1, max_size=6),
    st.integers(0, 40_000),
    st.lists(st.integers(0, 40_000), min_size=1, max_size=4),
)
@example([(DIRECT, "a.b", "", b"{}", {"A": "1"})] * 2, 1, [0])  # `H` of a line, that goes on with `MSG`
@example([(DIRECT, "a.b", "", b"{}", None)] * 2, 14, [0])  # all of a message but for its last byte
async def test_connection_is_taken_over_wherever_the_library_stands(
    sent: list[Sent | str], taken: int, places: list[int]
) -> None:
    """After a reconnect the server's messages come before anybody hears that it is back."""
    stage = _Stage()
    wire = b"".join(each.encode() if isinstance(each, str) else on_the_wire(each) for each in sent)
    taken %= len(wire) + 1
    async with asyncio.timeout(5):
        await stage.play([wire[taken:]], at_once=True, before=cut(wire[:taken], places))
    for sid, seen in ((DIRECT, stage.seen), (QUEUED, stage.queued())):
        assert seen == [each for each in sent if not isinstance(each, str) and each[0] == sid]


async def test_nothing_more_is_read_while_a_message_waits_for_the_library() -> None:
    """The library's reader reads on by itself when it has taken what it has."""
    stage = _Stage()
    task = asyncio.get_running_loop().create_task(stage.read())
    await asyncio.sleep(0)
    incoming.divert(stage.client)
    direct = on_the_wire((DIRECT, "a.b", "", b"{}", None))
    stage.reader.feed_data(on_the_wire((QUEUED, "a.b", "", b"x" * 200_000, None)) + direct)
    stage.transport.resume_reading()
    stage.reader.feed_data(direct)
    assert not stage.transport.is_reading()
    while len(stage.seen) < 2:
        await asyncio.sleep(0)
    assert stage.transport.is_reading()
    stage.reader.feed_eof()
    await task


async def test_a_status_reaches_its_handler() -> None:
    stage = _Stage()
    await stage.play([b"HMSG _INBOX.x.1 1 16 16\r\n" + STATUS + b"\r\n"], at_once=True)
    assert stage.seen == [(DIRECT, "_INBOX.x.1", "", b"", {"Status": "503"})]


async def test_a_message_in_many_pieces_stays_out_of_the_way_of_the_next() -> None:
    stage = _Stage()
    large = (DIRECT, "a.b", "", b"x" * 300_000, None)
    small = (DIRECT, "a.b", "_INBOX.x.1", b"{}", {"A": "1"})
    wire = on_the_wire(small) + on_the_wire(large) + on_the_wire(small)
    await stage.play([wire[at : at + 10_000] for at in range(0, len(wire), 10_000)], at_once=False)
    assert stage.seen == [small, large, small]


@given(st.lists(st.binary(max_size=60), max_size=5))
async def test_arbitrary_bytes_end_in_the_librarys_own_error(chunks: list[bytes]) -> None:
    stage = _Stage()
    incoming.divert(stage.client)
    for chunk in chunks:
        stage.reader.feed_data(chunk)  # raises nothing: the socket's callback must not break


async def test_direct_messages_wake_no_task() -> None:
    stage = _Stage()
    task = asyncio.get_running_loop().create_task(stage.read())
    await asyncio.sleep(0)
    incoming.divert(stage.client)
    stage.reader.feed_data(on_the_wire((DIRECT, "a.b", "", b"{}", None)))
    assert len(stage.seen) == 1  # before any turn of the event loop
    stage.reader.feed_eof()
    await task


async def test_flood_is_handled_in_turns_in_order_and_nothing_more_is_read_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "perf_counter", itertools.count(0, incoming.BUDGET_SECONDS / 10).__next__)
    stage = _Stage()
    task = asyncio.get_running_loop().create_task(stage.read())
    await asyncio.sleep(0)
    incoming.divert(stage.client)
    sent = [(DIRECT, "a.b", "", str(number).encode(), None) for number in range(100)]
    wire = b"".join(map(on_the_wire, sent))
    stage.reader.feed_data(wire[:1001])
    stage.reader.feed_data(wire[1001:])
    assert 0 < len(stage.seen) <= 11
    assert stage.transport.told == ["pause"]
    while len(stage.seen) < len(sent):
        before = len(stage.seen)
        await asyncio.sleep(0)
        assert len(stage.seen) - before <= 11
    assert stage.seen == sent
    assert stage.transport.told[-1] == "resume"
    stage.reader.feed_eof()
    await task
