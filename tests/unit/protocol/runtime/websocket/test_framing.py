"""Frames read and written by hand: what the library would have made of them, at whatever places chunks begin."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.wait import until
from websockets.asyncio.server import Server
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.streams import StreamReader
from websockets.uri import parse_uri

from protocol.runtime.connections import bounds
from protocol.runtime.connections.bounds import ConnectionBounds
from protocol.runtime.connections.turns import Turns
from protocol.runtime.websocket import connection
from protocol.runtime.websocket.connection import (
    MAX_IDLE_FRAMES_PER_SECOND,
    TRICKLE_FRAMES,
    TRICKLE_SECONDS,
    BoundedSocket,
)
from protocol.runtime.websocket.framing import (
    MAX_HEAD_BYTES,
    MAX_SLICE_BYTES,
    MAX_SLICE_FRAMES,
    FrameCutter,
    text_frame,
    whole_text,
)

MAX_SIZE = 1000
Sent = tuple[bytes, bool]

payloads = st.binary(max_size=300) | st.just(b"x" * 200) | st.just(b"y" * (MAX_SIZE + 1))
frames = st.builds(
    Frame,
    st.sampled_from([Opcode.TEXT, Opcode.TEXT, Opcode.TEXT, Opcode.BINARY, Opcode.CONT]),
    payloads,
    st.sampled_from([True, True, True, False]),
) | st.builds(Frame, st.sampled_from([Opcode.PING, Opcode.PONG, Opcode.CLOSE]), st.binary(max_size=9))


class _Wire:
    """A transport that keeps what is written, and knows whether it may read."""

    def __init__(self) -> None:
        self.written = b""
        self.aborted = False
        self.reads = True

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def write(self, data: bytes) -> None:
        self.written += data

    def abort(self) -> None:
        self.aborted = True

    def get_write_buffer_size(self) -> int:
        return 0

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


class _Server:
    """A server that leaves its connections to the test."""

    def __init__(self) -> None:
        self.handler_tasks: set[asyncio.Task[None]] = set()

    async def handler(self, connection: BoundedSocket) -> None:
        """Return at once."""


class _Plain(BoundedSocket):
    """A connection without fast paths."""

    reads_fast = writes_fast = False


def open_socket(*, by_hand: bool, turns: Turns | None = None) -> tuple[BoundedSocket, _Wire, list[Sent]]:
    """Return a connected socket, what it writes and what it delivers."""
    socket = (BoundedSocket if by_hand else _Plain)(ServerProtocol(max_size=MAX_SIZE), cast("Server", _Server()))
    socket.connections, socket.bounds = set(), ConnectionBounds(100, 10, lambda: 0.0)
    socket.turns = turns or Turns(lambda _: None, lambda: 0.0)  # time stands still, so everything is handled at once
    wire, received = _Wire(), list[Sent]()
    socket.connection_made(cast("asyncio.Transport", wire))
    client = ClientProtocol(parse_uri("ws://localhost/ws"))
    client.send_request(client.connect())
    socket.data_received(b"".join(client.data_to_send()))
    assert isinstance(socket.request, Request)
    socket.protocol.send_response(socket.protocol.accept(socket.request))
    socket.send_data()
    socket.receive_by(lambda data, *, text: received.append((data, text)))
    wire.written = b""
    return socket, wire, received


def chunks_of(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


@given(st.lists(frames, max_size=6), st.lists(st.integers(0, 5000), max_size=6), st.booleans())
async def test_messages_are_those_that_the_library_reads(sent: list[Frame], cuts: list[int], whole: bool) -> None:
    wires = [frame.serialize(mask=True) for frame in sent]
    chunks = wires if whole else chunks_of(b"".join(wires), cuts)
    outcomes = []
    for by_hand in (True, False):
        socket, wire, received = open_socket(by_hand=by_hand)
        for chunk in chunks:
            socket.data_received(chunk)
        outcomes.append((received, socket.protocol.state, wire.written))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536])
async def test_frame_that_is_written_is_the_librarys(size: int) -> None:
    written = []
    for by_hand in (True, False):
        socket, wire, _ = open_socket(by_hand=by_hand)
        socket.send_text(b"x" * size)
        written.append(wire.written)
    assert written[0] == written[1] == Frame(Opcode.TEXT, b"x" * size).serialize(mask=False)


async def test_without_fast_paths_the_library_parses_and_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "whole_text", None)
    monkeypatch.setattr(connection, "text_frame", None)
    socket, wire, received = open_socket(by_hand=False)
    socket.data_received(Frame(Opcode.TEXT, b"{}").serialize(mask=True))
    socket.send_text(b"[]")
    assert (received, wire.written) == ([(b"{}", True)], Frame(Opcode.TEXT, b"[]").serialize(mask=False))
    assert type(socket.protocol.reader) is StreamReader


async def test_whole_messages_do_not_reach_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    socket, _, received = open_socket(by_hand=True)
    monkeypatch.setattr(socket, "process_event", None)
    for text in (b"{}", b"x" * 500):
        socket.data_received(Frame(Opcode.TEXT, text).serialize(mask=True))
    assert received == [(b"{}", True), (b"x" * 500, True)]


async def test_a_frame_after_half_a_head_is_read_by_the_library() -> None:
    socket, _, received = open_socket(by_hand=True)
    first, second = (Frame(Opcode.TEXT, text).serialize(mask=True) for text in (b"one", b"two"))
    for chunk in (first[:2], first[2:], second):
        socket.data_received(chunk)
    assert received == [(b"one", True), (b"two", True)]
    assert socket.protocol.state is OPEN


@given(st.binary(max_size=200), st.integers(0, 20))
@example(b"\x81\x82abcd\x00\x00rest", 0)
@example(b"\x81\x80abcd", 0)  # without data
@example(b"\x81\x83abcdxx", 0)  # incomplete
def test_arbitrary_bytes_are_read_as_the_frame_that_they_are_or_left(data: bytes, at: int) -> None:
    found = whole_text(data, at)
    if found is not None:
        text, end = found
        assert text
        assert data[at] == Frame(Opcode.TEXT, text).serialize(mask=False)[0]
        mask, masked = data[end - len(text) - 4 : end - len(text)], data[end - len(text) : end]
        assert text == bytes(byte ^ mask[place % 4] for place, byte in enumerate(masked))


@given(
    st.lists(st.binary(min_size=1, max_size=300), max_size=5),
    st.sampled_from([b"", b"\x81", b"\x89\x80abcd", b"\x81\xfe"]),
)
def test_whole_messages_are_read_one_behind_the_other_and_all_else_is_left(texts: list[bytes], rest: bytes) -> None:
    data = b"".join(Frame(Opcode.TEXT, text).serialize(mask=True) for text in texts) + rest
    at, read = 0, []
    while (found := whole_text(data, at)) is not None:
        read.append(found[0])
        at = found[1]
    assert (read, data[at:]) == (texts, rest)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 70_000])
def test_frames_are_written_as_the_library_writes_them(size: int) -> None:
    payload = b"x" * size
    assert text_frame(payload) == Frame(Opcode.TEXT, payload).serialize(mask=False)


# --- slices ---


@given(st.lists(frames, max_size=40), st.lists(st.integers(0, 20_000), max_size=6))
def test_slices_end_with_frames_wherever_chunks_end(sent: list[Frame], cuts: list[int]) -> None:
    wires = [frame.serialize(mask=True) for frame in sent]
    ends = set(itertools.accumulate(map(len, wires)))
    cutter, before = FrameCutter(), 0
    for chunk in chunks_of(b"".join(wires), cuts):
        at = 0
        while at < len(chunk):
            start, at = at, cutter.slice_end(chunk, at)
            assert at - start <= MAX_SLICE_BYTES + MAX_HEAD_BYTES
            inside = [end for end in ends if before + start < end <= before + at]
            assert len(inside) <= MAX_SLICE_FRAMES
            assert cutter.between_frames == (before + at in ends)
        before += len(chunk)
    assert cutter.between_frames


async def test_many_frames_of_one_read_are_handled_in_slices_and_in_order() -> None:
    pumps: list[Callable[[], None]] = []
    socket, _, received = open_socket(by_hand=True, turns=Turns(pumps.append, lambda: 0.0))
    sent = [str(number).encode() for number in range(5 * MAX_SLICE_FRAMES)]
    pumps.pop()()
    socket.data_received(b"".join(Frame(Opcode.TEXT, text).serialize(mask=True) for text in sent))
    assert len(received) == 2 * MAX_SLICE_FRAMES  # a slice of whole messages, and one of whatever follows
    pumps.pop()()
    assert [data for data, _ in received] == sent


@pytest.mark.parametrize(("whole", "stays"), [(True, True), (False, False)])
async def test_peer_that_sends_without_a_pause_is_none_that_leaves_messages_unfinished(
    whole: bool, stays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "TICK_SECONDS", 0)
    now = 0.0
    socket, _, received = open_socket(by_hand=True)
    socket.bounds = ConnectionBounds(100, 10, lambda: now)
    first, rest = (Frame(Opcode.TEXT, b"ab", fin=whole), Frame(Opcode.TEXT if whole else Opcode.CONT, b"c", fin=whole))
    wire = rest.serialize(mask=True)
    socket.data_received(first.serialize(mask=True) + wire[:3])
    clock = asyncio.ensure_future(socket.bounds.run_clock())  # noqa: TID251  ended below
    for _ in range(40):
        now += 1.0
        socket.data_received(wire[3:] + wire[:3])  # no chunk ends with a message
        await asyncio.sleep(0)
    clock.cancel()
    assert (socket.close_codes == (None, None)) is stays
    assert len(received) == (41 if whole else 0)


def take(socket: BoundedSocket, data: bytes) -> None:
    """Have a socket handle all of a chunk; the pauses of one that ends are over at once."""
    socket.data_received(data)
    while socket._input:
        socket.take_slice()
    socket._read(True)


async def test_flood_of_control_frames_ends_the_connection_and_the_rest_is_passed_over() -> None:
    socket, _, received = open_socket(by_hand=True)
    flood = Frame(Opcode.PONG, b"").serialize(mask=True) * (MAX_IDLE_FRAMES_PER_SECOND + 50)
    late = Frame(Opcode.TEXT, b"late").serialize(mask=True)
    take(socket, flood + late)
    assert socket.close_codes == (None, 1008)
    goodbye = Frame(Opcode.CLOSE, b"\x03\xe8").serialize(mask=True)
    for chunk in (late[:3], late[3:] + goodbye[:1], goodbye[1:]):
        take(socket, chunk)
    assert socket.protocol.close_rcvd is not None
    assert received == []


def closing_socket(turns: Turns | None = None) -> tuple[BoundedSocket, _Wire]:
    socket, wire, _ = open_socket(by_hand=True, turns=turns)
    socket.close_soon(4001, "a token is needed")
    return socket, wire


def reads(wire: _Wire) -> bool:
    return wire.reads


async def test_connection_that_ends_is_read_once_in_a_while() -> None:
    socket, wire = closing_socket()
    assert reads(wire), "the closing frame of a peer that is prompt comes with the next read"
    socket.data_received(Frame(Opcode.TEXT, b"x" * 500).serialize(mask=True))
    assert not reads(wire)
    await until(lambda: wire.reads, 20 * TRICKLE_SECONDS)


async def test_connection_that_ends_passes_over_a_bounded_number_of_frames_at_a_time() -> None:
    pumps: list[Callable[[], None]] = []
    (socket, wire), size = closing_socket(Turns(pumps.append, lambda: 0.0)), len(text_frame(b"")) + 4
    socket.data_received(Frame(Opcode.TEXT, b"").serialize(mask=True) * (3 * TRICKLE_FRAMES))
    left = [len(socket._input) - socket._at]
    while left[-1]:
        await asyncio.sleep(TRICKLE_SECONDS / 10)
        assert not wire.reads
        while pumps:
            pumps.pop()()
        left.append(len(socket._input) - socket._at)
    assert sorted(set(left), reverse=True) == [2 * TRICKLE_FRAMES * size, TRICKLE_FRAMES * size, 0]
    assert len(left) > 3, "it waits between two of them"


@pytest.mark.parametrize("frames", [2, 2 * MAX_SLICE_FRAMES])
async def test_message_that_ends_the_connection_leaves_no_turn_without_input(
    frames: int, caplog: pytest.LogCaptureFixture
) -> None:
    pumps: list[Callable[[], None]] = []
    socket, _, _ = open_socket(by_hand=True, turns=Turns(pumps.append, lambda: 0.0))
    socket.receive_by(lambda data, *, text: socket.close_soon(1008, "enough"))
    socket.data_received(Frame(Opcode.TEXT, b"bad").serialize(mask=True) * frames)
    while pumps:
        pumps.pop()()
    assert not socket._in_turns
    assert not caplog.records


@pytest.mark.parametrize("sent", [b"", b"GET /ws HTTP/1.1\r\nHost: x\r\n", b"nonsense"])
async def test_connection_that_ends_before_its_handshake_is_let_go(sent: bytes) -> None:
    socket = BoundedSocket(ServerProtocol(), cast("Server", _Server()))
    socket.connections, socket.bounds = set(), ConnectionBounds(100, 10, lambda: 0.0)
    socket.turns = Turns(lambda _: None, lambda: 0.0)
    socket.connection_made(cast("asyncio.Transport", _Wire()))
    if sent:
        socket.data_received(sent)
    socket.eof_received()
    socket.connection_lost(None)
    assert socket.connection_lost_waiter.done()
