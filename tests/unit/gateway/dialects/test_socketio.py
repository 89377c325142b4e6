"""Socket.IO: its packets against another implementation's, and what its clients say and hear."""

import contextlib
import json
from typing import Any

import msgspec
import pytest
import socketio.packet
from hypothesis import given
from hypothesis import strategies as st
from support.dialects.socketio_peer import begin_socketio

from gateway.dialects.dialect import Farewell, MessageIds, Reply
from gateway.dialects.socketio import MAX_ACKNOWLEDGEMENTS, SOCKETIO, SocketIo
from gateway.dialects.socketio_packets import Packet, PacketType, read_packet, write_packet
from protocol.errors import InvalidFrame
from protocol.frames import (
    AckFrame,
    CapabilityFrame,
    ConnectionLimits,
    ErrorFrame,
    EventFrame,
    PongFrame,
    ResponseFrame,
)

TOLD = ConnectionLimits(1_000_000, 25.0)
leaves = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))
text_types = st.sampled_from(
    [each for each in PacketType if each not in (PacketType.BINARY_EVENT, PacketType.BINARY_ACK)]
)
names = st.text(st.characters(exclude_characters=",?", exclude_categories=["Cs"]), max_size=20)
namespaces = st.just("/") | names.map(lambda name: f"/{name}")
acks = st.none() | st.integers(0, 10**15 - 1)


def client() -> SocketIo:
    """Return the dialect of a client that has connected."""
    dialect = SocketIo()
    begin_socketio(dialect, "c1", TOLD)
    return dialect


def theirs_of(**fields: Any) -> Any:
    """Return a packet of python-socketio, which annotates none of its functions."""
    return socketio.packet.Packet(**fields)


def written(packet: Any) -> bytes:
    text = packet.encode()
    assert isinstance(text, str)
    return text.encode()


# --- packets, against python-socketio ---


@given(
    kind=text_types,
    data=st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values),
    namespace=namespaces,
    ack=acks,
)
def test_packet_of_another_implementation_is_read_as_it_was_meant(
    kind: PacketType, data: Any, namespace: str, ack: int | None
) -> None:
    theirs = theirs_of(packet_type=int(kind), data=data, namespace=namespace, id=ack)
    packet = read_packet(written(theirs))
    assert (packet.type, json.loads(packet.json), packet.namespace, packet.ack) == (kind, data, namespace, ack)


@given(
    kind=text_types,
    data=st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values),
    namespace=namespaces,
    ack=acks,
)
def test_packet_of_ours_is_read_by_another_implementation_as_it_was_meant(
    kind: PacketType, data: Any, namespace: str, ack: int | None
) -> None:
    ours = write_packet(Packet(kind, msgspec.json.encode(data), namespace, ack))
    theirs = theirs_of(encoded_packet=ours.decode())
    assert (theirs.packet_type, theirs.data, theirs.namespace or "/", theirs.id) == (kind, data, namespace, ack)


@given(data=st.lists(st.binary(max_size=5) | leaves, min_size=1, max_size=4), ack=acks)
def test_binary_packet_of_another_implementation_is_known_as_one(data: Any, ack: int | None) -> None:
    theirs = theirs_of(packet_type=int(PacketType.EVENT), data=["event", *data, b"bytes"], id=ack)
    head, *attachments = theirs.encode()
    packet = read_packet(head.encode())
    assert (packet.type, packet.attachments, packet.ack) == (PacketType.BINARY_EVENT, len(attachments), ack)


@given(data=st.binary(max_size=300) | st.text('0123456789-/,[]{}"a', max_size=300).map(str.encode))
def test_whatever_is_read_as_a_packet_is_written_as_one_with_the_same_meaning(data: bytes) -> None:
    with contextlib.suppress(InvalidFrame):
        packet = read_packet(data)
        assert read_packet(write_packet(packet)) == packet


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"7",
        b"x",
        b"2" + b"1" * 16,
        b"2" + b"1" * 100_000,
        b"5" + b"1" * 4 + b"-",
        b"2/" + b"n" * 129 + b",[]",
        b"2/\xff,[]",
    ],
)
def test_head_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidFrame):
        read_packet(data)


# --- before the session ---


