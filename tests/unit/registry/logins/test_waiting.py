"""Whose login is answered next, and whose is not any more."""

import pytest
from support.memory import bytes_left_by

from registry.logins.waiting import WaitingLogins


def waiting(capacity: int = 10) -> WaitingLogins[str]:
    return WaitingLogins(capacity, 1.5)


def test_newest_login_comes_first() -> None:
    logins = waiting()
    for at, name in enumerate("abc"):
        logins.add("host", name, at / 10)
    assert [logins.take(0.5) for _ in range(4)] == ["c", "b", "a", None]


def test_addresses_take_turns() -> None:
    logins = waiting()
    for name in ("a1", "a2", "a3"):
        logins.add("a", name, 0.0)
    logins.add("b", "b1", 0.0)
    assert [logins.take(0.1) for _ in range(4)] == ["a3", "b1", "a2", "a1"]


def test_login_that_its_server_has_given_up_is_dropped() -> None:
    logins = waiting()
    logins.add("a", "old", 0.0)
    logins.add("a", "older than it may be, too", 0.1)
    logins.add("b", "new", 1.0)
    assert [logins.take(2.0), logins.take(2.0)] == ["new", None]
    assert (logins.dropped, len(logins)) == (2, 0)


def test_oldest_of_the_busiest_address_makes_room() -> None:
    logins = waiting(capacity=4)
    for number in range(6):
        logins.add("flood", f"f{number}", number / 10)
        logins.add(f"other-{number}", "one", number / 10) if number < 2 else None
    assert (len(logins), logins.dropped) == (4, 4)
    assert sorted(str(logins.take(0.6)) for _ in range(4)) == ["f4", "f5", "one", "one"]


@pytest.mark.parametrize("count", [1, 5])
def test_nothing_is_kept_of_an_address_without_logins(count: int) -> None:
    logins = waiting()

    def many_log_in() -> None:
        for host in range(2000):
            for number in range(count):
                logins.add(f"host-{host}", str(number), 0.0)
            while logins.take(0.1) is not None:
                pass

    assert bytes_left_by(many_log_in) < 20_000
