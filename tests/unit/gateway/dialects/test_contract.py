"""What every dialect promises at the seam; a new dialect needs a `Peer` that speaks the client's side of it."""

import contextlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, get_args

import msgspec
import pytest
from hypothesis import find, given
from hypothesis import strategies as st
from support.dialects.actioncable_peer import begin_actioncable, write_actioncable, write_unreadable_actioncable
from support.dialects.line_dialect import LINES
from support.dialects.published_sdk_peer import (
    begin_published_sdk,
    make_published_sdk,
    write_published_sdk,
    write_unreadable_published_sdk,
)
from support.dialects.socketio_peer import begin_socketio, read_socketio, write_socketio, write_unreadable_socketio

from gateway.client_frames import MAX_FRAMES_PER_MESSAGE
from gateway.dialects.actioncable import ACTIONCABLE
from gateway.dialects.choice import DIALECTS, DialectChoice
from gateway.dialects.dialect import Dialect, DialectKind, Farewell, Reply, may_return
from gateway.dialects.native import NATIVE, Documented
from gateway.dialects.socketio import SOCKETIO
from protocol.errors import BridgeError, CloseCode, InvalidFrame, PayloadTooLarge
from protocol.frames import (
    AckFrame,
    ActiveAgent,
    AgentIdentity,
    AgentsFrame,
    AllowFrame,
    AuthFrame,
    CancelFrame,
    CapabilityFrame,
    ClientFrame,
    CommandFrame,
    ConnectionFrame,
    ConnectionLimits,
    ErrorFrame,
    EventFrame,
    MetadataFrame,
    PingFrame,
    PongFrame,
    ProgressFrame,
    ResponseFrame,
    ServerFrame,
    StopFrame,
    UnknownFrame,
    fault_of,
)

MAX_REASON_BYTES = 123  # RFC 6455 section 5.5
CLIENT_ID = "c1"
TOLD = ConnectionLimits(1_000_001, 25.0)


def open_at_once(dialect: Dialect) -> Sequence[bytes]:
    """Begin a session as clients do that say nothing before; return what they are sent."""
    return list(dialect.opening(CLIENT_ID, TOLD))


class Peer(NamedTuple):
    """The client's side of a dialect: begins, writes its frames, and reads the words of what comes.

    `leave` is how a client says in a frame that it leaves, if it can.
    """

    kind: DialectKind
    write: Callable[[ClientFrame], bytes]
    read: Callable[[bytes], Sequence[str]]
    write_unreadable: Callable[[str], bytes]
    pong: bytes | None = None
    begin: Callable[[Dialect], Sequence[bytes]] = open_at_once
    leave: bytes | None = None

    def connected(self) -> Dialect:
        """Return the dialect of a client that has a session."""
        dialect = self.kind.make()
        self.begin(dialect)
        return dialect


def write_native(frame: ClientFrame) -> bytes:
    return msgspec.json.encode(frame)


def read_native(data: bytes) -> Sequence[str]:
    """Return the values of a frame's fields, at any depth, as words."""
    words: list[str] = []

    def walk(value: Any) -> None:
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            walk(inner)
        if not isinstance(value, dict | list):
            words.append(str(value))

    walk(json.loads(data))
    return words


def write_lines(frame: ClientFrame) -> bytes:
    match frame:
        case CapabilityFrame():
            return b"offer " + msgspec.json.encode(frame.capabilities)
        case MetadataFrame():
            return b"meta " + msgspec.json.encode(frame.metadata)
        case ResponseFrame(status="success"):
            return b"answer %b %b" % (frame.request_id.encode(), bytes(frame.result))
        case ResponseFrame():
            return f"fail {frame.request_id} {fault_of(frame).message}".encode()
        case ProgressFrame():
            return f"step {frame.request_id} {frame.progress!r}".encode()
        case EventFrame(data=msgspec.Raw() as data):
            return b"tell %b %b" % (frame.event.encode(), bytes(data))
        case AuthFrame():
            return f"auth {frame.token}".encode()
        case _:
            raise NotImplementedError(frame)


