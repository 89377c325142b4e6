"""Capability lists that are new to this gateway, read in turns: one of many large schemas takes a third of a second.

Until a client's list is read, its later frames wait in its socket. Frames of the same slice as the list are kept here.
"""

from collections.abc import Callable, Generator
from typing import Protocol

from gateway.capabilities.contracts import Contract
from protocol.runtime.connections.turns import Share, Turns

Steps = Generator[None, None, Contract]


class Holding(Protocol):
    """A socket that can be kept from handing over messages."""

    def hold(self) -> None:
        """Hand over no more messages, and stop reading from the socket."""

    def go_on(self) -> None:
        """Hand over messages again."""


class Registration:
    """The reading of one list, a step a turn.

    `finish` gets the contract, or the error of the reading; then it handles the frames that were held back.
    """

    def __init__(self, share: Share, steps: Steps, socket: Holding, finish: Callable[["Registration"], None]) -> None:
        self.share = share
        self.held_back: list[Callable[[], None]] = []
        self._steps = steps
        self._socket = socket
        self._finish = finish
        self._contract: Contract | None = None
        self._error: Exception | None = None

    def begin(self, turns: Turns) -> bool:
        """Take the first step; return whether more are needed, for which the socket is held."""
        if not self._step():
            return False
        self._socket.hold()
        turns.add(self)
        return True

    def take_slice(self) -> bool:
        """Take a step; finish after the last."""
        if self._step():
            return True
        self._socket.go_on()  # first: a held frame may begin the next registration, which holds the socket
        self._finish(self)
        return False

    def contract(self) -> Contract:
        """Return the contract, or raise the error of the reading."""
        if self._error is not None:
            raise self._error
        assert self._contract is not None
        return self._contract

    def _step(self) -> bool:
        try:
            next(self._steps)
        except StopIteration as done:
            self._contract = done.value
            return False
        except Exception as exc:
            self._error = exc
            return False
        return True
