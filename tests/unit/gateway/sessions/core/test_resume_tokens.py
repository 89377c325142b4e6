"""Resume tokens: bound to session, user and tenant; signed by the first secret, verified by all."""

import pytest

from gateway.sessions.core.resume_tokens import ResumeToken, ResumeTokens
from protocol.access import APP, Principal
from protocol.runtime.derived_keys import DerivedKeys
from protocol.subjects import ClientAddress

OLD, NEW = "o" * 32, "n" * 32
CLIENT = ClientAddress("default", "c1")
USER = Principal("user-1", APP, "default", 0)


def tokens(*secrets: str) -> ResumeTokens:
    return ResumeTokens(DerivedKeys(secrets, "resume tokens"))


def test_token_says_whose_session_it_is_for() -> None:
    token = tokens(OLD).issue(CLIENT, USER.sub, 0x1F)
    assert tokens(OLD).read(token, USER) == ResumeToken("c1", 0x1F)


@pytest.mark.parametrize(
    "other", [Principal("user-2", APP, "default", 0), Principal("user-1", APP, "elsewhere", 0)], ids=["sub", "tenant"]
)
def test_token_is_nobody_elses(other: Principal) -> None:
    assert tokens(OLD).read(tokens(OLD).issue(CLIENT, USER.sub, 1), other) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda token: token.replace("c1", "c2"),
        lambda token: token.replace(".1.", ".2."),
        lambda token: token.replace(".1.", ".01."),
        lambda token: token[:-1],
        lambda token: token + "A" * 300,
        lambda token: "",
        lambda token: "..",
        lambda token: "c1.g.AAAA",
        lambda token: "c1.1.ü",
    ],
)
def test_token_that_was_tampered_with_is_none(change: "object") -> None:
    assert callable(change)
    assert tokens(OLD).read(change(tokens(OLD).issue(CLIENT, USER.sub, 1)), USER) is None


def test_secret_can_be_rotated() -> None:
    old, both, swapped, new = tokens(OLD), tokens(OLD, NEW), tokens(NEW, OLD), tokens(NEW)
    for issuer, readers in ((old, (both, swapped)), (both, (old, swapped)), (swapped, (both, new))):
        token = issuer.issue(CLIENT, USER.sub, 1)
        assert [reader.read(token, USER) for reader in readers] == [ResumeToken("c1", 1)] * 2
    assert new.read(old.issue(CLIENT, USER.sub, 1), USER) is None


def test_keys_of_another_purpose_sign_nothing_here() -> None:
    token = ResumeTokens(DerivedKeys([OLD], "claims")).issue(CLIENT, USER.sub, 1)
    assert tokens(OLD).read(token, USER) is None
