"""Headers as they travel: whatever they hold, each stays one line."""

import pytest

from protocol.runtime.outbox import header_block


def test_headers_travel_as_lines() -> None:
    block = header_block({"Authorization": "Bearer x", "Agentbridge-Progress": "_INBOX.a.p1"})
    assert block == b"NATS/1.0\r\nAuthorization: Bearer x\r\nAgentbridge-Progress: _INBOX.a.p1\r\n\r\n"


@pytest.mark.parametrize("evil", ["x\r\nStatus: 503", "x\nStatus: 503", "\rx\rStatus: 503\n"])
def test_value_cannot_end_its_line(evil: str) -> None:
    head, *lines, last, end = header_block({"Authorization": evil, "More": " é "}).split(b"\r\n")
    assert (head, last, end) == (b"NATS/1.0", b"", b"")
    assert [line.partition(b": ")[0] for line in lines] == [b"Authorization", b"More"]
    assert lines[1] == "More: é".encode()
    assert not set(lines[0]) & set(b"\r\n")
