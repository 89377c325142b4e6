"""Reads new capability lists in turns of the event loop, because one with many large schemas takes a third of a second.

Until a client's list is read, its later frames wait in its socket. Frames that came in the same slice are kept here.
"""

from collections.abc import Callable, Generator
from typing import Protocol

from gateway.capabilities.contracts import Contract
from protocol.runtime.connections.turns import Share, Turns

Steps = Generator[None, None, Contract]


class Holding(Protocol):
    """A socket that can be paused."""

    def hold(self) -> None:
        """Pass no more messages on, and pause reading."""

    def go_on(self) -> None:
        """Pass messages on again."""


class Registration:
    """The reading of one list, one step in each turn.

    `finish` gets the contract or the error. Then it handles the frames that have waited.
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
        """Take the first step. Return whether more are needed; then the socket is paused."""
        if not self._step():
            return False
        self._socket.hold()
        turns.add(self)
        return True

    def take_slice(self) -> bool:
        """Take a step, and finish after the last one."""
        if self._step():
            return True
        self._socket.go_on()  # first, because a waiting frame may pause it for the next registration
        self._finish(self)
        return False

    def contract(self) -> Contract:
        """Return the contract, or raise the error."""
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
