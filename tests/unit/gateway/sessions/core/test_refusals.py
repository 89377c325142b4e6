"""What a client is told of refusals that come in numbers."""

from gateway.sessions.core.refusals import TOLD, Refusals
from protocol.frames import ErrorFrame

LIMITED = ErrorFrame("rate_limited", "slowly", "e1", {"retryAfterMs": 5})
AWAY = ErrorFrame("unavailable", "NATS is away", "e2")
BURST = int(TOLD.burst)


def told(refusals: Refusals, frame: ErrorFrame, now: float, count: int) -> list[ErrorFrame]:
    return [one for _ in range(count) if (one := refusals.add(frame, now)) is not None]


def test_each_of_a_burst_is_told_as_it_is() -> None:
    assert told(Refusals(), LIMITED, 0, BURST) == [LIMITED] * BURST


def test_next_one_that_is_told_counts_those_before() -> None:
    refusals = Refusals()
    assert len(told(refusals, LIMITED, 0, BURST + 50)) == BURST
    assert told(refusals, LIMITED, 0.1, 2) == [
        ErrorFrame("rate_limited", "slowly", "e1", {"retryAfterMs": 5, "refused": 51})
    ]


def test_last_ones_are_told_by_the_clock() -> None:
    refusals = Refusals()
    told(refusals, AWAY, 0, BURST + 7)
    assert refusals.due(0) == []
    assert refusals.due(1) == [ErrorFrame("unavailable", "NATS is away", "e2", {"refused": 7})]
    assert refusals.due(2) == []


def test_codes_are_apart() -> None:
    refusals = Refusals()
    told(refusals, LIMITED, 0, 1000)
    assert told(refusals, AWAY, 0, 3) == [AWAY] * 3
