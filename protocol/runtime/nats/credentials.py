"""A NATS credentials file (ADR-14): the JWT of a user, and the seed of the key that signs the server's challenge.

We read the file ourselves, because the library reads it while it connects and loops for ever over one without a JWT.
"""

import base64
import logging
import re
from pathlib import Path

import nkeys

from protocol.errors import ConfigurationError
from protocol.runtime.settings import variable

_JWT = re.compile(rb"BEGIN NATS USER JWT-+\s+([\w-]+\.[\w-]+\.[\w-]+)\s")
_SEED = re.compile(rb"BEGIN USER NKEY SEED-+\s+(SU[A-Z2-7]{56})\s")

log = logging.getLogger(__name__)


class UserCredentials:
    """The user in a credentials file. Raises `ConfigurationError` if the file holds no JWT or no seed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._jwt, self._seed = _read(path)

    def sign(self, nonce: str) -> bytes:
        """Return the signature of a server's challenge. Each connect calls this first, so it reads the file again."""
        try:
            self._jwt, self._seed = _read(self._path)  # the file may have been renewed
        except ConfigurationError as exc:
            log.warning("%s; using its former content", exc)
        return base64.b64encode(nkeys.from_seed(bytearray(self._seed)).sign(nonce.encode()))

    def user_jwt(self) -> bytes:
        """Return the JWT that goes with the last signature."""
        return self._jwt


def _read(path: str) -> tuple[bytes, bytes]:
    """Return the JWT and the seed in a file."""
    try:
        content = Path(path).read_bytes() + b"\n"
        user_jwt, seed = _JWT.search(content), _SEED.search(content)
        if user_jwt and seed:
            nkeys.from_seed(bytearray(seed[1]))
            return user_jwt[1], seed[1]
    except (OSError, nkeys.NkeysError, ValueError) as exc:
        raise _no_credentials(path) from exc
    raise _no_credentials(path)


def _no_credentials(path: str) -> ConfigurationError:
    return ConfigurationError(
        f"{variable('nats_creds')} is {path!r}, which is not a NATS credentials file: it should hold a user's JWT and "
        "seed, as `nsc generate creds` writes them"
    )
