"""Places and unfinished messages of a server's connections, without sockets and with a clock of the test's."""

import asyncio
import contextlib
import gc
import weakref

import pytest

from protocol.errors import Overloaded
from protocol.runtime.connections import bounds as module
from protocol.runtime.connections.bounds import ConnectionBounds

USER, NEIGHBOUR = ("flood", "u1"), ("calm", "u2")


class Connection:
    def __init__(self) -> None:
        self.ended = False
        self.given_up: list[Overloaded] = []

    def give_place_up(self) -> None:
        self.ended = True

    def give_up_message(self, error: Overloaded) -> None:
        self.given_up.append(error)


def test_oldest_stranger_makes_room_for_the_newest() -> None:
    bounds = ConnectionBounds(16, 10, lambda: 0.0)
    strangers = [Connection() for _ in range(3)]
    for stranger in strangers:
        bounds.take_in(stranger)
    assert [stranger.ended for stranger in strangers] == [True, False, False]


async def test_strangers_that_made_room_are_counted_in_one_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TICK_SECONDS", 0)
    bounds = ConnectionBounds(16, 10, lambda: 0.0)
    for _ in range(9):
        bounds.take_in(Connection())
    clock = asyncio.ensure_future(bounds.run_clock())  # noqa: TID251  ended below
    while not caplog.records:
        await asyncio.sleep(0)
    bounds.take_in(Connection())
    for _ in range(3):
        await asyncio.sleep(0)
    clock.cancel()
    assert ["closed 7 connections" in record.getMessage() for record in caplog.records] == [True]


def test_connection_with_a_session_is_no_stranger_any_more() -> None:
    bounds = ConnectionBounds(8, 10, lambda: 0.0)
    client = Connection()
    bounds.take_in(client)
    bounds.admit(client, USER)
    bounds.take_in(Connection())
    assert not client.ended


def test_tenant_that_connects_without_end_leaves_places_to_a_newcomer() -> None:
    bounds = ConnectionBounds(80, 1000, lambda: 0.0)
    for _ in range(80):
        with contextlib.suppress(Overloaded):
            bounds.admit(Connection(), USER)
    assert bounds.connections_of(USER) < 70
    bounds.admit(Connection(), NEIGHBOUR)


def test_user_has_no_more_connections_than_it_may() -> None:
    bounds = ConnectionBounds(800, 2, lambda: 0.0)
    places = [bounds.admit(Connection(), USER) for _ in range(2)]
    with pytest.raises(Overloaded) as refused:
        bounds.admit(Connection(), USER)
    assert refused.value.details == {"limit": "agent"}
    bounds.leave(Connection(), places[0], USER)
    bounds.admit(Connection(), USER)
    assert bounds.connections_of(USER) == 2


def test_unfinished_message_of_the_largest_is_given_back_for_a_neighbour() -> None:
    bounds = ConnectionBounds(100, 10, lambda: 0.0, max_input_bytes=100)
    hoarder, neighbour = Connection(), Connection()
    bounds.hold_input(hoarder, None, USER, 90)
    assert bounds.hold_input(neighbour, None, NEIGHBOUR, 30) is not None
    assert len(hoarder.given_up) == 1


async def test_message_that_is_not_whole_in_time_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TICK_SECONDS", 0)
    now = 0.0
    bounds = ConnectionBounds(100, 10, lambda: now)
    early, late = Connection(), Connection()
    bounds.hold_input(early, None, USER, 10)
    now = 20.0
    bounds.hold_input(late, None, USER, 10)
    now = 31.0
    clock = asyncio.ensure_future(bounds.run_clock())  # noqa: TID251  ended below
    while not early.given_up:
        await asyncio.sleep(0)
    clock.cancel()
    assert not late.given_up


async def test_connection_that_the_clock_has_looked_at_last_is_freed_without_a_collection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "TICK_SECONDS", 0)
    looks: list[None] = []

    def now() -> float:
        looks.append(None)
        return 0.0

    bounds, connection = ConnectionBounds(100, 10, now), Connection()
    piece = bounds.hold_input(connection, None, USER, 10)
    gone = weakref.ref(connection)
    gc.disable()
    clock = asyncio.ensure_future(bounds.run_clock())  # noqa: TID251  ended below
    try:
        while len(looks) < 2:  # when it begun, and one look of the clock
            await asyncio.sleep(0)
        bounds.let_go_input(connection, piece)
        del connection, piece
        assert gone() is None
    finally:
        gc.enable()
        clock.cancel()
