"""Keys of agents' logins: how they are written, what they sign and seal."""

import nkeys
import pytest
from hypothesis import given, strategies
from nacl.exceptions import BadSignatureError

from protocol.errors import ConfigurationError
from protocol.runtime.nats.login_keys import LoginKeys, new_seeds, pairs_of

ACCOUNT, CURVE = new_seeds()


def test_account_key_is_the_one_that_natss_own_library_makes_of_the_seed() -> None:
    theirs = nkeys.from_seed(bytearray(ACCOUNT.encode()))
    ours = LoginKeys(ACCOUNT, CURVE)
    assert ours.account == bytes(theirs.public_key).decode()
    assert theirs.verify(b"text", ours.sign(b"text"))
    with pytest.raises((BadSignatureError, nkeys.ErrInvalidSignature)):
        theirs.verify(b"another text", ours.sign(b"text"))


def test_what_is_sealed_for_one_key_opens_with_no_other() -> None:
    server, ours, other = (LoginKeys(*new_seeds()) for _ in range(3))
    sealed = server.seal(b"a token", ours.curve)
    assert sealed.startswith(b"xkv1")
    assert b"a token" not in sealed
    assert ours.open(sealed, server.curve) == b"a token"
    assert other.open(sealed, server.curve) is None
    assert ours.open(sealed, other.curve) is None


@given(strategies.binary())
def test_garbage_does_not_open(data: bytes) -> None:
    keys = LoginKeys(ACCOUNT, CURVE)
    assert keys.open(data, keys.curve) is None
    assert keys.open(b"xkv1" + data, keys.curve) is None


@pytest.mark.parametrize(
    "curve",
    ["", "X", ACCOUNT, "not base32!", LoginKeys(ACCOUNT, CURVE).account],
    ids=["empty", "one letter", "a seed", "no base32", "an account"],
)
def test_server_without_a_curve_key_is_not_heard(curve: str) -> None:
    keys = LoginKeys(ACCOUNT, CURVE)
    assert keys.open(keys.seal(b"text", keys.curve), curve) is None


def test_no_seeds_are_no_pairs() -> None:
    assert pairs_of(None, None) == pairs_of("", " ") == []


def test_several_pairs_keep_their_order() -> None:
    other = new_seeds()
    pairs = pairs_of(f"{ACCOUNT}, {other[0]}", f"{CURVE},{other[1]}")
    assert [each.account for each in pairs] == [LoginKeys(ACCOUNT, CURVE).account, LoginKeys(*other).account]


@pytest.mark.parametrize(
    ("accounts", "curves"),
    [
        (ACCOUNT, None),
        (None, CURVE),
        (f"{ACCOUNT},{ACCOUNT}", CURVE),
        (CURVE, ACCOUNT),
        (ACCOUNT[:-1], CURVE),
        (ACCOUNT[:20] + ("A" if ACCOUNT[20] != "A" else "B") + ACCOUNT[21:], CURVE),
        ("nonsense", CURVE),
        (LoginKeys(ACCOUNT, CURVE).account, CURVE),
    ],
    ids=["no curve", "no account", "two", "exchanged", "too short", "misspelt", "nonsense", "a public key"],
)
def test_wrong_seeds_are_told_without_showing_them(accounts: str | None, curves: str | None) -> None:
    with pytest.raises(ConfigurationError, match="AGENTBRIDGE_NATS_ACCOUNT_SEED") as told:
        pairs_of(accounts, curves)
    assert ACCOUNT not in str(told.value)
