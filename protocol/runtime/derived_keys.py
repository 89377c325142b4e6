"""Keys for one purpose, derived from the deployment's secrets: the first one signs, all of them verify.

So secrets can be rotated without an interruption, because processes with the new secret first and processes with the
old one first accept each other's signatures.
"""

import hashlib
import hmac
from collections.abc import Sequence

SIGNATURE_BYTES = 16


class DerivedKeys:
    """Signs and verifies for one purpose. A signature for another purpose is not valid."""

    def __init__(self, secrets: Sequence[str], purpose: str) -> None:
        self._keys = [hmac.digest(secret.encode(), b"agentbridge " + purpose.encode(), "sha256") for secret in secrets]

    def sign(self, data: bytes) -> bytes:
        """Return a signature of 16 bytes."""
        return _signature(self._keys[0], data)

    def verify(self, data: bytes, signature: bytes) -> bool:
        """Tell whether one of the keys has made a signature."""
        return any(hmac.compare_digest(_signature(key, data), signature) for key in self._keys)


def _signature(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, hashlib.sha256)[:SIGNATURE_BYTES]
