"""What the server sends, in whatever chunks: the handlers see every message, once and in order."""

import asyncio
import itertools

from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from protocol.runtime import reading
from protocol.runtime.direct import HandOver

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


class _Stage:
    """A client of the library that is fed by hand, with a direct and an ordinary subscription."""

    def __init__(self) -> None:
        self.seen: list[Sent] = []
        self.client = Client()
        self.reader = asyncio.StreamReader()
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
        while chunk := await self.reader.read(32_768):
            await self.client._ps.parse(chunk)

    async def play(self, chunks: list[bytes], *, at_once: bool) -> None:
        """Feed the chunks, together or with turns of the event loop between them."""
        task = asyncio.get_running_loop().create_task(self.read())
        await asyncio.sleep(0)
        reading.divert(self.client)
        for chunk in chunks:
            self.reader.feed_data(chunk)
            if not at_once:
                await asyncio.sleep(0)
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
    reading.divert(stage.client)
    for chunk in chunks:
        stage.reader.feed_data(chunk)  # raises nothing: the socket's callback must not break


async def test_direct_messages_wake_no_task() -> None:
    stage = _Stage()
    task = asyncio.get_running_loop().create_task(stage.read())
    await asyncio.sleep(0)
    reading.divert(stage.client)
    stage.reader.feed_data(on_the_wire((DIRECT, "a.b", "", b"{}", None)))
    assert len(stage.seen) == 1  # before any turn of the event loop
    stage.reader.feed_eof()
    await task
