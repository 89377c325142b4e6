"""Which audit records are wanted."""

from protocol.audit import AuditFilter, AuditRecord


def test_records_without_a_client_can_be_asked_for() -> None:
    about = {"at": "2026-01-01T00:00:00.000Z", "tenant": "default", "outcome": "invalid_request", "by": "agent_api"}
    nobodys = AuditRecord(**about, duration_ms=0)  # type: ignore[arg-type]  # all of these are text
    somebodys = AuditRecord(**about, duration_ms=0, client_id="c1")  # type: ignore[arg-type]
    wanted = AuditFilter(client_id="_none")
    assert (wanted.wants(nobodys), wanted.wants(somebodys)) == (True, False)
    assert not AuditFilter(client_id="c1").wants(nobodys)
