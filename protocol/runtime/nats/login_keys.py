"""The keys of NATS's auth callout: the account key signs permissions, the curve key encrypts requests and answers.

Keys have the format of NATS (nkeys, ADR-14): type, 32 bytes and CRC-16, in base32. NATS is configured with the public
keys, registries with the seeds. During a rotation a registry has several pairs. The server that sent a request uses the
pair with the curve key that opens it.
"""

import base64
import binascii
import functools
import secrets

from nacl.exceptions import CryptoError
from nacl.public import Box, PrivateKey, PublicKey
from nacl.signing import SigningKey

from protocol.errors import ConfigurationError
from protocol.runtime.settings import variable

ACCOUNT, CURVE, SEED = 0, 23 << 3, 18 << 3  # "A…", "X…" and "S…" in base32
SEALED = b"xkv1"  # prefix of a sealed message
KEY_BYTES, CRC_BYTES = 32, 2
KNOWN_SERVERS = 64


class BadKey(ValueError):
    """The text is not a key of the wanted type."""


class LoginKeys:
    """One pair of keys. Raises `BadKey` for text that is not a seed."""

    def __init__(self, account_seed: str, curve_seed: str) -> None:
        self._account = SigningKey(_decode_seed(account_seed, ACCOUNT))
        self._curve = PrivateKey(_decode_seed(curve_seed, CURVE))
        self.account = _encode(bytes([ACCOUNT]) + bytes(self._account.verify_key))
        self.curve = _encode(bytes([CURVE]) + bytes(self._curve.public_key))
        self._box = functools.lru_cache(KNOWN_SERVERS)(self._new_box)

    def sign(self, data: bytes) -> bytes:
        """Return the account's signature."""
        return self._account.sign(data).signature

    def open(self, sealed: bytes, server_curve: str) -> bytes | None:
        """Decrypt a server's message; return None if it was sealed for another key."""
        if not sealed.startswith(SEALED):
            return None
        try:
            return self._box(server_curve).decrypt(sealed[len(SEALED) :])
        except (CryptoError, ValueError):
            return None

    def seal(self, data: bytes, server_curve: str) -> bytes:
        """Encrypt data for one server. Raises `BadKey` if `server_curve` is not a curve key."""
        return SEALED + self._box(server_curve).encrypt(data)

    def _new_box(self, server_curve: str) -> Box:
        return Box(self._curve, PublicKey(_decode(server_curve, bytes([CURVE]))))


def new_seeds() -> tuple[str, str]:
    """Return the seeds of a fresh pair: the account's, and the curve key's."""
    account, curve = (_encode_seed(secrets.token_bytes(KEY_BYTES), kind) for kind in (ACCOUNT, CURVE))
    return account, curve


def pairs_of(account_seeds: str | None, curve_seeds: str | None) -> list[LoginKeys]:
    """Return the pairs in the settings, which may list several seeds with commas between; [] if none are set.

    Raises `ConfigurationError` for text that is not a seed, and for lists of different length.
    """
    accounts, curves = _listed(account_seeds), _listed(curve_seeds)
    names = f"{variable('nats_account_seed')} and {variable('nats_xkey_seed')}"
    if len(accounts) != len(curves):
        raise ConfigurationError(f"{names} should have the same number of seeds, because they belong together in pairs")
    try:
        return [LoginKeys(account, curve) for account, curve in zip(accounts, curves, strict=True)]
    except BadKey as exc:
        raise ConfigurationError(
            f"{names} should hold the seeds of an account (SA…) and of a curve key (SX…): deploy/secrets.sh makes them"
        ) from exc


def _listed(seeds: str | None) -> list[str]:
    return [seed.strip() for seed in (seeds or "").split(",") if seed.strip()]


def _encode_seed(raw: bytes, kind: int) -> str:
    return _encode(_seed_head(kind) + raw)


def _decode_seed(text: str, kind: int) -> bytes:
    return _decode(text, _seed_head(kind))


def _seed_head(kind: int) -> bytes:
    """Return a seed's first two bytes: the five bits of "seed", then the eight bits of the key's type."""
    return bytes([SEED | kind >> 5, (kind & 31) << 3])


def _encode(data: bytes) -> str:
    crc = binascii.crc_hqx(data, 0).to_bytes(CRC_BYTES, "little")
    return base64.b32encode(data + crc).rstrip(b"=").decode()


def _decode(text: str, head: bytes) -> bytes:
    """Return the 32 bytes of a key that begins with `head`."""
    try:
        data = base64.b32decode(text + "=" * (-len(text) % 8))
    except ValueError as exc:
        raise BadKey("not base32") from exc
    body, crc = data[:-CRC_BYTES], data[-CRC_BYTES:]
    if len(body) != len(head) + KEY_BYTES or not body.startswith(head):
        raise BadKey("a key of another type")
    if binascii.crc_hqx(body, 0).to_bytes(CRC_BYTES, "little") != crc:
        raise BadKey("a key with a wrong checksum")
    return body[len(head) :]
