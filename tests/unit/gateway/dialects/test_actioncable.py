"""ActionCable: subscriptions, what is said on them, and how connections end."""

import json

import pytest
from support.dialects.actioncable_peer import IDENTIFIER, begin_actioncable, command

from gateway.dialects.actioncable import MAX_IDENTIFIER_BYTES, ActionCable
from gateway.dialects.dialect import MessageIds, Reply, Said
from protocol.errors import InvalidFrame
from protocol.frames import (
    AckFrame,
    CancelFrame,
    CapabilityFrame,
    ConnectionLimits,
    EventFrame,
    ProgressFrame,
    ResponseFrame,
)

TOLD = ConnectionLimits(1_000_000, 25.0)
OTHER = '{"channel":"AgentBridgeChannel","room":1}'
EVENT = '{"type":"event","event":"saved"}'


def client() -> ActionCable:
    """Return the dialect of a client that has subscribed."""
    dialect = ActionCable()
    begin_actioncable(dialect, "c1", TOLD)
    return dialect


def said(dialect: ActionCable, data: bytes) -> Said:
    (one,) = dialect.decode(data, text=True)
    return one


def told(dialect: ActionCable, data: bytes) -> list[object]:
    return [json.loads(each.data) for each in dialect.decode(data, text=True) if isinstance(each, Reply)]


def test_subscription_is_confirmed_and_hears_its_clients_id() -> None:
    welcome, confirmed, connection = begin_actioncable(ActionCable(), "c1", TOLD)
    assert json.loads(welcome) == {"type": "welcome"}
    assert json.loads(confirmed) == {"identifier": IDENTIFIER, "type": "confirm_subscription"}
    assert json.loads(connection)["identifier"] == IDENTIFIER
    assert json.loads(connection)["message"]["clientId"] == "c1"


def test_identifier_is_told_back_byte_for_byte() -> None:
    dialect, odd = ActionCable(), rb'"{ \"channel\": \"Agent\u0042ridgeChannel\",\"x\":\"\u00e9\/\"}"'
    dialect.opening("c1", TOLD)
    replies = dialect.decode(b'{"command":"subscribe","identifier":%b}' % odd, text=True)
    assert all(isinstance(reply, Reply) and odd in reply.data for reply in replies)
    assert odd in (dialect.encode(AckFrame("1")) or b"")


def test_subscription_that_is_asked_for_again_is_confirmed_again() -> None:
    dialect = ActionCable()
    _, *first = begin_actioncable(dialect, "c1", TOLD)
    assert told(dialect, command("subscribe")) == [json.loads(data) for data in first]


@pytest.mark.parametrize("identifier", [OTHER, '{"channel":"ChatChannel"}', "{}", "[]", "", "nonsense", "[" * 500])
def test_other_subscription_is_rejected_and_the_first_goes_on(identifier: str) -> None:
    dialect = client()
    assert told(dialect, command("subscribe", identifier=identifier)) == [
        {"identifier": identifier, "type": "reject_subscription"}
    ]
    assert said(dialect, command("message", EVENT)) == EventFrame("saved")


def test_client_that_unsubscribes_offers_nothing_and_may_still_answer() -> None:
    dialect = client()
    assert said(dialect, command("unsubscribe")) == CapabilityFrame([])
    answer = '{"type":"response","requestId":"r1","status":"success"}'
    assert isinstance(said(dialect, command("message", answer)), ResponseFrame)
    progress = '{"type":"progress","requestId":"r1","progress":1}'
    assert isinstance(said(dialect, command("message", progress)), ProgressFrame)
    with pytest.raises(InvalidFrame, match="subscribe to AgentBridgeChannel first"):
        dialect.decode(command("message", EVENT), text=True)
    assert dialect.encode(CancelFrame("r1", "timeout")) is not None


def test_client_may_subscribe_again_under_another_identifier() -> None:
    dialect = client()
    dialect.decode(command("unsubscribe"), text=True)
    assert len(told(dialect, command("subscribe", identifier=OTHER))) == 2
    assert said(dialect, command("message", EVENT, OTHER)) == EventFrame("saved")


def test_unsubscribing_from_what_is_not_there_says_nothing() -> None:
    dialect = client()
    assert dialect.decode(command("unsubscribe", identifier=OTHER), text=True) == ()
    assert ActionCable().decode(command("unsubscribe"), text=True) == ()


def test_nothing_can_be_told_before_there_is_a_subscription() -> None:
    dialect = ActionCable()
    dialect.opening("c1", TOLD)
    assert dialect.encode(AckFrame("1")) is None


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"[" * 3000, "nested too deeply|array"),
        (b"{", "not valid JSON"),
        (b"{}", "command"),
        (b'{"command":"message"}', "identifier"),
        (b'{"command":"shout","identifier":"x"}', "`command`: one of"),
        (b'{"command":"subscribe","identifier":7}', "`identifier`: expected JSON in a text"),
        (command("subscribe", identifier="x" * MAX_IDENTIFIER_BYTES), "`identifier`: at most"),
        (command("message", EVENT, OTHER), "`identifier`: there is no such subscription"),
        (command("message"), "not valid JSON"),
        (b'{"command":"message","identifier":"x","data":{"type":"ping"}}', "`data`"),
        (command("message", '{"type":"event","event":"x","data":' + "[" * 3000), "nested too deeply"),
        (command("message", '{"type":"shout"}'), "shout"),
        (b"\xff", "not valid UTF-8"),
    ],
)
def test_sentence_says_what_is_wrong(data: bytes, sentence: str) -> None:
    with pytest.raises(InvalidFrame, match=sentence):
        client().decode(data, text=True)


def test_refused_frame_is_known_by_its_ids() -> None:
    refused = command("message", '{"type":"response","id":"f1","requestId":"r1","result":NaN}')
    assert client().identify(refused) == MessageIds("f1", ("r1",))
    assert client().identify(b"nonsense") == MessageIds()
    assert client().identify(command("subscribe", '{"type":"response","requestId":"r1"}')) == MessageIds()


@pytest.mark.parametrize(
    ("code", "reason", "reconnect"),
    [
        (4001, "unauthorized", False),
        (4003, "unauthorized", False),
        (1012, "server_restart", True),
        (1008, "remote", False),
        (4029, "remote", True),
    ],
)
def test_library_is_told_whether_to_come_again(code: int, reason: str, reconnect: bool) -> None:
    (goodbye,) = ActionCable().close(code, "because").frames
    assert json.loads(goodbye) == {"type": "disconnect", "reason": reason, "reconnect": reconnect}


def test_pings_tell_the_time() -> None:
    heartbeat = ActionCable().heartbeat
    assert heartbeat.seconds == 3.0
    assert json.loads(heartbeat.beat(1700000000.9)) == {"type": "ping", "message": 1700000000}
