"""Lets a host ask its user which client is meant, if it can: by an interim result, after which the host calls again.

The call comes again as a whole, maybe to another replica. It brings back `requestState`, which is sealed with a key
that all replicas derive from `AGENTBRIDGE_RESUME_SECRET`, or from the JWT secrets. The state is valid for this caller,
tool and arguments, for ten minutes. Without such a secret (JWKS, a public key, AUTH=off) nobody is asked, and the model
gets the choices as a result: a key of this process alone would fail the user's answer at any other replica.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

import msgspec

from protocol import codec
from protocol.access import Principal
from protocol.errors import AmbiguousClient, InvalidRequest
from protocol.runtime.settings import ServingSettings

VALID_SECONDS = 600
MAX_COMPARED_BYTES = 64 * 1024
CLIENT = "client"
_PURPOSE = b"agentbridge: which client a tool call means"


class _ChoiceState(msgspec.Struct, frozen=True):
    tenant: str
    sub: str
    tool: str
    arguments: str
    until: int


_canonical = msgspec.json.Encoder(order="sorted")
_states = msgspec.json.Decoder(_ChoiceState)


class ChoiceSeal:
    """Seals and opens states."""

    def __init__(self, settings: ServingSettings) -> None:
        self._keys = [hmac.digest(secret.encode(), _PURPOSE, "sha256") for secret in settings.resume_secrets]

    @property
    def works(self) -> bool:
        """Whether all replicas share a secret."""
        return bool(self._keys)

    def seal(self, principal: Principal, tool: str, arguments: msgspec.Raw, now: float) -> str:
        """Return the state of a call that has to choose."""
        until = int(now) + VALID_SECONDS
        data = codec.encode(_ChoiceState(principal.tenant, principal.sub, tool, _hash(arguments), until))
        return f"{_text(data)}.{_text(hmac.digest(self._keys[0], data, 'sha256'))}"

    def require(self, state: str | None, principal: Principal, tool: str, arguments: msgspec.Raw, now: float) -> None:
        """Raise `InvalidRequest` unless this is the state of just this call, and not too old."""
        data, _, proof = (state or "").partition(".")
        content = _bytes(data)
        good = any(hmac.compare_digest(hmac.digest(key, content, "sha256"), _bytes(proof)) for key in self._keys)
        if good:
            found = codec.decode(_states, content)
            told = (found.tenant, found.sub, found.tool, found.arguments)
            good = told == (principal.tenant, principal.sub, tool, _hash(arguments)) and found.until >= now
        if not good:
            raise InvalidRequest("`requestState`: is not that of this call, or too old; call the tool again without it")


def question(error: AmbiguousClient, state: str) -> dict[str, Any]:
    """Return the interim result that lets the user choose among the clients in an error."""
    choices = [{"const": each["clientId"], "title": _title(each)} for each in error.details["clients"]]
    schema = {
        "type": "object",
        "properties": {CLIENT: {"type": "string", "title": "Client", "oneOf": choices}},
        "required": [CLIENT],
    }
    asked = {"mode": "form", "message": "Several clients offer this. Which one is meant?", "requestedSchema": schema}
    requests = {CLIENT: {"method": "elicitation/create", "params": asked}}
    return {"resultType": "input_required", "inputRequests": requests, "requestState": state}


def chosen_client(responses: Mapping[str, Any]) -> str | None:
    """Return the client that the user has chosen, or None if the user declined."""
    answer = responses.get(CLIENT)
    content = getattr(answer, "content", None) if getattr(answer, "action", None) == "accept" else None
    chosen = content.get(CLIENT) if isinstance(content, dict) else None
    return chosen if isinstance(chosen, str) else None


def _title(choice: Mapping[str, str]) -> str:
    told = [choice[name] for name in ("title", "app", "user") if name in choice]
    return f"{', '.join(told)} ({choice['clientId']})"


def _hash(arguments: msgspec.Raw) -> str:
    """Return a name for arguments: for their content, or for the JSON of large ones, which take long to read."""
    data = codec.raw_bytes(arguments)
    if len(data) <= MAX_COMPARED_BYTES:
        data = _canonical.encode(codec.decode_value(arguments))
    return hashlib.sha256(data).hexdigest()


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text.encode() + b"=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        return b""
