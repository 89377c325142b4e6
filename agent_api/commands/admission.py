"""Admission control: bounds the commands in flight of this process, and refuses new ones while it drains."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

from protocol.errors import Overloaded, Unavailable
from protocol.shares import GiveBack, Holder, Piece, Shares

MAX_COMMANDS = 10_000
MAX_BYTES = 256 * 1024 * 1024

log = logging.getLogger(__name__)


class Admission:
    """The commands in flight. Their number and the bytes of their bodies are bounded.

    One capacity in bytes bounds both: a command counts as its body plus `max_bytes / max_commands`. So the number is
    bounded even if all bodies are empty. A piece holds the commands of one request.
    """

    def __init__(self, max_commands: int = MAX_COMMANDS, max_bytes: int = MAX_BYTES) -> None:
        self.draining = False
        self.commands = 0
        self._command_bytes = max_bytes // max_commands
        self._shares = Shares(max_bytes, "too many commands at once; try again in a moment")
        self._idle = asyncio.Event()
        self._idle.set()

    def admit(self, holder: Holder, body_bytes: int = 0, commands: int = 1, give_back: GiveBack | None = None) -> Piece:
        """Admit commands of `size` bytes each. Raises `Unavailable` while draining, `Overloaded` if there is no room.

        With `give_back` another user can reclaim the piece until it is kept. Keep it before the command is sent.
        """
        if self.draining:
            raise Unavailable("this process is shutting down; try again in a moment")
        size = self._command_bytes + body_bytes
        piece = self._shares.ask(holder, size, give_back)
        try:
            for _ in range(commands - 1):  # one by one, because a single piece may exceed its holder's share
                piece.grow(size)
        except Overloaded:
            piece.release()
            raise
        self.commands += commands
        self._idle.clear()
        return piece

    def counters(self) -> dict[str, int]:
        """Return the number of commands in flight, and the used part of their capacity."""
        return {"commandsInFlight": self.commands, "sharesUsedPercent:commands": self._shares.used_percent}

    def release(self, piece: Piece, commands: int = 1) -> None:
        """Release the piece of commands that have their answers, or that were reclaimed."""
        piece.release()
        self.commands -= commands
        if not self.commands:
            self._idle.set()

    @contextlib.asynccontextmanager
    async def draining_after(self, drain_seconds: float, give_up: Callable[[], None]) -> AsyncIterator[None]:
        """On a regular exit drain. Call `give_up` if commands are still in flight after the wait."""
        yield
        try:
            async with asyncio.timeout(drain_seconds):
                await self.drain()
        except TimeoutError:
            log.warning("cancelling %d commands that have no answer yet", self.commands)
            give_up()

    async def drain(self) -> None:
        """Admit no more commands, and wait for those in flight."""
        self.draining = True
        await self._idle.wait()
