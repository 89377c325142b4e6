"""Grants as they travel: in parts, whole again at the other side, whatever the order."""

import msgspec
import pytest
from msgspec import Raw
from msgspec.structs import replace
from support.played.sessions import AGENT_1, REPLY, call, command, session

from gateway.sessions.core.resume import Grant, Kept, Rank
from gateway.sessions.core.snapshots import (
    KEPT_MESSAGE_BYTES,
    MAX_FRAMES_BYTES,
    MAX_GRANT_BYTES,
    MAX_KEPT_BYTES,
    MAX_PARTS,
    PART_BYTES,
    ClaimAnswer,
    EncodedGrant,
    GrantParts,
    KeptMessage,
    encode_grant,
)
from protocol.errors import InvalidRequest
from protocol.frames import AgentIdentity, CommandFrame


def grant(size: int) -> Grant:
    core = session("add")
    core.keep_frames(lambda agent, size, give_back: None)
    call(core, AGENT_1, command(parameters={"a": 1}), "r1", REPLY, 1.0, "_INBOX.progress")
    state = core.snapshot("then", None, 1500, 2.0)
    kept = Kept(0.0, b"i" * 8, KeptMessage(b"i" * 8, "s", "r", {"A": "b"}, b"\x00\xff" * size))
    return Grant(Rank(7, "n"), True, 3, ((0.5, b"t" * 8), (9.25, b"u" * 8)), (kept,), state)


def test_grant_arrives_as_it_was_sent() -> None:
    sent = grant(PART_BYTES)
    answers = encode_grant(sent).answers
    assert len(answers) > 2
    parts = GrantParts()
    arrived = [parts.add(answer) for answer in reversed(answers)]
    assert arrived[:-1] == [None] * (len(answers) - 1)
    assert arrived[-1] == sent


def test_parts_of_two_grants_are_kept_apart() -> None:
    one = encode_grant(grant(PART_BYTES)).answers
    other = encode_grant(grant(PART_BYTES)._replace(giver=Rank(8, "m"))).answers
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


# --- what is too large ---


def arrived(encoded: EncodedGrant) -> Grant:
    """Return what the other side gets of a grant, which takes no more parts than the bound."""
    assert len(encoded.answers) <= MAX_PARTS
    parts = GrantParts()
    *_, whole = [parts.add(answer) for answer in encoded.answers]
    assert whole is not None
    return whole


def with_frames(count: int, size: int) -> Grant:
    """Return the grant of a session with so many commands, whose parameters have so many bytes."""
    sent = grant(0)
    (moving,) = sent.state.commands
    frame = CommandFrame("w", "add", None, Raw(b'"%s"' % (b"x" * size)), 1000, AgentIdentity("agent-1"))
    return sent._replace(state=replace(sent.state, commands=[replace(moving, frame=frame)] * count))


def test_frames_beyond_half_a_grant_stay_behind_and_their_commands_move() -> None:
    size = MAX_FRAMES_BYTES // 8
    encoded = encode_grant(with_frames(20, size - 100))
    whole = arrived(encoded)
    assert encoded.is_moving
    assert [command.frame is not None for command in whole.state.commands] == [True] * 8 + [False] * 12


def test_waiting_messages_beyond_a_quarter_of_a_grant_stay_behind() -> None:
    size = MAX_KEPT_BYTES // 4 - KEPT_MESSAGE_BYTES
    kept = [Kept(0.0, bytes(8), KeptMessage(bytes([n] * 8), "s", "r", None, b"x" * size)) for n in range(6)]
    whole = arrived(encode_grant(grant(0)._replace(kept=tuple(kept))))
    assert [each.message.ident[0] for each in whole.kept] == [0, 1, 2, 3]
    assert whole.state is not None


def test_state_that_is_too_large_stays_behind() -> None:
    sent = grant(1)
    encoded = encode_grant(sent._replace(state=replace(sent.state, metadata={"large": "x" * MAX_GRANT_BYTES})))
    assert not encoded.is_moving
    assert arrived(encoded) == sent._replace(state=None)
    assert encode_grant(sent._replace(state=None)).is_moving


def test_nonsense_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        GrantParts().add(ClaimAnswer("granted", data=msgspec.json.encode({"generation": 1})))