def write_unreadable_native(request_id: str) -> bytes:
    return b'{"type":"response","requestId":"%b","status":"success","result":NaN}' % request_id.encode()


def write_unreadable_lines(request_id: str) -> bytes:
    return b"answer %b NaN" % request_id.encode()


def read_lines(data: bytes) -> Sequence[str]:
    return data.decode().split(" ")


SPEAKERS = (
    Peer(NATIVE, write_native, read_native, write_unreadable_native),
    Peer(LINES, write_lines, read_lines, write_unreadable_lines, b"tock"),
    Peer(
        SOCKETIO,
        write_socketio,
        read_socketio,
        write_unreadable_socketio,
        b"3",
        lambda dialect: begin_socketio(dialect, CLIENT_ID, TOLD),
        b"41",
    ),
    Peer(
        ACTIONCABLE,
        write_actioncable,
        read_native,
        write_unreadable_actioncable,
        begin=lambda dialect: begin_actioncable(dialect, CLIENT_ID, TOLD),
    ),
    Peer(
        DialectKind("documented", "/ws", lambda: Documented(CapabilityFrame([]), lambda: 0.0)),
        write_native,
        read_native,
        write_unreadable_native,
    ),
    Peer(
        DialectKind("published_sdk", "/ws", make_published_sdk),
        write_published_sdk,
        read_native,
        write_unreadable_published_sdk,
        begin=lambda dialect: begin_published_sdk(dialect, CLIENT_ID, TOLD),
    ),
)
PEERS = {peer.kind.name: peer for peer in SPEAKERS}
every_dialect = pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS.keys())

words = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=20)
leaves = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20)
values = st.recursive(leaves, st.lists, max_leaves=5)
raws = values.map(lambda value: msgspec.Raw(msgspec.json.encode(value)))
client_frames: st.SearchStrategy[ClientFrame] = st.one_of(
    st.builds(CapabilityFrame, st.lists(raws, max_size=3)),
    st.builds(MetadataFrame, st.dictionaries(words, values, max_size=3)),
    st.builds(ResponseFrame, words, st.just("success"), raws),
    st.builds(lambda ident, sentence: ResponseFrame(ident, "error", error=sentence), words, words),
    st.builds(ProgressFrame, words, st.floats(0, 100)),
    st.builds(lambda name, data: EventFrame(name, data=data), words, raws),
    st.builds(AuthFrame, words),
)
COMMAND = CommandFrame("r1", "add", "click", msgspec.Raw(b'{"a":1}'), 5000, AgentIdentity("agent-1"))
SERVER_FRAMES: list[ServerFrame] = [
    ConnectionFrame(CLIENT_ID, "1", TOLD),
    COMMAND,
    CancelFrame("r1", "timeout"),
    AckFrame("f1"),
    ErrorFrame("invalid_frame", "say-it-better", "f1"),
    AgentsFrame([ActiveAgent("agent-1", 1, "2026-01-01T00:00:00.000Z", "Ann's helper")]),
    PongFrame(),
]


# A dialect may have pings of its own, and need not resume; who works at a page and is stopped there is for the
# library, which is native.
UNTRANSLATED = {PingFrame, PongFrame, StopFrame, AllowFrame, UnknownFrame}


def test_every_frame_has_its_case() -> None:
    """The two tables above name the frames of the protocol; one that is added needs its case here."""
    made = {type(find(client_frames, partial(is_a, kind))) for kind in translated()}
    assert made == translated()
    assert {type(frame) for frame in SERVER_FRAMES} == set(get_args(ServerFrame))


def is_a(kind: type, frame: object) -> bool:
    return isinstance(frame, kind)


def translated() -> set[type]:
    return set(get_args(ClientFrame)) - UNTRANSLATED


def meaning(frame: object) -> object:
    """Return a frame without its id, which a dialect may give itself, and with open values decoded."""
    fields = msgspec.structs.asdict(frame)  # type: ignore[arg-type]
    plain = {name: decoded(value) for name, value in fields.items() if name != "id"}
    return type(frame), plain


def decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [decoded(each) for each in value]
    return msgspec.json.decode(value) if isinstance(value, msgspec.Raw) else value


def test_every_dialect_that_a_gateway_offers_is_held_to_its_promises() -> None:
    assert {kind.name for kind in DIALECTS} <= PEERS.keys()


@every_dialect
def test_client_that_begins_is_told_its_id_and_its_limit(peer: Peer) -> None:
    told = [word for data in peer.begin(peer.kind.make()) for word in peer.read(data)]
    assert {CLIENT_ID, "1000001"} <= set(told)


@every_dialect
@given(frame=client_frames)
def test_clients_frame_arrives_as_it_was_meant(peer: Peer, frame: ClientFrame) -> None:
    (arrived,) = peer.connected().decode(peer.write(frame), text=True)
    assert meaning(arrived) == meaning(frame)


@every_dialect
@given(data=st.binary(max_size=200) | st.text(max_size=200).map(str.encode), text=st.booleans())
def test_garbage_is_refused_with_a_sentence_and_the_next_frame_is_read(peer: Peer, data: bytes, text: bool) -> None:
    dialect = peer.connected()
    with contextlib.suppress(InvalidFrame, PayloadTooLarge):
        list(dialect.decode(data, text=text))
    ids = dialect.identify(data)
    assert all(ident.isprintable() for ident in (*ids.answers, ids.id or "-"))
    assert len(ids.answers) <= MAX_FRAMES_PER_MESSAGE
    (arrived,) = dialect.decode(peer.write(AuthFrame("t")), text=True)
    assert isinstance(arrived, AuthFrame)


@every_dialect
@given(request_id=words.filter(lambda text: not {'"', "\\"} & set(text)))
def test_unreadable_answer_is_refused_and_names_its_command(peer: Peer, request_id: str) -> None:
    dialect, data = peer.connected(), peer.write_unreadable(request_id)
    with pytest.raises(InvalidFrame):
        list(dialect.decode(data, text=True))
    assert list(dialect.identify(data).answers) == [request_id]


@every_dialect
@given(frame=client_frames)
def test_only_an_answer_would_have_answered(peer: Peer, frame: ClientFrame) -> None:
    answered = [frame.request_id] if isinstance(frame, ResponseFrame) else []
    assert list(peer.connected().identify(peer.write(frame)).answers) == answered


@every_dialect
def test_refusal_of_an_answer_names_the_command(peer: Peer) -> None:
    data = peer.connected().encode(ErrorFrame("invalid_frame", "no-sense", request_id="r7"))
    assert data is not None
    assert "r7" in peer.read(data)


@every_dialect
def test_binary_messages_are_refused(peer: Peer) -> None:
    with pytest.raises(BridgeError):
        list(peer.connected().decode(peer.write(AuthFrame("t")), text=False))


@every_dialect
def test_command_reaches_the_client_whole(peer: Peer) -> None:
    data = peer.connected().encode(COMMAND)
    assert data is not None
    said = peer.read(data)
    assert {"r1", "add", "click", "5000", "agent-1"} <= set(said)
    assert b'"a":1' in data


@every_dialect
def test_cancel_names_the_command(peer: Peer) -> None:
    data = peer.connected().encode(CancelFrame("r1", "timeout"))
    assert data is not None
    assert {"r1", "timeout"} <= set(peer.read(data))


@every_dialect
@pytest.mark.parametrize("frame", SERVER_FRAMES, ids=lambda frame: type(frame).__name__)
def test_frame_to_the_client_is_text_or_left_out(peer: Peer, frame: ServerFrame) -> None:
    data = peer.connected().encode(frame)
    assert data is None or data.decode()


@every_dialect
def test_ping_of_its_own_is_text_and_its_answer_is_understood(peer: Peer) -> None:
    dialect = peer.connected()
    data = dialect.ping()
    assert (data is None) == (peer.pong is None)
    if data is not None and peer.pong is not None:
        assert data.decode()
        assert len(dialect.decode(peer.pong, text=True)) == 0


