"""What gateways, registries and administrators tell one another: reports, pongs, syncs, vetoes, disconnects."""

import enum
import hashlib

import msgspec

from protocol.records import ClientRecord


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


class Removal(msgspec.Struct, frozen=True, rename="camel"):
    """A session that has ended, and why; with all that announcing it takes, for its record may be gone already.

    `reason` is an `EndReason`, or what a newer gateway knows. `revision` is the session's last one, 0 where an older
    gateway does not tell.
    """

    tenant: str
    client_id: str
    reason: str
    user: str = ""
    app: str = ""
    revision: int = 0

    @property
    def app_name(self) -> str:
        """What the application called itself, as a record has it."""
        return self.app


class Report(msgspec.Struct, frozen=True, rename="camel"):
    """What changed at a gateway since its last report. `number` grows by one; a repeat carries the same number.

    `former` has, by key, each record that replaces one of an earlier report, and the application's name in that one:
    the bucket may have forgotten it when the report is repeated. Older gateways do not tell.
    """

    gateway_id: str
    number: int
    records: list[ClientRecord]
    removals: list[Removal]
    former: dict[str, str] = {}


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


class SyncRequest(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The next page, please: records whose key sorts after `after`."""

    after: str = ""


class SyncPage(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Records of a gateway, in the order of their keys; `after` names the next page, None at the end.

    `number` is the last report that was acknowledged, whatever the records include besides.
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


class Digest:
    """An order-free digest of a gateway's sessions: equal on both sides when both hold the same records.

    The XOR of one 64-bit hash for each (key, revision), so that a change costs one step, whatever the number of
    sessions. It tells honest peers that they have drifted apart; it is no proof against a liar.
    """

    def __init__(self) -> None:
        self._value = 0

    def toggle(self, key: str, revision: int) -> None:
        """Add a record that is not in the digest, or take out one that is."""
        hashed = hashlib.blake2b(f"{key} {revision}".encode(), digest_size=8).digest()
        self._value ^= int.from_bytes(hashed)

    def __str__(self) -> str:
        return f"{self._value:016x}"
