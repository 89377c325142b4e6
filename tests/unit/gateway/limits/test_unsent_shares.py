"""Who may fill what waits to be written to NATS."""

import pytest

from gateway.limits.unsent_shares import EVENT_BYTES, MAX_UNSENT_BYTES, UNCOUNTED_BYTES, UnsentShares
from protocol.errors import Overloaded

ONE = 64 * 1024


class _Buffer:
    """What was written, and of this what NATS has not taken."""

    def __init__(self) -> None:
        self.shares = UnsentShares()
        self.written = self.unsent = 0

    def write(self, tenant: str, user: str = "u", size: int = ONE) -> bool:
        """Write an event if it may be."""
        try:
            self.shares.take((tenant, user), size, self.written, self.unsent)
        except Overloaded:
            return False
        self.answer(size)
        return True

    def answer(self, size: int) -> None:
        """Write something that nobody asks about."""
        self.written += size
        self.unsent += size

    def fill(self, tenant: str, user: str = "u") -> int:
        """Write until no more may be; return how many bytes that were."""
        before = self.written
        while self.write(tenant, user):
            pass
        return self.written - before


@pytest.fixture
def buffer() -> _Buffer:
    return _Buffer()


def test_tenant_alone_leaves_room_for_the_next(buffer: _Buffer) -> None:
    assert buffer.fill("a") <= UNCOUNTED_BYTES + 0.75 * EVENT_BYTES
    assert buffer.fill("b") >= EVENT_BYTES // 4
    assert buffer.fill("c") >= EVENT_BYTES // 8


def test_user_alone_leaves_room_for_the_next_of_its_tenant(buffer: _Buffer) -> None:
    buffer.fill("a", "rude")
    assert all(buffer.write("a", "honest", 100) for _ in range(1000))


def test_event_of_any_size_is_taken_of_who_has_none_waiting(buffer: _Buffer) -> None:
    buffer.fill("a")
    assert buffer.write("b", size=EVENT_BYTES)
    assert not buffer.write("b", size=1)


def test_what_nats_has_taken_is_nobody_s(buffer: _Buffer) -> None:
    buffer.fill("a")
    buffer.answer(ONE)
    assert not buffer.write("a")
    buffer.unsent -= UNCOUNTED_BYTES + 2 * ONE
    assert [buffer.write("a") for _ in range(3)] == [True, True, False]


def test_nothing_is_left_when_nats_has_taken_everything(buffer: _Buffer) -> None:
    for tenant in "abc":
        buffer.fill(tenant)
    buffer.unsent = 0
    assert buffer.fill("a") == _Buffer().fill("a")


def test_half_of_the_buffer_is_kept_for_answers(buffer: _Buffer) -> None:
    buffer.answer(MAX_UNSENT_BYTES)
    assert not buffer.write("a")
