"""Grants as they travel: in parts, whole again at the other side, whatever the order."""

import msgspec
import pytest
from support.played.sessions import AGENT_1, REPLY, call, command, session

from gateway.sessions.core.resume import Grant, Kept, Rank
from gateway.sessions.core.snapshots import PART_BYTES, ClaimAnswer, GrantParts, KeptMessage, encode_grant
from protocol.errors import InvalidRequest


def grant(size: int) -> Grant:
    core = session("add")
    core.keep_frames(lambda agent, size, give_back: None)
    call(core, AGENT_1, command(parameters={"a": 1}), "r1", REPLY, 1.0, "_INBOX.progress")
    state = core.snapshot("then", None, 1500, 2.0)
    kept = Kept(0.0, b"i" * 8, KeptMessage(b"i" * 8, "s", "r", {"A": "b"}, b"\x00\xff" * size))
    return Grant(Rank(7, "n"), True, 3, ((0.5, b"t" * 8), (9.25, b"u" * 8)), (kept,), state)


def test_grant_arrives_as_it_was_sent() -> None:
    sent = grant(PART_BYTES)
    answers = encode_grant(sent)
    assert len(answers) > 2
    parts = GrantParts()
    arrived = [parts.add(answer) for answer in reversed(answers)]
    assert arrived[:-1] == [None] * (len(answers) - 1)
    assert arrived[-1] == sent


def test_parts_of_two_grants_are_kept_apart() -> None:
    one, other = encode_grant(grant(PART_BYTES)), encode_grant(grant(PART_BYTES)._replace(giver=Rank(8, "m")))
    parts = GrantParts()
    found = [parts.add(answer) for pair in zip(one, other, strict=True) for answer in pair]
    assert [each.giver.generation for each in found if each is not None] == [7, 8]


@pytest.mark.parametrize(
    "answer",
    [
        ClaimAnswer("granted", part=2, parts=2),
        ClaimAnswer("granted", part=0, parts=1000),
        ClaimAnswer("granted", part=-1),
    ],
)
def test_grant_of_too_many_parts_is_refused(answer: ClaimAnswer) -> None:
    with pytest.raises(InvalidRequest):
        GrantParts().add(answer)


def test_nonsense_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        GrantParts().add(ClaimAnswer("granted", data=msgspec.json.encode({"generation": 1})))
