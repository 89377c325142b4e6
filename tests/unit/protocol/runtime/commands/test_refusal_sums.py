"""Refusals of one `sub` and cause: twenty a second each have a record, the rest one together, and none is left out."""

import math

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from protocol.audit import AuditRecord
from protocol.errors import Code
from protocol.runtime.commands import refusal_sums
from protocol.runtime.commands.refusal_sums import AT_WILL, RefusalSums


def refusal(agent: str | None = "ann", outcome: str = "rate_limited", tenant: str = "t", **more: object) -> AuditRecord:
    told = AuditRecord("2026-01-01T00:00:00Z", tenant, outcome, 0, "gateway", "c1", agent=agent, target="f")
    return msgspec.structs.replace(told, **more)


def added(sums: RefusalSums, refusals: list[AuditRecord], now: float = 0) -> list[AuditRecord]:
    """Add refusals and return the records that are published at once."""
    return [record for record in (sums.add(each, now) for each in refusals) if record is not None]


def test_twenty_a_second_have_a_record_each_and_the_rest_one_together() -> None:
    sums = RefusalSums()
    assert added(sums, [refusal()] * 100) == [refusal()] * 20
    assert sums.due(0.9) == []
    assert sums.waiting == 80
    assert sums.due(1.0) == [refusal(count=80)]
    assert (sums.waiting, sums.summed, sums.due(math.inf)) == (0, 80, [])
    assert len(added(sums, [refusal()] * 30, 1.0)) == 20, "the next second has its own"


def test_what_differs_among_the_refusals_is_left_out_and_the_last_one_says_when() -> None:
    sums = RefusalSums()
    refusals = [
        refusal(client_id=f"c{n % 2}", user="u", request_id=str(n), at=f"2026-01-01T00:00:{n:02}Z") for n in range(23)
    ]
    added(sums, refusals)
    [record] = sums.due(math.inf)
    assert record == refusal(client_id=None, user="u", request_id=None, at="2026-01-01T00:00:22Z", count=3)


def test_each_agent_cause_and_tenant_has_sums_of_its_own() -> None:
    sums = RefusalSums()
    kinds = [refusal(), refusal("bob"), refusal(outcome="overloaded"), refusal(tenant="other"), refusal(None)]
    added(sums, kinds * 25)
    assert sums.due(math.inf) == [msgspec.structs.replace(kind, count=5) for kind in kinds]


def test_what_no_caller_can_cause_at_will_always_has_its_own_record() -> None:
    single = [code for code in Code if code not in AT_WILL]
    assert {Code.UNAVAILABLE, Code.CLIENT_LOST, Code.TIMEOUT} <= set(single)
    for code in single:
        assert len(added(RefusalSums(), [refusal(outcome=code.value)] * 100)) == 100


def test_parameters_are_in_no_sum() -> None:
    sums = RefusalSums()
    added(sums, [refusal(parameters=msgspec.Raw(b"{}"))] * 21)
    assert sums.due(math.inf) == [refusal()]


def test_sums_are_bounded_and_the_oldest_is_published_early() -> None:
    sums = RefusalSums()
    flood = [refusal(f"agent-{n}") for n in range(refusal_sums.MAX_KEYS + 10) for _ in range(21)]
    published = added(sums, flood)
    early = published[20 * (refusal_sums.MAX_KEYS + 1) :: 21][:1]
    assert early == [refusal("agent-0")]
    assert sum(record.count for record in published) + sums.waiting == len(flood)


@given(st.lists(st.tuples(st.sampled_from(["ann", "bob", None]), st.floats(0, 0.2), st.booleans()), max_size=300))
def test_every_refusal_is_counted_once(steps: list[tuple[str | None, float, bool]]) -> None:
    sums, now, published = RefusalSums(), 0.0, list[AuditRecord]()
    for agent, pause, looks in steps:
        now += pause
        published += added(sums, [refusal(agent)], now)
        if looks:
            published += sums.due(now)
    published += sums.due(math.inf)
    assert sum(record.count for record in published) == len(steps)
