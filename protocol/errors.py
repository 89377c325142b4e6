"""The errors that peers can receive, in one tree and one table.

    BridgeError
    ├── InvalidRequest (invalid_request)
    │   └── InvalidFrame (invalid_frame)
    ├── Unauthenticated (unauthenticated)
    ├── PermissionDenied (permission_denied)
    ├── ClientNotFound (client_not_found)
    ├── UnknownCapability (unknown_capability)
    ├── Conflict (conflict)
    │   └── AmbiguousClient (ambiguous_client)
    ├── PayloadTooLarge (payload_too_large)
    ├── InvalidParameters (invalid_parameters)
    ├── RateLimited (rate_limited)
    ├── Overloaded (overloaded)
    ├── Cancelled (cancelled)
    ├── CommandFailed (command_failed)
    ├── Internal (internal)
    ├── ClientLost (client_lost)
    ├── Unavailable (unavailable)
    └── DeadlineExceeded (timeout)

An error is raised where the fact is known and translated once, at the boundary. Its message is written for the peer:
a sentence that says what to do, never the text of somebody else's exception.
"""

import math
from enum import StrEnum
from typing import Any, ClassVar, NamedTuple

import msgspec


class Code(StrEnum):
    """The codes that HTTP, NATS and WebSocket peers see."""

    INVALID_REQUEST = "invalid_request"
    INVALID_FRAME = "invalid_frame"
    UNAUTHENTICATED = "unauthenticated"
    PERMISSION_DENIED = "permission_denied"
    CLIENT_NOT_FOUND = "client_not_found"
    UNKNOWN_CAPABILITY = "unknown_capability"
    CONFLICT = "conflict"
    AMBIGUOUS_CLIENT = "ambiguous_client"
    PAYLOAD_TOO_LARGE = "payload_too_large"
    INVALID_PARAMETERS = "invalid_parameters"
    RATE_LIMITED = "rate_limited"
    OVERLOADED = "overloaded"
    CANCELLED = "cancelled"
    COMMAND_FAILED = "command_failed"
    INTERNAL = "internal"
    CLIENT_LOST = "client_lost"
    UNAVAILABLE = "unavailable"
    TIMEOUT = "timeout"


# The meaning of `retryable` for peers. If it is false, the command may have been executed, or the same request would be
# refused again.
RETRYABLE = "true if the command was certainly not executed and the same request may succeed in a moment"


class Meaning(NamedTuple):
    """The meaning of a code: its HTTP status, its short phrase, and whether it is `RETRYABLE`."""

    http_status: int
    phrase: str
    retryable: bool = False


MEANINGS: dict[Code, Meaning] = {
    Code.INVALID_REQUEST: Meaning(400, "Invalid request"),
    Code.INVALID_FRAME: Meaning(400, "Invalid frame"),
    Code.UNAUTHENTICATED: Meaning(401, "Authentication required"),
    Code.PERMISSION_DENIED: Meaning(403, "Permission denied"),
    Code.CLIENT_NOT_FOUND: Meaning(404, "Client not found"),
    Code.UNKNOWN_CAPABILITY: Meaning(404, "Unknown capability"),
    Code.CONFLICT: Meaning(409, "Conflict"),
    Code.AMBIGUOUS_CLIENT: Meaning(409, "Ambiguous client"),
    Code.PAYLOAD_TOO_LARGE: Meaning(413, "Payload too large"),
    Code.INVALID_PARAMETERS: Meaning(422, "Invalid parameters"),
    Code.RATE_LIMITED: Meaning(429, "Rate limited", retryable=True),
    Code.OVERLOADED: Meaning(429, "Overloaded", retryable=True),
    Code.CANCELLED: Meaning(499, "Command cancelled"),
    Code.COMMAND_FAILED: Meaning(500, "Command failed"),
    Code.INTERNAL: Meaning(500, "Internal error"),
    Code.CLIENT_LOST: Meaning(502, "Client lost"),
    Code.UNAVAILABLE: Meaning(503, "Unavailable", retryable=True),
    Code.TIMEOUT: Meaning(504, "Command timed out"),
}


# Values of `details.limit` in an error: the limit that is used up.
AGENT_LIMIT, CAPABILITY_LIMIT, CLIENT_LIMIT = "agent", "capability", "client"
TENANT_LIMIT, PROCESS_LIMIT = "tenant", "process"


class CloseCode:
    """WebSocket close codes: RFC 6455 section 7.4 below 4000, ours from 4000 on."""

    NORMAL = 1000
    GOING_AWAY = 1001
    NO_STATUS = 1005
    POLICY = 1008
    TOO_LARGE = 1009
    INTERNAL = 1011
    RESTARTING = 1012
    NO_CREDENTIALS = 4001
    REFUSED = 4003
    REPLACED = 4009
    TOO_MANY = 4029