def test_handshake_says_when_pings_come_and_how_much_may_be_sent() -> None:
    (hello,) = SocketIo().hello(ConnectionLimits(1234, 25.0))
    handshake = json.loads(hello[1:])
    assert hello[:1] == b"0"
    assert handshake.pop("sid")
    assert handshake == {"upgrades": [], "pingInterval": 25_000, "pingTimeout": 20_000, "maxPayload": 1234}


@pytest.mark.parametrize(
    ("data", "token"),
    [
        (b"40", None),
        (b"40{}", None),
        (b'40{"token":"t","more":[1]}', "t"),
        (b'40{"token":7}', None),
        (b'40/,{"token":"t"}', "t"),
    ],
)
def test_connect_may_bring_a_token(data: bytes, token: str | None) -> None:
    assert SocketIo().introduce(data, text=True) == ((), True, token)


def test_other_namespace_is_refused_and_the_client_may_still_connect() -> None:
    step = SocketIo().introduce(b'40/admin,{"token":"t"}', text=True)
    assert (step.frames, step.is_over) == ((b'44/admin,{"message":"Invalid namespace"}',), False)


@pytest.mark.parametrize(
    "data", [b'42["event",{}]', b"41", b"40{", b"40[1]", b"40" + b"[" * 3000, b"0{}", b"2", b"nonsense", b""]
)
def test_whatever_else_comes_before_connect_ends_the_connection(data: bytes) -> None:
    with pytest.raises(InvalidFrame):
        SocketIo().introduce(data, text=True)


def test_client_that_is_turned_away_hears_a_connect_error_unless_it_should_come_again() -> None:
    assert SocketIo().close(4003, "token expired") == (
        (b'44{"message":"token expired","data":{"code":4003}}',),
        4003,
        "token expired",
    )
    assert SocketIo().close(1012, "restarting") == ((), 1012, "restarting")


# --- the session ---


def test_client_hears_its_id_as_that_of_its_socket_and_as_a_frame() -> None:
    connected, connection = SocketIo().opening("c1", TOLD)
    assert connected == b'40{"sid":"c1"}'
    assert json.loads(connection[2:])[0] == "connection"


def test_client_that_is_sent_away_hears_a_disconnect_unless_it_should_come_again() -> None:
    assert client().close(1008, "by an administrator").frames == (b"41",)
    assert client().close(1012, "restarting").frames == ()


def test_event_with_an_acknowledgement_is_acknowledged_when_its_frame_is() -> None:
    dialect = client()
    (frame,) = dialect.decode(b'427["capability",{"capabilities":["add"]}]', text=True)
    assert isinstance(frame, CapabilityFrame)
    assert frame.id is not None
    assert dialect.encode(AckFrame(frame.id)) == b'437[{"status":"success"}]'


def test_refused_event_is_told_by_its_acknowledgement() -> None:
    dialect = client()
    with pytest.raises(InvalidFrame):
        dialect.decode(b'428["event",{"data":1}]', text=True)
    ids = dialect.identify(b'428["event",{"data":1}]')
    told = dialect.encode(ErrorFrame("invalid_frame", "no name", ids.id, {"x": 1}))
    assert told[:3] == b"438"
    assert json.loads(told[3:]) == [
        {"status": "error", "error": {"code": "invalid_frame", "message": "no name", "details": {"x": 1}}}
    ]


def test_own_id_of_a_frame_is_kept_and_acknowledged_by_the_acknowledgement() -> None:
    dialect = client()
    (frame,) = dialect.decode(b'429["event",{"event":"saved","id":"e1"}]', text=True)
    assert isinstance(frame, EventFrame)
    assert frame.id == "e1"
    assert dialect.encode(AckFrame("e1")) == b'439[{"status":"success"}]'
    assert dialect.encode(AckFrame("e1")) == b'42["ack",{"type":"ack","id":"e1"}]'


def test_frame_that_nobody_acknowledges_is_acknowledged_at_once() -> None:
    frame, reply = client().decode(b'423["response",{"requestId":"r1","status":"success"}]', text=True)
    assert isinstance(frame, ResponseFrame)
    assert reply == Reply(b'433[{"status":"success"}]')


def test_acknowledgements_are_bounded_and_the_oldest_are_forgotten() -> None:
    dialect = client()
    for number in range(MAX_ACKNOWLEDGEMENTS + 1):
        dialect.decode(b'42%d["metadata",{"metadata":{}}]' % number, text=True)
    assert dialect.encode(AckFrame("ack-0")).startswith(b'42["ack"')
    assert dialect.encode(AckFrame("ack-1")).startswith(b"431[")


