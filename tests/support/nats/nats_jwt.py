"""A nats-server in operator mode, whose users are known by signed JWTs alone; made without NATS's own tool for it."""

import base64
import json
import os
import time
from pathlib import Path
from typing import Any

import nkeys

VERSION = 2
UNLIMITED = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1)


class Operator:
    """An operator with one account, whose users it makes."""

    def __init__(self) -> None:
        self._key = new_key(nkeys.PREFIX_BYTE_OPERATOR)
        self._account = new_key(nkeys.PREFIX_BYTE_ACCOUNT)
        self._system = new_key(nkeys.PREFIX_BYTE_ACCOUNT)

    @property
    def config(self) -> str:
        """What makes a server believe this operator."""
        accounts = "\n".join(f"  {name_of(each)}: {self._account_jwt(each)}" for each in (self._account, self._system))
        return (
            f"operator: {signed(self._key, name_of(self._key), type='operator')}\n"
            f"system_account: {name_of(self._system)}\nresolver: MEMORY\nresolver_preload: {{\n{accounts}\n}}\n"
        )

    def write_creds(self, path: Path, **limits: int) -> str:
        """Write the credentials file of a new user, as `nsc` does, and return its path."""
        user = new_key(nkeys.PREFIX_BYTE_USER)
        user_jwt = signed(self._account, name_of(user), type="user", pub={}, sub={}, **UNLIMITED | limits)
        path.write_text(
            f"-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{bytes(user.seed).decode()}\n------END USER NKEY SEED------\n"
        )
        return str(path)

    def _account_jwt(self, account: nkeys.KeyPair) -> str:
        return signed(self._key, name_of(account), type="account", limits=UNLIMITED | {"wildcards": True})


def new_key(prefix: int) -> nkeys.KeyPair:
    """Return a new key pair of an operator, an account or a user."""
    key: nkeys.KeyPair = nkeys.from_seed(nkeys.encode_seed(os.urandom(32), prefix))
    return key


def name_of(key: nkeys.KeyPair) -> str:
    """Return the public key, which names its owner."""
    return bytes(key.public_key).decode()


def signed(issuer: nkeys.KeyPair, subject: str, **claims: Any) -> str:
    """Return a JWT as NATS wants them."""
    body = {"jti": "x", "iat": int(time.time()), "iss": name_of(issuer), "name": "tests", "sub": subject}
    parts = ({"typ": "JWT", "alg": "ed25519-nkey"}, body | {"nats": claims | {"version": VERSION}})
    text = ".".join(_base64(json.dumps(part).encode()) for part in parts)
    return f"{text}.{_base64(issuer.sign(text.encode()))}"


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
