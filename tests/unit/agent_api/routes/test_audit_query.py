"""The query of `GET /api/audit`."""

from urllib.parse import parse_qsl

import pytest

from agent_api.routes.audit_query import AuditQuery, next_link, read_query
from protocol.audit import AuditFilter, AuditRecord
from protocol.errors import InvalidRequest
from protocol.runtime.streams.positions import Position


def test_everything_that_may_be_asked_for_is_read() -> None:
    text = (
        "clientId=c1&agent=a%20b&target=add&outcome=timeout&since=2026-01-31T12:00:00%2B02:00"
        "&until=2026-02-01T00:00:00.5Z&limit=7&after=20260101-42"
    )
    wanted = AuditFilter(
        client_id="c1",
        agent="a b",
        target="add",
        outcome="timeout",
        since="2026-01-31T10:00:00.000Z",
        until="2026-02-01T00:00:00.500Z",
    )
    assert read_query(parse_qsl(text)) == AuditQuery(wanted, 7, Position("20260101", 42))
    assert read_query([]) == AuditQuery(AuditFilter(), 100, None)
    assert read_query([("clientId", "_none")]).wanted.client_id == "_none"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("clientId", "a.b"),
        ("clientId", "*"),
        ("clientId", ""),
        ("outcome", "success.>"),
        ("outcome", "fine"),
        ("since", "yesterday"),
        ("since", "2026-01-31"),
        ("since", "2026-01-31T12:00:00"),
        ("limit", "0"),
        ("limit", "1001"),
        ("limit", "1e2"),
        ("limit", "९"),
        ("after", "42"),
        ("after", "x-1"),
        ("lastEventId", "x-1"),
        ("agent", "x" * 1025),
        ("tenant", "other"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(name: str, value: str) -> None:
    with pytest.raises(InvalidRequest, match=f"`{name}`"):
        read_query([(name, value)])
    with pytest.raises(InvalidRequest, match="is repeated"):
        read_query([("limit", "1"), ("limit", "2")])


@pytest.mark.parametrize(
    ("given", "understood"),
    [
        ("2026-01-31t12:00:00.123456789z", "2026-01-31T12:00:00.123Z"),
        ("2016-12-31T23:59:60Z", "2016-12-31T23:59:59.000Z"),
        ("9999-12-31T23:59:59-23:59", "9999-01-01T00:00:00.000Z"),
        ("0001-01-01T00:00:00+23:59", "1970-01-02T00:00:00.000Z"),
    ],
)
def test_an_instant_may_be_any_that_rfc_3339_knows(given: str, understood: str) -> None:
    assert read_query([("since", given)]).wanted.since == understood


def test_the_link_to_the_next_page_asks_for_the_same() -> None:
    link = next_link("/api/audit", [("agent", "a&b"), ("after", "1-9"), ("limit", "2")], Position("1", 5))
    assert link == '</api/audit?agent=a%26b&limit=2&after=1-5>; rel="next"'


def test_a_filter_narrows_the_subject_and_the_rest_by_the_record() -> None:
    assert AuditFilter().subject("t") == "agentbridge.t.audit.*.*"
    assert AuditFilter(client_id="c", outcome="success").subject("t") == "agentbridge.t.audit.c.success"
    record = AuditRecord(
        at="2026-01-01T00:00:00.000Z", tenant="t", agent="a", target="x", outcome="success", duration_ms=1, by="gateway"
    )
    assert AuditFilter(agent="a", target="x", since=record.at, until=record.at).wants(record)
    for other in (
        AuditFilter(agent="b"),
        AuditFilter(target="y"),
        AuditFilter(client_id="c"),
        AuditFilter(outcome="timeout"),
        AuditFilter(since="2026-01-01T00:00:00.001Z"),
        AuditFilter(until="2025-12-31T23:59:59.999Z"),
    ):
        assert not other.wants(record)


def test_last_id_that_a_library_sends_goes_before_the_place_where_it_began() -> None:
    both = [("after", "1-5"), ("lastEventId", "1-9")]
    assert read_query(both).after == Position("1", 9)
    assert next_link("/api/audit", both, Position("1", 5)) == '</api/audit?after=1-5>; rel="next"'
