"""The snapshot of a session for another gateway, and the messages of claims.

All are JSON. What only gateways may say carries a signature in a header, made by a key that only they have.

A grant has 16 MiB at most. Half of that is for the frames of commands, which are kept for another sending, a quarter
for messages that wait. Those beyond stay behind. If the rest is too large, so does the session's state.
"""

import base64
import struct
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec.structs import replace

from gateway.sessions.core.calls import Call
from gateway.sessions.core.resume import Claim, ClaimKind, Grant, Kept, Rank
from protocol import codec
from protocol.audit import Asked
from protocol.errors import InvalidRequest
from protocol.frames import AppInfo, CommandFrame

SIGNATURE_HEADER = "Agentbridge-Claim"
MAX_CLAIM_BYTES = 512
PART_BYTES = 256 * 1024
MAX_PARTS = 64
MAX_GRANT_BYTES = MAX_PARTS * PART_BYTES
MAX_FRAMES_BYTES = MAX_GRANT_BYTES // 2
MAX_KEPT_BYTES = MAX_GRANT_BYTES // 4
MAX_STATE_BYTES = MAX_GRANT_BYTES // 8  # of a capability list; the rest is for the commands
KEPT_MESSAGE_BYTES = 1024  # of one in a grant beside its data, in round figures
_TAKEN = struct.Struct(">H8s")  # the age in hundredths of a second, and the ident


class ClaimMessage(msgspec.Struct, frozen=True, tag_field="op", tag="claim", rename="camel"):
    """A claim on a session's subject. `look` only asks whether anybody is there."""

    stage: Literal["look", "claim"]
    kind: ClaimKind
    generation: int
    nonce: str
    serial: int

    @property
    def claim(self) -> Claim:
        """The claim in the core's form."""
        return Claim(Rank(self.generation, self.nonce), self.kind, self.serial)


