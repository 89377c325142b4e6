"""Messages among gateways, registries and administrators: reports, pongs, syncs, vetoes, disconnects."""

import enum
import hashlib
from typing import Annotated

import msgspec

from protocol.records import ClientRecord

DENIAL_SECONDS, MAX_DENIAL_SECONDS = 60, 86_400  # for how long a disconnected agent is kept out
REASON_HEADER = "Agentbridge-Reason"  # of the marker that takes the place of a client's record: why it went


class EndReason(enum.StrEnum):
    """Why a session has ended, as `disconnected` announces it. Programs match on these; people read close frames."""

    CLOSED = "closed"
    CONNECTION_LOST = "connection_lost"
    NO_PONG = "no_pong"
    TOO_SLOW = "too_slow"
    MESSAGE_TOO_LARGE = "message_too_large"
    BAD_FRAMES = "bad_frames"
    TOKEN_EXPIRED = "token_expired"  # noqa: S105  no password
    ADMINISTRATOR = "administrator"
    SHUTDOWN = "shutdown"
    GATEWAY_FAILED = "gateway_failed"
    GATEWAY_LOST = "gateway_lost"
    UNREPORTED = "unreported"


# A client that ended so did not mean to go, and is expected back; the others closed, or may not connect as they are.
_LOST = frozenset(
    {
        EndReason.CONNECTION_LOST,
        EndReason.NO_PONG,
        EndReason.TOO_SLOW,
        EndReason.MESSAGE_TOO_LARGE,
        EndReason.SHUTDOWN,
        EndReason.GATEWAY_FAILED,
        EndReason.GATEWAY_LOST,
        EndReason.UNREPORTED,
    }
)


def is_lost(reason: str | None) -> bool:
    """Tell whether an `EndReason` means that the client was lost and is expected back."""
    return reason in _LOST


class Removal(msgspec.Struct, frozen=True, rename="camel"):
    """The end of a session, with all that its announcement needs, because the record may be gone already.

    `reason` is an `EndReason`, or a reason that only a newer gateway knows. `revision` is the session's last one, or 0
    from an older gateway.
    """

    tenant: str
    client_id: str
    reason: str
    user: str = ""
    app: str = ""
    revision: int = 0

    @property
    def app_name(self) -> str:
        """The application's own name, as in a record."""
        return self.app


class Report(msgspec.Struct, frozen=True, rename="camel"):
    """The changes at a gateway since its last report. `number` grows by one; a repeat carries the same number.

    `former` maps the key of each replaced record to the application's former name, because the bucket may no longer
    have it if the report is repeated. Older gateways leave it out. `were_detached` has the keys of those
    whose client had no connection in the earlier report.
    """

    gateway_id: str
    number: int
    records: list[ClientRecord]
    removals: list[Removal]
    former: dict[str, str] = {}
    were_detached: list[str] = []


class ReportAck(msgspec.Struct, frozen=True, rename="camel"):
    """The report with this number is stored."""

    number: int


class GatewayPong(msgspec.Struct, frozen=True, rename="camel"):
    """A gateway's sign of life: how many sessions it held, and their digest, as of report `number`.

    That is the last one that was acknowledged; `reporting` tells that the next is on its way, and will be repeated.
    """

    gateway_id: str
    number: int
    sessions: int
    digest: str
    reporting: bool = False
    at_ms: int = 0  # by its own clock
    skew_ms: int = 0  # how far that is ahead of the registry's, as far as it has been told


class GatewayPing(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A registry's question for a sign of life; `skew_ms` is how far the gateway was ahead of it at the last one."""

    skew_ms: int | None = None


class SyncRequest(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The next page, please: records whose key sorts after `after`."""

    after: str = ""


class SyncPage(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Records of a gateway, in the order of their keys; `after` names the next page, None at the end.

    `number` is the last acknowledged report. The records may be newer.
    """

    number: int
    records: list[ClientRecord]
    after: str | None = None


class PeerHeardRequest(msgspec.Struct, frozen=True, rename="camel"):
    """Ask the other registries whether they have heard this gateway."""

    gateway_id: str


class PeerHeard(msgspec.Struct, frozen=True, rename="camel"):
    """How long ago this registry heard the gateway, in milliseconds; None for never."""

    heard_ms_ago: int | None


class DisconnectRequest(msgspec.Struct, frozen=True, rename="camel"):
    """An administrator ends a session."""

    tenant: str
    client_id: str


class DisconnectResponse(msgspec.Struct, frozen=True, rename="camel"):
    """Whether the session was here to be ended."""

    disconnected: bool


class DisconnectAgentRequest(msgspec.Struct, frozen=True, rename="camel"):
    """An administrator ends all connections of an agent, and keeps it out for some seconds."""

    sub: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    seconds: Annotated[int, msgspec.Meta(ge=0, le=MAX_DENIAL_SECONDS)] = DENIAL_SECONDS


class DisconnectAgentResponse(msgspec.Struct, frozen=True, rename="camel"):
    """Until when the agent is kept out, and how many connections to NATS were ended. Agent APIs end theirs besides."""

    sub: str
    denied_until: str
    nats_connections: int


class AgentDenial(msgspec.Struct, frozen=True, rename="camel"):
    """What the clients bucket holds of an agent that an administrator has disconnected; times are Unix milliseconds.

    An agent that may come back at once has an entry, too: it tells the agent APIs to end their connections.
    """

    tenant: str
    sub: str
    until_ms: int


class Digest:
    """An order-free digest of a gateway's sessions: equal on both sides when both hold the same records.

    It is the XOR of one 64-bit hash for each (key, revision), so that a change costs one step for any number of
    sessions. It shows honest peers that they have drifted apart; it proves nothing against a liar.
    """

    def __init__(self) -> None:
        self._value = 0

    def toggle(self, key: str, revision: int) -> None:
        """Add a record that is not in the digest, or take out one that is."""
        hashed = hashlib.blake2b(f"{key} {revision}".encode(), digest_size=8).digest()
        self._value ^= int.from_bytes(hashed)

    def __str__(self) -> str:
        return f"{self._value:016x}"
