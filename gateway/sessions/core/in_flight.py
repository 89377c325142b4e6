"""The commands that one client has not answered, by their ids on its connection and by their callers. Sans-I/O."""

from collections.abc import Callable

import msgspec

from gateway.sessions.core.calls import Call
from gateway.sessions.core.progress import Progress
from gateway.sessions.core.snapshots import MovingCommand
from protocol.errors import Conflict, Overloaded
from protocol.frames import CommandFrame
from protocol.shares import GiveBack, Piece

FRAME_BYTES = 512  # a command's frame without its parameters, roughly

# Returns room for so many bytes of an agent's, which may have to be given back, or None if there is none.
KeepFrame = Callable[[str, int, GiveBack], Piece | None]


class InFlight(msgspec.Struct):
    """A command that was sent to the client and is not answered yet.

    `heard` is the time of its caller's last probe; None if the caller does not promise to probe. `frame` is kept if it
    may have to be sent again and there was room; `kept` is that room.
    """

    wire_id: str
    call: Call
    reservation: str = ""
    progress: Progress | None = None
    heard: float | None = None
    frame: CommandFrame | None = None
    kept: Piece | None = None

    @property
    def key(self) -> tuple[str, str]:
        """The command's key outside: the caller and its request id, or the reservation if several may wait."""
        return (self.call.sub, self.reservation or self.call.request_id)

    def let_go(self) -> None:
        """Drop the kept frame."""
        if self.kept is not None:
            self.kept.release()
        self.frame = self.kept = None


class CommandsInFlight:
    """The commands of one client, oldest first."""

    __slots__ = ("_by_caller", "_by_wire_id", "_client_id", "_from_before", "_keeps", "next_wire_id")

    def __init__(self, client_id: str) -> None:
        self.next_wire_id = 0
        self._client_id = client_id
        self._by_wire_id: dict[str, InFlight] = {}
        self._by_caller: dict[tuple[str, str], InFlight] = {}
        self._keeps: KeepFrame | None = None
        self._from_before: set[str] = set()

    def __len__(self) -> int:
        return len(self._by_wire_id)

    def all(self) -> list[InFlight]:
        """Return a copy of the commands, so that a loop over it may end some."""
        return list(self._by_wire_id.values())

    @property
    def oldest(self) -> InFlight | None:
        """The command that has waited longest."""
        return next(iter(self._by_wire_id.values()), None)

    @property
    def holds_keys(self) -> bool:
        """Whether a command under an idempotency key is among them: it cannot move to another gateway."""
        return any(command.reservation for command in self._by_wire_id.values())

    def get(self, wire_id: str) -> InFlight | None:
        """Return the command by its id on the connection."""
        return self._by_wire_id.get(wire_id)

    def of(self, sub: str, request_id: str) -> InFlight | None:
        """Return a caller's command by its request id or its reservation."""
        return self._by_caller.get((sub, request_id))

    def require_unused(self, call: Call, reservation: str) -> None:
        """Raise `Conflict` if another command in flight has the caller's id for this call."""
        used = (call.sub, reservation or call.request_id) in self._by_caller
        if used or (not reservation and call.asked.request_id is not None and self._has_own_id(call)):
            raise Conflict("a command with this requestId is already in flight; use another id")

    def begin(self, call: Call, reservation: str, heard: float | None) -> InFlight:
        """Note a command as sent, under a new id on the connection."""
        self.next_wire_id += 1
        command = InFlight(f"{self._client_id[:8]}-{self.next_wire_id:x}", call, reservation, heard=heard)
        if call.progress_to is not None:
            command.progress = Progress(call.progress_to, self._client_id, call.own_id)
        self._add(command)
        return command

    def end(self, command: InFlight) -> None:
        """Forget a command that is answered."""
        del self._by_wire_id[command.wire_id]
        del self._by_caller[command.key]
        if command.kept is not None:
            command.let_go()

    # --- a client that may come back by another connection, or at another gateway ---

    def keep_frames(self, keeps: KeepFrame) -> None:
        """Keep the frames of commands from now on, as far as `keeps` has room."""
        self._keeps = keeps

    def keep(self, command: InFlight, frame: CommandFrame) -> None:
        """Keep a command's frame until the command is answered, if there is room for it."""
        if self._keeps is None:
            return

        def give_back(_: Overloaded) -> None:
            command.frame = command.kept = None

        command.kept = self._keeps(command.call.sub, FRAME_BYTES + len(memoryview(frame.parameters)), give_back)
        command.frame = frame if command.kept is not None else None

    def connection_changed(self) -> None:
        """Note that all commands so far were sent on a former connection."""
        self._from_before = set(self._by_wire_id)

    @property
    def from_before(self) -> list[str]:
        """The ids of the commands that were sent on a former connection and are not answered."""
        return [wire_id for wire_id in self._by_wire_id if wire_id in self._from_before]

    def take_from_before(self, wire_id: str) -> bool:
        """Tell whether a command was sent on a former connection. From now on it counts as sent on this one."""
        if wire_id not in self._from_before:
            return False
        self._from_before.discard(wire_id)
        return True

    def moving(self, now: float) -> list[MovingCommand]:
        """Return the commands for the gateway that the session moves to. Commands under a key stay behind."""
        return [_moving(command, now) for command in self._by_wire_id.values() if not command.reservation]

    def take_over(self, moved: MovingCommand, now: float) -> InFlight:
        """Take a command that another gateway has sent to the client."""
        progress = moved.progress
        command = InFlight(
            moved.wire_id,
            moved.call(now),
            progress=None
            if progress is None
            else Progress(progress.subject, self._client_id, progress.request_id, progress.seq),
            heard=now if moved.probed else None,
        )
        self._add(command)
        if moved.frame is not None:
            self.keep(command, moved.frame)
        return command

    def clear(self) -> None:
        """Forget all commands without answering them, because another gateway does."""
        for command in self._by_wire_id.values():
            command.let_go()
        self._by_wire_id.clear()
        self._by_caller.clear()

    def _add(self, command: InFlight) -> None:
        self._by_wire_id[command.wire_id] = command
        self._by_caller[command.key] = command

    def _has_own_id(self, call: Call) -> bool:
        return (call.sub, call.own_id) in self._by_caller or any(
            (each.call.sub, each.call.asked.request_id) == (call.sub, call.own_id)
            for each in self._by_wire_id.values()
            if not each.reservation
        )


def _moving(command: InFlight, now: float) -> MovingCommand:
    call = command.call
    return MovingCommand(
        command.wire_id,
        call.request_id,
        call.sub,
        call.reply,
        call.duration_ms(now),
        call.left_ms(now),
        call.asked,
        None if command.progress is None else command.progress.moving(),
        command.heard is not None,
        command.frame,
        call.name,
    )