class ClaimAnswer(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """An answer to a claim. A grant comes in parts, which `giver` and `generation` tell from those of another.

    `told` are replies of commands whose callers have heard from the holder that they are lost.
    """

    says: Literal["here", "held", "refused", "granted"]
    generation: int = 0
    giver: str = ""
    part: int = 0
    parts: int = 1
    data: bytes = b""
    told: list[str] = []


class AdoptRequest(msgspec.Struct, frozen=True, rename="camel"):
    """A gateway that shuts down asks another one to keep a detached session."""

    tenant: str
    client_id: str
    generation: int


class KeptMessage(msgspec.Struct, frozen=True, rename="camel"):
    """A message from NATS that has waited for the end of a claim.

    `held_up` tells that it may have been sent while the gateway was frozen, `age_ms` for how long it had waited when it
    was handed over.
    """

    ident: bytes
    subject: str
    reply: str
    headers: dict[str, str] | None
    data: bytes
    held_up: bool = False
    age_ms: int = 0


class MovingProgress(msgspec.Struct, frozen=True, rename="camel"):
    """The subject for a command's progress, and the last sent `seq`."""

    subject: str
    request_id: str
    seq: int


class MovingCommand(msgspec.Struct, frozen=True, rename="camel"):
    """A command in flight. `frame` is None if there was no room to keep it, so that it cannot be sent again."""

    wire_id: str
    request_id: str
    sub: str
    reply: str
    age_ms: int
    left_ms: int
    asked: Asked
    progress: MovingProgress | None
    probed: bool
    frame: CommandFrame | None
    name: str | None = None

    def call(self, now: float) -> Call:
        """Return the call of a command, by this process's clock."""
        started, deadline = now - self.age_ms / 1000, now + self.left_ms / 1000
        return Call(self.sub, self.request_id, self.reply, started, deadline, self.asked, self.name)


class SessionSnapshot(msgspec.Struct, frozen=True, rename="camel"):
    """The whole state of a session.

    `grace_ms` is the rest of the grace period, or None while the client is connected. `expires_at` is None if its token
    does not expire.
    """

    tenant: str
    client_id: str
    sub: str
    role: str
    expires_at: float | None
    app: AppInfo
    metadata: dict[str, Any]
    capabilities: msgspec.Raw
    revision: int
    connected_at: str
    focused_at: str | None
    grace_ms: int | None
    next_wire_id: int
    commands: list[MovingCommand]
    stopped: list[tuple[str | None, float]] = []
    wants_agents: bool = False


class _GrantMessage(msgspec.Struct, frozen=True, rename="camel"):
    generation: int
    nonce: str
    firm: bool
    lowest: int
    taken: bytes
    kept: list[KeptMessage]
    state: SessionSnapshot | None
    heir: str = ""
    known: float = 0.0


_grants = msgspec.json.Decoder(_GrantMessage)


class EncodedGrant(NamedTuple):
    """The answers that carry a grant. `is_moving` is false if the state is too large to go with it."""

    answers: list[ClaimAnswer]
    is_moving: bool


def encode_grant(grant: Grant) -> EncodedGrant:
    """Return a grant as the answers that carry it. A part that is too large is left out."""
    state = grant.state if grant.state is None else _bounded_state(grant.state)
    body, is_moving = _encoded(grant, state), True
    if len(body) > MAX_GRANT_BYTES:
        body, is_moving = _encoded(grant, None), state is None
    parts = [body[at : at + PART_BYTES] for at in range(0, len(body), PART_BYTES)]
    generation, nonce = grant.giver
    answers = [ClaimAnswer("granted", generation, nonce, number, len(parts), part) for number, part in enumerate(parts)]
    return EncodedGrant(answers, is_moving)


def _encoded(grant: Grant, state: SessionSnapshot | None) -> bytes:
    taken = b"".join(_TAKEN.pack(min(round(age * 100), 0xFFFF), ident) for age, ident in grant.taken)
    kept = _bounded_kept(grant.kept)
    message = _GrantMessage(*grant.giver, grant.firm, grant.lowest, taken, kept, state, grant.heir, grant.known)
    return codec.encode(message)


def _bounded_state(state: SessionSnapshot) -> SessionSnapshot:
    """Return a state without the frames beyond their bound, the oldest commands first."""
    left, commands = MAX_FRAMES_BYTES, []
    for command in state.commands:
        if command.frame is not None:
            left -= len(memoryview(command.frame.parameters))
        commands.append(command if left >= 0 else replace(command, frame=None))
    return replace(state, commands=commands)


def _bounded_kept(kept: Iterable[Kept]) -> list[KeptMessage]:
    """Return the messages that go with a grant, the oldest first."""
    left, messages = MAX_KEPT_BYTES, []
    for each in kept:
        left -= KEPT_MESSAGE_BYTES + len(each.message.data)
        if left < 0:
            break
        messages.append(replace(each.message, age_ms=round(each.at * 1000)))
    return messages


def decode_grant(parts: Iterable[bytes]) -> Grant:
    """Join the parts of a grant. Raises `InvalidRequest`."""
    message = codec.decode(_grants, b"".join(parts))
    if len(message.taken) % _TAKEN.size:
        raise InvalidRequest("`taken`: not whole")
    kept = tuple(Kept(each.age_ms / 1000, each.ident, each) for each in message.kept)
    giver = Rank(message.generation, message.nonce)
    taken = tuple(_taken(message.taken))
    return Grant(giver, message.firm, message.lowest, taken, kept, message.state, message.heir, message.known)


def _taken(data: bytes) -> Iterator[tuple[float, bytes]]:
    for age, ident in _TAKEN.iter_unpack(data):
        yield age / 100, ident


class GrantParts:
    """The parts of grants so far, by the giving gateway."""

    def __init__(self) -> None:
        self._parts: dict[Rank, dict[int, bytes]] = {}

    def add(self, answer: ClaimAnswer) -> Grant | None:
        """Add a part. Return the grant if that was the last one. Raises `InvalidRequest` if the grant is too large."""
        if not 0 <= answer.part < answer.parts <= MAX_PARTS:
            raise InvalidRequest(f"`parts`: at most {MAX_PARTS}")
        giver = Rank(answer.generation, answer.giver)
        found = self._parts.setdefault(giver, {})
        found[answer.part] = answer.data
        if len(found) < answer.parts:
            return None
        del self._parts[giver]
        return decode_grant(found[number] for number in range(answer.parts))


def signature_text(signature: bytes) -> str:
    """Encode a signature for a header."""
    return base64.b64encode(signature).decode()


def read_signature(text: str) -> bytes:
    """Decode the signature in a header. Return b"" if it is malformed."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""
