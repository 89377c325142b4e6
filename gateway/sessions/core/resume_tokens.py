"""Resume tokens, with which a client gets its session back. Each is bound to the session, the user and the tenant.

The form is `SESSION.SERIAL.SIGNATURE`. Each connection gets a new one. The one before it stays valid until the new one
is first used, because the frame with the new one may be lost. A resume token alone opens nothing: the user's own
application token must come with it.
"""

import base64
import binascii
from typing import NamedTuple

from protocol.access import Principal
from protocol.ids import is_token
from protocol.runtime.derived_keys import DerivedKeys
from protocol.subjects import ClientAddress

MAX_TOKEN_CHARS = 200
_HEX = frozenset("0123456789abcdef")


class ResumeToken(NamedTuple):
    """The content of a valid token."""

    client_id: str
    serial: int


class ResumeTokens:
    """Issues and reads resume tokens."""

    def __init__(self, keys: DerivedKeys) -> None:
        self._keys = keys

    def issue(self, client: ClientAddress, sub: str, serial: int) -> str:
        """Return a token for a session. A later token has a higher serial."""
        body = f"{client.client_id}.{serial:x}"
        signature = self._keys.sign(_signed(body, client.tenant, sub))
        return f"{body}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"

    def read(self, text: str, principal: Principal) -> ResumeToken | None:
        """Return a token's content, or None if it is invalid or was not issued to this user of this tenant."""
        if len(text) > MAX_TOKEN_CHARS or text.count(".") != 2:
            return None
        client_id, serial, signature = text.split(".")
        if not is_token(client_id) or not serial or not _HEX.issuperset(serial):
            return None
        try:
            given = base64.urlsafe_b64decode(signature + "==")
        except (ValueError, binascii.Error):
            return None
        if not self._keys.verify(_signed(f"{client_id}.{serial}", principal.tenant, principal.sub), given):
            return None
        return ResumeToken(client_id, int(serial, 16))


def _signed(body: str, tenant: str, sub: str) -> bytes:
    return f"{tenant}\n{sub}\n{body}".encode()
