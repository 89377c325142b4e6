"""The snapshot of a session for another gateway, and the messages of claims.

All are JSON. Messages that only gateways may send have a signature in a header, under a key that only gateways have.
"""

import base64
import struct
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import msgspec

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
_TAKEN = struct.Struct(">H8s")  # age in hundredths of a second, ident


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
    """An answer to a claim. A grant comes in parts; `giver` and `generation` tell which parts belong together."""

    says: Literal["here", "held", "refused", "granted"]
    generation: int = 0
    giver: str = ""
    part: int = 0
    parts: int = 1
    data: bytes = b""


class AdoptRequest(msgspec.Struct, frozen=True, rename="camel"):
    """A gateway that shuts down asks another one to keep a detached session."""

    tenant: str
    client_id: str
    generation: int


class KeptMessage(msgspec.Struct, frozen=True, rename="camel"):
    """A message from NATS that has waited for the end of a claim.

    `held_up`: it may have been sent while the gateway was frozen.
    """

    ident: bytes
    subject: str
    reply: str
    headers: dict[str, str] | None
    data: bytes
    held_up: bool = False


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


_grants = msgspec.json.Decoder(_GrantMessage)


def encode_grant(grant: Grant) -> list[ClaimAnswer]:
    """Split a grant into answers."""
    body = codec.encode(
        _GrantMessage(
            *grant.giver,
            grant.firm,
            grant.lowest,
            b"".join(_TAKEN.pack(min(round(age * 100), 0xFFFF), ident) for age, ident in grant.taken),
            [kept.message for kept in grant.kept],
            grant.state,
        )
    )
    parts = [body[at : at + PART_BYTES] for at in range(0, len(body), PART_BYTES)]
    generation, nonce = grant.giver
    return [ClaimAnswer("granted", generation, nonce, number, len(parts), part) for number, part in enumerate(parts)]


def decode_grant(parts: Iterable[bytes]) -> Grant:
    """Join the parts of a grant. Raises `InvalidRequest`."""
    message = codec.decode(_grants, b"".join(parts))
    if len(message.taken) % _TAKEN.size:
        raise InvalidRequest("`taken`: not whole")
    kept = tuple(Kept(0.0, each.ident, each) for each in message.kept)
    giver = Rank(message.generation, message.nonce)
    return Grant(giver, message.firm, message.lowest, tuple(_taken(message.taken)), kept, message.state)


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