@every_dialect
def test_message_counts_whole_or_not_at_all(peer: Peer) -> None:
    """What `decode()` returns is read to its end, so that no frame of a refused message has been handled before."""
    frames = peer.connected().decode(peer.write(AuthFrame("t")), text=True)
    assert isinstance(frames, Sequence)


@every_dialect
@pytest.mark.parametrize("code", [value for name, value in vars(CloseCode).items() if name.isupper()])
def test_connection_ends_by_a_code_that_may_be_sent(peer: Peer, code: int) -> None:
    farewell = peer.connected().close(code, "because")
    assert all(frame.decode() for frame in farewell.frames)
    assert 1000 <= farewell.code <= 4999
    assert len(farewell.reason.encode()) <= MAX_REASON_BYTES


@every_dialect
@given(data=st.binary(max_size=200) | st.text(max_size=200).map(str.encode), text=st.booleans())
def test_garbage_before_the_session_is_refused_with_a_sentence(peer: Peer, data: bytes, text: bool) -> None:
    entry = peer.kind.make().entry
    if entry is not None:
        assert all(frame.decode() for frame in entry.hello(TOLD))
        with contextlib.suppress(InvalidFrame):
            assert all(frame.decode() for frame in entry.introduce(data, text=text).frames)


@every_dialect
def test_heartbeat_is_text(peer: Peer) -> None:
    heartbeat = peer.connected().heartbeat
    assert heartbeat is None or (heartbeat.seconds > 0 and heartbeat.beat(0.0).decode())


@every_dialect
def test_client_that_leaves_in_a_frame_is_let_go(peer: Peer) -> None:
    if peer.leave is not None:
        (farewell,) = peer.connected().decode(peer.leave, text=True)
        assert isinstance(farewell, Farewell)


def test_clients_return_by_themselves_unless_the_reason_would_be_the_same() -> None:
    codes = {value for name, value in vars(CloseCode).items() if name.isupper()}
    assert {code for code in codes if not may_return(code)} == {1000, 1008, 4001, 4003, 4009}


@every_dialect
def test_connections_share_no_state(peer: Peer) -> None:
    one, other = peer.connected(), peer.kind.make()
    before = list(other.opening(CLIENT_ID, TOLD))
    list(one.opening("somebody-else", TOLD))
    with pytest.raises(BridgeError):
        list(one.decode(b"\x00", text=True))
    assert list(other.opening(CLIENT_ID, TOLD)) == before
    peer.begin(other)
    (first,) = other.decode(peer.write(MetadataFrame({"a": 1})), text=True)
    (fresh,) = peer.connected().decode(peer.write(MetadataFrame({"a": 1})), text=True)
    assert first == fresh


def test_message_may_hold_several_frames_and_immediate_replies_in_their_order() -> None:
    first, second, third = LINES.make().decode(b"auth t\ncount\nmeta {}", text=True)
    assert (type(first), second, type(third)) == (AuthFrame, Reply(b"lines 2"), MetadataFrame)


# --- which dialect a connection speaks ---

OTHER = LINES._replace(name="other", usual_path="/ws", subprotocol="lines.v1")
CHOICE = DialectChoice((NATIVE, LINES, OTHER))


@pytest.mark.parametrize(
    ("path", "offered", "chosen", "kind"),
    [
        ("/ws", [], None, "Native"),
        ("/ws", ["bearer.token"], None, "Native"),
        ("/ws", ["bearer.token", "agentbridge.v1"], "agentbridge.v1", "Native"),
        ("/ws", ["lines.v1", "agentbridge.v1"], "lines.v1", "Lines"),
        ("/lines", ["agentbridge.v1"], None, "Lines"),
    ],
)
def test_path_and_subprotocol_choose_the_dialect(path: str, offered: list[str], chosen: str | None, kind: str) -> None:
    assert CHOICE.subprotocol(path, offered) == chosen
    assert type(CHOICE.make(path, chosen)).__name__ == kind


def test_paths_of_no_dialect_open_nothing() -> None:
    assert [path for path in ("/ws", "/lines", "/nowhere") if CHOICE.serves(path)] == ["/ws", "/lines"]