def test_frame_may_be_sent_as_a_message_that_says_its_type() -> None:
    (frame,) = client().decode(b'42["message",{"type":"event","event":"saved"}]', text=True)
    assert frame == EventFrame("saved")


def test_leaving_is_told_by_either_layer() -> None:
    for data in (b"41", b"1"):
        (left,) = client().decode(data, text=True)
        assert isinstance(left, Farewell)


def test_pongs_and_noops_say_nothing_and_a_ping_is_answered() -> None:
    assert [client().decode(data, text=True) for data in (b"3", b"6")] == [(), ()]
    assert client().decode(b"2probe", text=True) == (Reply(b"3probe"),)


def test_pong_frame_answers_the_ping_of_the_protocol() -> None:
    assert client().encode(PongFrame()) == b'42["pong",{"type":"pong"}]'


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b'42["todo.added",{}]', "no such event"),
        (b'42["event"]', "`event`|missing required field `event`"),
        (b"42[]", "begins with its name"),
        (b"42{}", "expected"),
        (b"42[7,{}]", "expected `str`"),
        (b"427", "JSON"),
        (b"42" + b"[" * 3000, "nested too deeply"),
        (b'42["event",' + b"[" * 3000 + b"]" * 3000 + b"]", "nested too deeply"),
        (b'42["event",{"event":"a","data":"\xff"}]', "not valid UTF-8"),
        (b'42["capability",{"type":"event","capabilities":[]}]', "event"),
        (b'42/admin,["event",{}]', "no namespace but /"),
        (b"40", "EVENT and DISCONNECT"),
        (b"430[1]", "EVENT and DISCONNECT"),
        (b'44{"message":"no"}', "EVENT and DISCONNECT"),
        (b'451-["event",{"_placeholder":true,"num":0}]', "binary"),
        (b"461-0[]", "binary"),
        (b"5", "Engine.IO"),
        (b'42["event",{"event":"cut', "not valid JSON"),
    ],
)
def test_sentence_says_what_is_wrong(data: bytes, sentence: str) -> None:
    with pytest.raises(InvalidFrame, match=sentence):
        client().decode(data, text=True)


def test_connect_to_another_namespace_is_refused_while_the_session_goes_on() -> None:
    assert client().decode(b"40/admin,", text=True) == (Reply(b'44/admin,{"message":"Invalid namespace"}'),)


@pytest.mark.parametrize(
    "data",
    [
        b'42["response",{"requestId":"r1","status":"success","result":NaN}]',
        b'42["response",{"requestId":"r1","status":"success","result":{"cut',
        b'425["response",{"requestId":"r1","status":"success","result":' + b"[" * 3000,
        b'42["response",{"requestId":"r1"}]',
        b'451-["response",{"requestId":"r1","status":"success","result":{"_placeholder":true,"num":0}}]',
        b'42["message",{"type":"response","requestId":"r1"}]',
    ],
)
def test_unreadable_answer_names_its_command(data: bytes) -> None:
    dialect = client()
    with pytest.raises(InvalidFrame):
        dialect.decode(data, text=True)
    assert dialect.identify(data).answers == ("r1",)


@pytest.mark.parametrize(
    "data", [b"", b"2", b"40", b"42", b'42["event",{"requestId":"r1","data":NaN}]', b'42["response",7]']
)
def test_what_is_no_answer_to_a_command_names_none(data: bytes) -> None:
    assert client().identify(data) == MessageIds()


@pytest.mark.parametrize(
    ("query", "answer"),
    [
        ("EIO=4&transport=websocket", None),
        ("", None),
        ("EIO=4&transport=polling&t=abc", {"code": 0, "message": "Transport unknown"}),
        ("EIO=3&transport=websocket", {"code": 5, "message": "Unsupported protocol version"}),
        ("EIO=4&transport=websocket&sid=x", {"code": 1, "message": "Session ID unknown"}),
    ],
)
def test_requests_for_anything_but_a_websocket_are_refused(query: str, answer: object) -> None:
    refused = SOCKETIO.screen(query)
    assert answer == (refused and json.loads(refused.body))
