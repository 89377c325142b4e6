"""How much this process takes on at once, and the end of taking on when it drains."""

import asyncio

from protocol.errors import Overloaded, Unavailable

MAX_COMMANDS = 10_000
MAX_BYTES = 256 * 1024 * 1024


class Intake:
    """Commands under way: their number, the bytes of their bodies, and whether new ones are taken."""

    def __init__(self, max_commands: int = MAX_COMMANDS, max_bytes: int = MAX_BYTES) -> None:
        self.draining = False
        self.commands = 0
        self._bytes = 0
        self._max_commands = max_commands
        self._max_bytes = max_bytes
        self._idle = asyncio.Event()
        self._idle.set()

    def admit(self, body_bytes: int, commands: int = 1) -> None:
        """Take commands on; raise `Unavailable` while draining, `Overloaded` where that would be too many."""
        if self.draining:
            raise Unavailable("this process is shutting down; try again in a moment")
        if self.commands + commands > self._max_commands or self._bytes + body_bytes > self._max_bytes:
            raise Overloaded("too many commands at once; try again in a moment")
        self.commands += commands
        self._bytes += body_bytes
        self._idle.clear()

    def release(self, body_bytes: int, commands: int = 1) -> None:
        """Commands that were admitted have their answers."""
        self.commands -= commands
        self._bytes -= body_bytes
        if not self.commands:
            self._idle.set()

    async def drain(self) -> None:
        """Take no more, and wait for those under way."""
        self.draining = True
        await self._idle.wait()
