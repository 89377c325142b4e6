"""Identifiers: the allowed form of the ids of tenants, clients and gateways, and new ids.

An id becomes one token of a NATS subject, so it must not contain a dot, a wildcard or a space. A leading underscore is
reserved for our own names (`_registry`, `_gateway`, `_none`).
"""

import re
import secrets
import uuid

from protocol.errors import InvalidRequest

MAX_ID_CHARS = 64
MAX_REQUEST_ID_CHARS = 128
MAX_IDEMPOTENCY_KEY_CHARS = 255
_TOKEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_PRINTABLE_ASCII = re.compile(r"[\x21-\x7e]+")


def is_token(text: str) -> bool:
    """Tell whether `text` has the form of a tenant or client id."""
    return _TOKEN.fullmatch(text) is not None


def check_token(text: str, what: str) -> str:
    """Return `text` if it has the form of an id. Raises `InvalidRequest` that names `what` if not."""
    if not is_token(text):
        raise InvalidRequest(f"{what} must be 1 to 64 letters, digits, '-' or '_', beginning with a letter or digit")
    return text


def check_printable(text: str, what: str, max_chars: int) -> str:
    """Return `text` if it is 1 to `max_chars` printable ASCII characters without a space.

    Raises `InvalidRequest` that names `what` if not.
    """
    if len(text) > max_chars or not _PRINTABLE_ASCII.fullmatch(text):
        raise InvalidRequest(f"{what} must be 1 to {max_chars} printable ASCII characters without spaces")
    return text


def new_client_id() -> str:
    """Return a new, random client id."""
    return str(uuid.uuid4())


def new_gateway_id() -> str:
    """Return a new, random gateway id. A process has one for its whole life."""
    return f"gw-{secrets.token_hex(8)}"


def new_request_id() -> str:
    """Return a new, unique request id."""
    return secrets.token_hex(12)
