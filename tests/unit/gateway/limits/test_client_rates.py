"""What clients may send, by frames and by bytes, of one session and of all of a tenant."""

import contextlib

import pytest

from gateway.limits.client_rates import ClientRates, FrameLimits, FrameRate, TooManyBytes
from protocol.access import ClientView
from protocol.errors import RateLimited

NONE = FrameRate(0, 0)
UNLIMITED = FrameLimits(NONE, NONE)


def rates(session: FrameRate = NONE, tenant: FrameRate = NONE) -> ClientRates:
    return ClientRates(FrameLimits(session, tenant), FrameLimits(session, tenant), UNLIMITED)


def client(client_id: str = "c1", tenant: str = "t") -> ClientView:
    return ClientView(tenant, client_id, "user-1", "")


def sent(limited: ClientRates, client_id: str = "c1", *, tenant: str = "t", size: int = 100, now: float = 0) -> str:
    """Return whose limit refuses an event, or nothing."""
    try:
        limited.events.keep(client(client_id, tenant), size, now)
    except RateLimited as exc:
        return str(exc.details["limit"])
    return ""


def test_second_s_worth_may_come_at_once_and_as_much_each_second() -> None:
    limited = rates(session=FrameRate(10, 0))
    assert [sent(limited) for _ in range(11)] == [""] * 10 + ["client"]
    assert [sent(limited, now=0.5) for _ in range(6)] == [""] * 5 + ["client"]


def test_bytes_count_where_they_are_more_than_the_frame() -> None:
    limited = rates(session=FrameRate(10, 10_000))
    assert [sent(limited, size=5_000) for _ in range(3)] == ["", "", "client"]
    assert [sent(limited, "c2", size=10) for _ in range(11)] == [""] * 10 + ["client"]


def test_frame_larger_than_a_second_s_worth_is_let_in_and_owed() -> None:
    limited = rates(session=FrameRate(0, 1000))
    assert sent(limited, size=3000) == ""
    assert sent(limited, size=1, now=1.9) == "client"
    assert sent(limited, size=1, now=2.1) == ""


def test_tenant_has_a_limit_of_all_its_clients() -> None:
    limited = rates(session=FrameRate(3, 0), tenant=FrameRate(4, 0))
    assert [sent(limited, "c1") for _ in range(4)] == ["", "", "", "client"]
    assert [sent(limited, "c2") for _ in range(2)] == ["", "tenant"]
    assert sent(limited, "c3", tenant="another") == ""


def test_what_a_session_is_refused_costs_its_tenant_nothing() -> None:
    limited = rates(session=FrameRate(1, 0), tenant=FrameRate(2, 0))
    assert [sent(limited, "c1") for _ in range(5)] == ["", *["client"] * 4]
    assert sent(limited, "c2") == ""


def test_refusal_says_the_rate_and_when_to_come_back() -> None:
    limited = rates(session=FrameRate(4, 1000))
    limited.events.keep(client(), 1000, 0)
    with pytest.raises(RateLimited, match="this client may send 4 and 1000 bytes a second") as caught:
        limited.events.keep(client(), 1, 0)
    assert caught.value.retry_after_ms == 250


@pytest.mark.parametrize(("size", "kind"), [(100, RateLimited), (600, TooManyBytes)])
def test_frame_that_is_refused_for_its_bytes_is_told_apart(size: int, kind: type[RateLimited]) -> None:
    limited = rates(session=FrameRate(4, 1000))
    limited.events.keep(client(), 1000, 0)
    with pytest.raises(RateLimited) as caught:
        limited.events.keep(client(), size, 0)
    assert type(caught.value) is kind


def test_kinds_are_apart_and_each_counts_what_it_refuses() -> None:
    limited = rates(session=FrameRate(2, 0))
    for _ in range(5):
        sent(limited)
        with contextlib.suppress(RateLimited):
            limited.progress.keep(client(), 100, 0)
        limited.registrations.keep(client(), 100, 0)
    assert limited.counters() == {"eventsRateLimited": 3, "progressRateLimited": 3, "registrationsRateLimited": 0}
