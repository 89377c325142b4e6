"""Lists that are read in turns: the socket is held while one is read, by whichever."""

import pytest

from gateway.capabilities.contracts import Contract
from gateway.registrations import Registration, Steps
from protocol.runtime.connections.turns import Turns


class Socket:
    def __init__(self) -> None:
        self.held = False

    def hold(self) -> None:
        self.held = True

    def go_on(self) -> None:
        self.held = False


@pytest.fixture
def turns() -> Turns:
    return Turns(lambda _: None, lambda: 0.0)


def steps(count: int) -> Steps:
    for _ in range(count):
        yield
    return Contract.__new__(Contract)


def test_list_that_needs_no_turn_holds_nothing(turns: Turns) -> None:
    socket = Socket()
    registration = Registration(("t", "s"), steps(0), socket, lambda _: None)
    assert not registration.begin(turns)
    assert not socket.held
    registration.contract()


def test_registration_that_follows_another_holds_the_socket_until_its_own_end(turns: Turns) -> None:
    socket = Socket()
    second = Registration(("t", "s"), steps(2), socket, lambda _: None)

    def begin_second(_: Registration) -> None:
        assert second.begin(turns)

    first = Registration(("t", "s"), steps(1), socket, begin_second)
    assert first.begin(turns)
    assert socket.held
    assert not first.take_slice()
    assert socket.held
    assert second.take_slice()
    assert socket.held
    assert not second.take_slice()
    assert not socket.held
