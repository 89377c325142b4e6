"""Commands with an idempotency key: the stored entry, and the test for "same command". Sans-I/O.

A key belongs to the token's tenant and `sub`. Its command is executed at most once. While the entry is stored, the same
command with the same key gets the same answer. This follows "The Idempotency-Key HTTP Header Field"
(draft-ietf-httpapi-idempotency-key-header-07) with two differences: another command with the same key is `conflict`
(409), and a request for a command that is still in flight waits for its answer.

An entry is reserved before the command is sent to the client, and ended with the command's outcome, each by revision. A
command that is refused before it is sent leaves no entry.
"""

import hashlib
import json
import re
from typing import Any

import msgspec

from protocol import codec
from protocol.access import ClientView, Principal, require
from protocol.errors import ClientLost, Conflict, Internal, InvalidRequest, PayloadTooLarge
from protocol.ids import MAX_IDEMPOTENCY_KEY_CHARS, check_printable
from protocol.messages import CommandRequest, CommandResponse, decode_response, failure
from protocol.records import Offer

_QUOTED = re.compile(r'"((?:[^"\\]|\\["\\])*)"')  # a string of RFC 9651 (structured fields), as in the draft
_ESCAPED = re.compile(r"\\(.)")


class IdempotencyEntry(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """The stored entry of a key. Without `outcome` its command is in flight.

    - `body`: hash of the command's content.
    - `reservation`: identifies this attempt (stored as `claim`); `gateway_id`: the gateway that made it.
    - `user`, `app`, `permissions`: decide which callers may read the outcome, because the client may be gone by then.
    - `padding`: reserves room for the smallest outcome, so that it can be written even if the store is full.
    """

    body: str
    reservation: str = msgspec.field(name="claim")
    gateway_id: str
    client_id: str
    user: str
    app: str = ""
    permissions: list[str] = []
    request_id: str
    at: str
    outcome: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    padding: str = ""

    @property
    def ended(self) -> bool:
        """Whether the command has its outcome."""
        return isinstance(self.outcome, msgspec.Raw)

    def require_same(self, body: str, client_id: str | None) -> None:
        """Raise `Conflict` for another command. If it names no client, the client is not compared."""
        if body != self.body or client_id not in (None, self.client_id):
            raise Conflict("this idempotency key was used for another command; use another key")

    def require_visible(self, principal: Principal) -> None:
        """Raise as `require()` does if the token's limits exclude the client or the capability."""
        view = ClientView(principal.tenant, self.client_id, self.user, self.app)
        require(principal, view, Offer("", "function", frozenset(self.permissions), {}))

    def answer(self, request_id: str) -> CommandResponse:
        """Return the outcome as the answer to another request. Raises `Internal` if it cannot be read."""
        assert isinstance(self.outcome, msgspec.Raw)
        return replayed(decode_response(codec.raw_bytes(self.outcome)), request_id)

    def end(self, response: CommandResponse, max_bytes: int) -> "IdempotencyEntry":
        """Return the entry with its outcome. If that exceeds `max_bytes`, only the fact of an outcome is kept."""
        outcome = codec.encode(response)
        if len(outcome) > max_bytes:
            error = PayloadTooLarge(
                f"the command was executed; its answer of {len(outcome)} bytes was too large to keep"
            )
            outcome = codec.encode(failure(response.request_id, error, self.client_id, response.duration_ms))
        return msgspec.structs.replace(self, outcome=msgspec.Raw(outcome), padding="")

    def padded(self) -> "IdempotencyEntry":
        """Return the entry padded to the size of its smallest end: an outcome that is not kept, or a lost gateway."""
        longest = failure(self.request_id, PayloadTooLarge(""), self.client_id, LONGEST_MS)
        ends = (self.end(longest, 0), self.lose())
        missing = max(len(codec.encode(end)) for end in ends) - len(codec.encode(self))
        return msgspec.structs.replace(self, padding="-" * (missing + HEADERS_APART_BYTES))

    def lose(self) -> "IdempotencyEntry":
        """Return the entry ended with `client_lost`, because its gateway is gone."""
        error = ClientLost("the client's gateway went away while the command was under way; it may have run")
        return self.end(failure(self.request_id, error, self.client_id), MAX_LOST_BYTES)


MAX_LOST_BYTES = 4096
LONGEST_MS = 10**12
# The headers of two writes may differ by this much, and so may the fields that tell the size of an answer.
HEADERS_APART_BYTES = 128
_entries = msgspec.json.Decoder(IdempotencyEntry)


def decode_entry(data: bytes) -> IdempotencyEntry:
    """Decode an entry. Raises `Internal` if it is not one."""
    return codec.decode(_entries, data, Internal)


def replayed(response: CommandResponse, request_id: str) -> CommandResponse:
    """Return the answer to one request as the answer to another."""
    return msgspec.structs.replace(response, request_id=request_id, replayed=True)


def entry_key(principal: Principal, key: str) -> str:
    """Return the entry's key: the tenant, and a hash of the principal's `sub` and the idempotency key."""
    sub = principal.sub.encode(errors="surrogatepass")
    return f"{principal.tenant}.{hashlib.sha256(b'%d:%b%b' % (len(sub), sub, key.encode())).hexdigest()}"


def content_of(command: CommandRequest) -> str:
    """Return a hash of a command's target, action and parameters. The order of members does not matter.

    Timeout and request id do not count. Numbers are equal if they have the same spelling or are the same float.
    """
    target, action = command.target, command.action
    head = json.dumps([target, action]).encode()
    parameters = _canonical(codec.raw_bytes(command.parameters))
    return hashlib.sha256(b"%d:%b%b" % (len(head), head, parameters)).hexdigest()


def read_header(value: str) -> str:
    """Return the key in an `Idempotency-Key` header: quoted, as in the draft, or bare, as most callers send it.

    Raises `InvalidRequest` for any other form.
    """
    text = value.strip()
    if text.startswith('"'):
        match = _QUOTED.fullmatch(text)
        if match is None:
            raise InvalidRequest("the header Idempotency-Key must be one quoted string, or a key without quotes")
        text = _ESCAPED.sub(r"\1", match[1])
    return check_printable(text, "the header Idempotency-Key", MAX_IDEMPOTENCY_KEY_CHARS)


def one_key(header: str | None, in_body: str | None) -> str | None:
    """Return the key of a request that may carry it twice. Raises `InvalidRequest` if the two differ."""
    if header is None:
        return in_body
    key = read_header(header)
    if in_body not in (None, key):
        raise InvalidRequest("`idempotencyKey`: the header Idempotency-Key says another one; give one of them")
    return key


def _canonical(parameters: bytes) -> bytes:
    """Return JSON with sorted object members, or unchanged if Python cannot read it."""
    try:
        value: Any = json.loads(parameters)
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    except (ValueError, RecursionError):
        return parameters
