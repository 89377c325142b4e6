"""Commands under an idempotency key: the entry that is stored, and the test for "same command". Sans-I/O.

A key belongs to the token's tenant and `sub`. A command under it is executed at most once; the same
command under the same key gets that one's answer, for as long as the entry is kept. After "The Idempotency-Key HTTP
Header Field" (draft-ietf-httpapi-idempotency-key-header-07); unlike there, another command under the same key is
`conflict` (409), and one that is under way is joined.

An entry goes from nothing to reserved (before the command is sent to the client) to ended (with its outcome), each by
revision. A command that is refused before it is sent to the client leaves no entry.
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

_QUOTED = re.compile(r'"((?:[^"\\]|\\["\\])*)"')  # a string of RFC 9651 (structured fields), as the draft has it
_ESCAPED = re.compile(r"\\(.)")


class IdempotencyEntry(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """The stored entry of a command under a key. Without `outcome` the command is in flight.

    `body` is the hash of the command's content, `reservation` identifies this attempt (stored as `claim`), `gateway_id`
    the gateway that made it. `user`, `app` and `permissions` decide which callers may read the outcome, because the
    client may be gone by then. `padding` makes room for the smallest outcome, so that one can be written though the
    store is full.
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
        """Whether the outcome is there."""
        return isinstance(self.outcome, msgspec.Raw)

    def require_same(self, body: str, client_id: str | None) -> None:
        """Raise `Conflict` for another command; one that names no client may be for any."""
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
        """Return the entry with its outcome. A larger one than `max_bytes` is not kept, only that there was one."""
        outcome = codec.encode(response)
        if len(outcome) > max_bytes:
            error = PayloadTooLarge(
                f"the command was executed; its answer of {len(outcome)} bytes was too large to keep"
            )
            outcome = codec.encode(failure(response.request_id, error, self.client_id, response.duration_ms))
        return msgspec.structs.replace(self, outcome=msgspec.Raw(outcome), padding="")

    def padded(self) -> "IdempotencyEntry":
        """Return the reservation as large as it may become if its outcome is not kept, or its gateway is lost."""
        longest = failure(self.request_id, PayloadTooLarge(""), self.client_id, LONGEST_MS)
        ends = (self.end(longest, 0), self.lose())
        missing = max(len(codec.encode(end)) for end in ends) - len(codec.encode(self))
        return msgspec.structs.replace(self, padding="-" * (missing + HEADERS_APART_BYTES))

    def lose(self) -> "IdempotencyEntry":
        """Return the entry's end if its gateway is gone: `client_lost`."""
        error = ClientLost("the client's gateway went away while the command was under way; it may have run")
        return self.end(failure(self.request_id, error, self.client_id), MAX_LOST_BYTES)


MAX_LOST_BYTES = 4096
LONGEST_MS = 10**12
# By which the headers of two writes may differ, and the fields of the entry that say how large an answer was.
HEADERS_APART_BYTES = 128
_entries = msgspec.json.Decoder(IdempotencyEntry)


def decode_entry(data: bytes) -> IdempotencyEntry:
    """Decode an entry; raise `Internal` if it is not one."""
    return codec.decode(_entries, data, Internal)


def replayed(response: CommandResponse, request_id: str) -> CommandResponse:
    """Return the answer of one request as that of another."""
    return msgspec.structs.replace(response, request_id=request_id, replayed=True)


def entry_key(principal: Principal, key: str) -> str:
    """Return the tenant, and a hash that is unique for this principal and key: together they locate the entry."""
    sub = principal.sub.encode(errors="surrogatepass")
    return f"{principal.tenant}.{hashlib.sha256(b'%d:%b%b' % (len(sub), sub, key.encode())).hexdigest()}"


def content_of(command: CommandRequest) -> str:
    """Return a hash of a command's target, action and parameters. The order of members does not matter.

    Timeout and request id do not count. Numbers are equal if they are written alike or are the same float.
    """
    target, action = command.target, command.action
    head = json.dumps([target, action]).encode()
    parameters = _canonical(codec.raw_bytes(command.parameters))
    return hashlib.sha256(b"%d:%b%b" % (len(head), head, parameters)).hexdigest()


def read_header(value: str) -> str:
    """Return the key of a header `Idempotency-Key`: quoted, as the draft has it, or bare, as most send it.

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
    """Return the key of a request that may name it twice; raise `InvalidRequest` if the two differ."""
    if header is None:
        return in_body
    key = read_header(header)
    if in_body not in (None, key):
        raise InvalidRequest("`idempotencyKey`: the header Idempotency-Key says another one; give one of them")
    return key


def _canonical(parameters: bytes) -> bytes:
    """Return JSON with the members of its objects in order, or unchanged if Python cannot read it."""
    try:
        value: Any = json.loads(parameters)
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    except (ValueError, RecursionError):
        return parameters
