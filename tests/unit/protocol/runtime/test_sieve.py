"""What is dropped of a flood by its bytes alone, and what never is."""

import pytest
from support.settings import SECRET, agent_token, settings_for

from protocol.runtime.settings import Settings
from protocol.runtime.sieve import CLOSED_SECONDS, TOLD_EVERY, Sieve
from protocol.runtime.tokens import Verifier, mint

SUBJECT = "agentbridge.default.command.c1"
FORGED = mint(SECRET * 2, "forger", "agent", 100)


class Stage:
    """A sieve with a clock that stands."""

    def __init__(self) -> None:
        self.now = 100.0
        self.told: list[tuple[str, int]] = []
        self.verifier = Verifier(settings_for(Settings, "nats://127.0.0.1:1"))
        self.sieve = Sieve(self.verifier, lambda: self.now, lambda *told: self.told.append(told))

    def drops(self, header: str = "", subject: str = SUBJECT) -> bool:
        block = f"NATS/1.0\r\n{header}\r\n\r\n".encode() if header else b""
        return self.sieve.drops(subject.encode(), block)


@pytest.fixture
async def stage() -> Stage:
    return Stage()


async def test_subject_that_is_not_closed_drops_nothing(stage: Stage) -> None:
    stage.sieve.close(SUBJECT)
    assert not stage.drops(subject=SUBJECT + "2")
    stage.now += CLOSED_SECONDS
    assert not stage.drops()
    assert stage.sieve.dropped == 0


async def test_closed_subject_drops_what_has_no_good_token(stage: Stage) -> None:
    stage.sieve.close(SUBJECT)
    for header in ("", "Other: x", "Authorization: Bearer nonsense", f"Authorization: Bearer {FORGED}"):
        assert stage.drops(header), header
    assert stage.sieve.dropped == 4


async def test_closed_subject_drops_no_good_token_that_is_new_known_or_written_unusually(stage: Stage) -> None:
    known, new = agent_token("known"), agent_token("new")
    stage.verifier.verify_now(known)
    stage.sieve.close(SUBJECT)
    for header in (
        f"Authorization: Bearer {known}",
        f"Authorization: Bearer {new}",
        f"A: b\r\nAuthorization: Bearer {new}\r\nC: d",
        f"authorization: bearer {new}",
        f"Authorization:Bearer {new}",
    ):
        assert not stage.drops(header), header


async def test_only_the_token_of_the_agent_that_sends_too_much_is_dropped(stage: Stage) -> None:
    flooder, other = agent_token("flooder"), agent_token("other")
    for token in (flooder, other):
        stage.verifier.verify_now(token)
    stage.sieve.close(SUBJECT, flooder)
    assert stage.drops(f"Authorization: Bearer {flooder}")
    assert not stage.drops(f"Authorization: Bearer {other}")
    stage.now += CLOSED_SECONDS
    stage.sieve.close(SUBJECT)
    assert not stage.drops(f"Authorization: Bearer {flooder}")


async def test_what_is_dropped_is_told_in_groups(stage: Stage) -> None:
    stage.sieve.close(SUBJECT)
    for _ in range(2 * TOLD_EVERY + 1):
        stage.drops()
    assert stage.told == [(SUBJECT, TOLD_EVERY)] * 2
