"""Messages among gateways, registries and administrators: reports, pongs, syncs, vetoes, disconnects."""

import enum
import hashlib
from typing import Annotated

import msgspec

from protocol.records import ClientRecord

DENIAL_SECONDS, MAX_DENIAL_SECONDS = 60, 86_400  # how long a disconnected agent is refused
REASON_HEADER = "Agentbridge-Reason"  # on the delete marker of a client's record: the reason of its end


class EndReason(enum.StrEnum):
    """The reason of a session's end, for programs, in the `disconnected` announcement. Close frames are for people."""

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


# After these reasons the client is expected back. After any other it has left, or cannot connect again unchanged.
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
    """The end of a session. It has everything for the announcement, because the record may be gone already.

    `reason` is an `EndReason`, or one that only a newer gateway knows. `revision` is the session's last one, or 0 from
    an older gateway.
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
    """The changes at a gateway since its last report. `number` grows by one; a repeated report has the same number.

    `former` maps the key of each replaced record to the application's former name, because the bucket may no longer
    have that name if the report is repeated. Older gateways leave it out. `were_detached` lists the keys of clients
    that had no connection in the last report.
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
    """A gateway's sign of life: the number of its sessions, and their digest, at report `number`.

    That is the last acknowledged report. `reporting`: the next one is on its way and will be repeated.
    """

    gateway_id: str
    number: int
    sessions: int
    digest: str
    reporting: bool = False
    at_ms: int = 0  # by the gateway's clock
    skew_ms: int = 0  # its lead over the registry's clock, from the registry's last ping


class GatewayPing(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A registry's question for a sign of life. `skew_ms` is the lead of the gateway's clock at the last ping."""

    skew_ms: int | None = None


class SyncRequest(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Asks for the next page of records, with keys after `after`."""

    after: str = ""


class SyncPage(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Records of a gateway, in the order of their keys. `after` asks for the next page; it is None at the end.

    `number` is the last acknowledged report. The records may be newer.
    """

    number: int
    records: list[ClientRecord]
    after: str | None = None


class PeerHeardRequest(msgspec.Struct, frozen=True, rename="camel"):
    """Asks the other registries when they last heard a gateway."""

    gateway_id: str


class PeerHeard(msgspec.Struct, frozen=True, rename="camel"):
    """The milliseconds since this registry last heard the gateway, or None if it never has."""

    heard_ms_ago: int | None


class DisconnectRequest(msgspec.Struct, frozen=True, rename="camel"):
    """An administrator ends a session."""

    tenant: str
    client_id: str


class DisconnectResponse(msgspec.Struct, frozen=True, rename="camel"):
    """Whether this gateway had the session and has ended it."""

    disconnected: bool


class DisconnectAgentRequest(msgspec.Struct, frozen=True, rename="camel"):
    """An administrator ends all connections of an agent, which is then refused for `seconds`."""

    sub: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    seconds: Annotated[int, msgspec.Meta(ge=0, le=MAX_DENIAL_SECONDS)] = DENIAL_SECONDS


class DisconnectAgentResponse(msgspec.Struct, frozen=True, rename="camel"):
    """The end of the refusal, and the number of ended NATS connections. Agent APIs end their own connections, too."""

    sub: str
    denied_until: str
    nats_connections: int


class AgentDenial(msgspec.Struct, frozen=True, rename="camel"):
    """The entry in the clients bucket of a disconnected agent. Times are Unix milliseconds.

    An agent that may come back at once has an entry, too, because the entry makes agent APIs end its connections.
    """

    tenant: str
    sub: str
    until_ms: int


class Digest:
    """A digest of a gateway's sessions, without regard to order. Equal records on both sides give equal digests.

    It is the XOR of a 64-bit hash of each (key, revision), so a change costs one step for any number of sessions. It
    detects drift between honest peers, and proves nothing against a malicious one.
    """

    def __init__(self) -> None:
        self._value = 0

    def toggle(self, key: str, revision: int) -> None:
        """Add a record to the digest, or remove it if it is in the digest."""
        hashed = hashlib.blake2b(f"{key} {revision}".encode(), digest_size=8).digest()
        self._value ^= int.from_bytes(hashed)

    def __str__(self) -> str:
        return f"{self._value:016x}"