class ErrorBody(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """An error in a response on NATS: code, sentence, `RETRYABLE` or not, details."""

    code: str
    message: str
    retryable: bool
    details: Any = None

    @property
    def limit(self) -> str | None:
        """The limit that was reached, such as `agent` (the caller's own) or `capability` (all callers'), or None."""
        told = self.details.get("limit") if isinstance(self.details, dict) else None
        return told if isinstance(told, str) else None


class BridgeError(Exception):
    """An error for a peer. `details` must be JSON, and nothing in it may be secret from the peer."""

    code: ClassVar[Code] = Code.INTERNAL

    def __init__(self, message: str, *, details: Any = None) -> None:
        super().__init__(message)
        self.message = message
        self.details = details

    @property
    def meaning(self) -> Meaning:
        """The code's row of the table."""
        return MEANINGS[self.code]

    def body(self) -> ErrorBody:
        """Return the error for the wire. It contains `retryable`, because peers do not have our table."""
        return ErrorBody(self.code.value, self.message, self.meaning.retryable, self.details)


class InvalidRequest(BridgeError):
    """The request is malformed. The message names the field."""

    code = Code.INVALID_REQUEST


class InvalidFrame(InvalidRequest):
    """The WebSocket frame is malformed. The message names the field."""

    code = Code.INVALID_FRAME


class Unauthenticated(BridgeError):
    """The token is missing or invalid."""

    code = Code.UNAUTHENTICATED


class PermissionDenied(BridgeError):
    """The token is valid, but does not permit this on a client that it may see."""

    code = Code.PERMISSION_DENIED


class ClientNotFound(BridgeError):
    """The client does not exist, or this token may not see it. The error does not tell which."""

    code = Code.CLIENT_NOT_FOUND

    def __init__(self, message: str = "no connected client with this id", *, details: Any = None) -> None:
        super().__init__(message, details=details)


class UnknownCapability(BridgeError):
    """The client does not offer this target or action."""

    code = Code.UNKNOWN_CAPABILITY


class Conflict(BridgeError):
    """The request contradicts one that is in flight."""

    code = Code.CONFLICT


class AmbiguousClient(Conflict):
    """Several clients offer the target, and the request names none of them."""

    code = Code.AMBIGUOUS_CLIENT


class PayloadTooLarge(BridgeError):
    """The message is larger than this deployment's limit."""

    code = Code.PAYLOAD_TOO_LARGE


class InvalidParameters(BridgeError):
    """The capability's JSON Schema refuses the parameters; `details.path` points to the fault."""

    code = Code.INVALID_PARAMETERS


class RateLimited(BridgeError):
    """Too many requests in a time. Nothing was executed.

    `details.retryAfterMs` tells after how many milliseconds to try again. `details.limit` names the limit, if the
    request was a command.
    """

    code = Code.RATE_LIMITED

    @classmethod
    def for_seconds(cls, wait_seconds: float, message: str, limit: str | None = None) -> "RateLimited":
        """Return the error for a request that may be tried again after `seconds`."""
        wait_ms = max(1, math.ceil(wait_seconds * 1000))
        details = {"retryAfterMs": wait_ms} | ({} if limit is None else {"limit": limit})
        return cls(f"{message}; try again in {wait_ms} ms", details=details)

    @property
    def retry_after_ms(self) -> int:
        """Milliseconds until the peer may try again; 0 if unknown."""
        told = self.details.get("retryAfterMs") if isinstance(self.details, dict) else None
        return told if isinstance(told, int) and told > 0 else 0


class Overloaded(BridgeError):
    """Too much at once. Nothing was executed. If a share is used up, `details.limit` names it."""

    code = Code.OVERLOADED


class Cancelled(BridgeError):
    """The caller cancelled the command. It may have run in part."""

    code = Code.CANCELLED


class CommandFailed(BridgeError):
    """The application answered with an error. Its own code is in `details.code`."""

    code = Code.COMMAND_FAILED


class Internal(BridgeError):
    """A fault of ours. The log has its details."""

    code = Code.INTERNAL


class ClientLost(BridgeError):
    """The client or its gateway went away while the command was in flight. It may have run."""

    code = Code.CLIENT_LOST


class Unavailable(BridgeError):
    """NATS is away, a process is draining, or a lost client is expected back. Nothing was executed."""

    code = Code.UNAVAILABLE

    @classmethod
    def while_client_is_away(cls) -> "Unavailable":
        """Return the error for a client that was lost a moment ago."""
        return cls(
            "the client was lost a moment ago and may be back soon, under another id if it connects anew; "
            "try again in a moment"
        )


class DeadlineExceeded(BridgeError):
    """No answer came within the command's timeout. It may still run."""

    code = Code.TIMEOUT


class ConfigurationError(Exception):
    """A setting or a server prevents this process from starting. The message is one line for the operator."""


class CredentialsRefused(ConfigurationError):
    """NATS refuses this process's user, password or token."""


def _subclasses(cls: type[BridgeError]) -> list[type[BridgeError]]:
    return [cls, *(below for direct in cls.__subclasses__() for below in _subclasses(direct))]


BY_CODE: dict[str, type[BridgeError]] = {cls.code.value: cls for cls in _subclasses(BridgeError)[1:]}


def from_body(body: ErrorBody) -> BridgeError:
    """Return the error that another process of ours reported. A code of a newer version becomes `Internal`."""
    return BY_CODE.get(body.code, Internal)(body.message, details=body.details)
