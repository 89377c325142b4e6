"""Who is kept out, by the entries of the clients bucket and the deployment's clock; and who is told to go."""

import pytest

from protocol import codec
from protocol.access import AGENT, Principal
from protocol.errors import BridgeError, PermissionDenied
from protocol.reports import AgentDenial
from protocol.runtime.clients.denied_agents import DeniedAgents
from protocol.runtime.clients.replica import ReplicaEntry
from protocol.subjects import agent_key

ANN, BOB = (Principal(sub, AGENT, "default", float("inf")) for sub in ("ann", "bob"))
ANN_OF_ACME = Principal("ann", AGENT, "acme", float("inf"))
KEY = agent_key("default", "0f")


class Clock:
    now_ms = 1_000_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def denied(clock: Clock) -> DeniedAgents:
    return DeniedAgents(clock)


def entry(until_ms: int, sub: str = "ann", revision: int = 1) -> ReplicaEntry:
    return ReplicaEntry(revision, data=codec.encode(AgentDenial("default", sub, until_ms)))


def is_out(denied: DeniedAgents, principal: Principal) -> bool:
    try:
        denied.require_admitted(principal)
    except PermissionDenied:
        return True
    return False


def test_agent_is_kept_out_until_the_moment_and_no_other_is(denied: DeniedAgents, clock: Clock) -> None:
    denied.observe(KEY, None, entry(1_060_000))
    assert (is_out(denied, ANN), is_out(denied, BOB), is_out(denied, ANN_OF_ACME)) == (True, False, False)
    clock.now_ms = 1_059_999
    assert is_out(denied, ANN)
    clock.now_ms = 1_060_000
    assert not is_out(denied, ANN)


def test_refusal_says_until_when(denied: DeniedAgents) -> None:
    denied.observe(KEY, None, entry(1_060_000))
    with pytest.raises(
        PermissionDenied, match=r"an administrator has disconnected this agent until 1970-01-01T00:17:40"
    ):
        denied.require_admitted(ANN)


def test_last_word_counts(denied: DeniedAgents, clock: Clock) -> None:
    denied.observe(KEY, None, entry(1_060_000))
    denied.observe(KEY, entry(1_060_000), entry(clock.now_ms, revision=2))
    assert not is_out(denied, ANN)


def test_entry_that_is_gone_lets_in_again(denied: DeniedAgents) -> None:
    denied.observe(KEY, None, entry(1_060_000))
    denied.observe(KEY, entry(1_060_000), None)
    assert not is_out(denied, ANN)


@pytest.mark.parametrize("until_ms", [1_060_000, 1_000_000], ids=["kept out", "may come back at once"])
def test_connections_of_the_agent_alone_are_told(denied: DeniedAgents, until_ms: int) -> None:
    told: list[tuple[str, BridgeError]] = []
    with (
        denied.watching(ANN, lambda error: told.append(("ann", error))),
        denied.watching(ANN, lambda error: told.append(("ann too", error))),
        denied.watching(BOB, lambda error: told.append(("bob", error))),
        denied.watching(ANN_OF_ACME, lambda error: told.append(("ann of acme", error))),
    ):
        denied.observe(KEY, None, entry(until_ms))
    assert {who for who, _ in told} == {"ann", "ann too"}
    assert all(isinstance(error, PermissionDenied) for _, error in told)


def test_connection_that_has_ended_is_not_told(denied: DeniedAgents) -> None:
    told: list[BridgeError] = []
    with denied.watching(ANN, told.append):
        pass
    denied.observe(KEY, None, entry(1_060_000))
    assert told == []


def test_those_of_a_tenant_are_counted_while_they_are_out(denied: DeniedAgents, clock: Clock) -> None:
    denied.observe(KEY, None, entry(1_060_000))
    denied.observe(agent_key("default", "0e"), None, entry(1_010_000, "bob"))
    assert (denied.of_tenant("default"), denied.of_tenant("acme")) == (2, 0)
    clock.now_ms = 1_020_000
    assert denied.of_tenant("default") == 1


@pytest.mark.parametrize("data", [b"", b"{}", b"null", b'{"tenant":"default","sub":1,"untilMs":2000000}'])
def test_what_cannot_be_read_keeps_nobody_out(denied: DeniedAgents, data: bytes) -> None:
    denied.observe(KEY, None, ReplicaEntry(1, data=data))
    assert not is_out(denied, ANN)


def test_other_keys_of_the_bucket_say_nothing(denied: DeniedAgents) -> None:
    denied.observe("_gateway.g1", None, entry(1_060_000))
    assert not is_out(denied, ANN)
