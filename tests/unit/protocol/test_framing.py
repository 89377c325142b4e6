"""Frames read and written by hand: what the library would have made of them, at whatever places chunks begin."""

import asyncio
import itertools
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.server import Server
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from protocol.runtime.framing import Boundaries, text_frame, whole_text
from protocol.runtime.sockets import BoundedSocket

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
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.aborted = False

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


def open_socket(*, by_hand: bool) -> tuple[BoundedSocket, _Wire, list[Sent]]:
    """Return a connected socket, what it writes and what it delivers."""
    socket = BoundedSocket(ServerProtocol(max_size=MAX_SIZE), cast("Server", _Server()))
    if not by_hand:
        socket._boundaries = Boundaries(socket.protocol.reader)  # one that nobody reads: never between two frames
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


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_read_as_the_frame_that_they_are_or_left(data: bytes) -> None:
    text = whole_text(data)
    if text is not None:
        mask = data[-len(text) - 4 : len(data) - len(text)]
        assert data == bytes(Frame(Opcode.TEXT, text).serialize(mask=False)[:1]) + data[1:]
        assert text == bytes(byte ^ mask[place % 4] for place, byte in enumerate(data[len(data) - len(text) :]))


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 70_000])
def test_frames_are_written_as_the_library_writes_them(size: int) -> None:
    payload = b"x" * size
    assert text_frame(payload) == Frame(Opcode.TEXT, payload).serialize(mask=False)
