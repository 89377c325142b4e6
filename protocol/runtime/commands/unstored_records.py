"""Audit records without an acknowledgement of their stream: sent, or waiting to be sent again. Sans-I/O.

Memory is bounded in bytes, with a share for each tenant and each `sub` (`protocol.shares`). A record without room is
refused, and never pushes out another one. The first sixteenth of the memory is shared by all without accounting,
because that is usually enough, and the shares cost a microsecond for each command.

A tenant is *refusing* from the moment its stream refuses a record until the stream takes one. Meanwhile only its oldest
record is tried again.
"""

from collections import OrderedDict
from collections.abc import Iterator

from protocol.shares import Holder, Piece, Shares

SILENCE_SECONDS = 5.0  # then the stream is at fault, because a frozen server is noticed in three seconds
OVERHEAD_BYTES = 512  # memory of a record besides its frame


class UnstoredRecord:
    """A framed record and the number of outcomes in it. `number` gives the order of all records."""

    __slots__ = ("frame", "holder", "key", "number", "outcomes", "piece", "sent_at", "size")

    def __init__(self, number: int, key: str, holder: Holder, outcomes: int) -> None:
        self.number = number
        self.key = key
        self.holder = holder
        self.outcomes = outcomes
        self.frame = b""
        self.size = 0
        self.piece: Piece | None = None  # of its holder's share; None if it is in the common sixteenth
        self.sent_at = 0.0


class UnstoredRecords:
    """The records of a process. `now` is a monotonic time in seconds."""

    def __init__(self, max_bytes: int) -> None:
        self.outcomes = 0
        self._anybodys = max_bytes // 16
        self._shares = Shares(max_bytes - self._anybodys, "too many audit records wait to be stored")
        self._pieces: dict[Holder, Piece] = {}
        # Not plain dicts, because finding a dict's first entry walks over all removed ones.
        self._under_way: OrderedDict[str, UnstoredRecord] = OrderedDict()
        self._queues: dict[str, OrderedDict[str, UnstoredRecord]] = {}
        self._waiting: dict[str, UnstoredRecord] = {}
        self._refusing: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._under_way or self._waiting)

    def add(self, record: UnstoredRecord, frame: bytes) -> None:
        """Keep a record until `sent()`. Raises `Overloaded` if its tenant or its `sub` has used up its share."""
        size = len(frame) + OVERHEAD_BYTES
        if self._anybodys >= size:
            self._anybodys -= size
        else:
            record.piece = self._grown_piece(record.holder, size)
        record.frame, record.size = frame, size
        self.outcomes += record.outcomes

    def sent(self, record: UnstoredRecord, now: float) -> None:
        """Note that a record has been written to the connection."""
        record.sent_at = now
        self._under_way[record.key] = record

    def wait(self, record: UnstoredRecord) -> None:
        """Note that a record could not be written, and put it behind its tenant's waiting records."""
        self._queue(record)[record.key] = record
        self._waiting[record.key] = record

    def wait_first(self, record: UnstoredRecord) -> None:
        """Put a record before its tenant's waiting records, because it is older than they are."""
        self.wait(record)
        self._queue(record).move_to_end(record.key, last=False)

    def stored(self, key: str) -> UnstoredRecord | None:
        """Note that the stream has stored a record. Return the record, or None if that was known already."""
        record = self._take(key)
        if record is not None:
            self.drop(record)
            self._refusing.discard(record.holder[0])
        return record

    def refused(self, key: str) -> UnstoredRecord | None:
        """Note that the stream has refused a record, which waits again. Return it, or None if it was not under way."""
        record = self._under_way.pop(key, None)
        if record is not None:
            self._refusing.add(record.holder[0])
            self.wait_first(record)
        return record

    def lost(self, key: str) -> UnstoredRecord | None:
        """Forget a record that can never be stored. Return it, or None if it is unknown."""
        record = self._take(key)
        if record is not None:
            self.drop(record)
        return record

    def drop(self, record: UnstoredRecord) -> None:
        """Give back the memory of a record that was taken out."""
        if record.piece is None:
            self._anybodys += record.size
        else:
            record.piece.shrink(record.size)
        self.outcomes -= record.outcomes

    def disconnected(self) -> None:
        """Let all records that are under way wait again, in their old order, because they may be lost."""
        under_way, self._under_way = self._under_way, OrderedDict()
        for record in sorted(under_way.values(), key=_number, reverse=True):
            self.wait_first(record)
        self._refusing.clear()

    def try_again(self, tenant: str) -> None:
        """Let all of a tenant's records wait again, because its stream has only just been made."""
        for record in [record for record in self._under_way.values() if record.holder[0] == tenant]:
            self.refused(record.key)
        self._refusing.discard(tenant)

    def silent(self, now: float) -> set[str]:
        """Return the tenants with a record that is unanswered for five seconds. Those records wait again."""
        tenants: set[str] = set()
        while self._under_way:
            record = next(iter(self._under_way.values()))
            if now < record.sent_at + SILENCE_SECONDS:
                break
            self.refused(record.key)
            tenants.add(record.holder[0])
        return tenants

    @property
    def waits(self) -> bool:
        """Whether records wait to be sent."""
        return bool(self._waiting)

    def is_due(self) -> bool:
        """Tell whether a tenant that is not refusing has waiting records."""
        return any(tenant not in self._refusing for tenant in self._queues)

    def due(self) -> Iterator[UnstoredRecord]:
        """Take out and yield waiting records, oldest first, tenants in turn. Refusing tenants are left out."""
        while self.is_due():
            for tenant in [name for name in self._queues if name not in self._refusing]:
                yield self._next_of(tenant)

    def trials(self) -> Iterator[UnstoredRecord]:
        """Take out and yield the oldest waiting record of each refusing tenant, to try its stream again."""
        for tenant in self._refusing & self._queues.keys():
            yield self._next_of(tenant)

    def tidy(self) -> None:
        """Release the shares of holders without records. Until then they make the others' shares smaller."""
        for holder in [holder for holder, piece in self._pieces.items() if not piece.size]:
            self._pieces.pop(holder).release()

    def _grown_piece(self, holder: Holder, size: int) -> Piece:
        piece = self._pieces.get(holder)
        if piece is None:
            piece = self._pieces[holder] = self._shares.ask(holder, size)
        else:
            piece.grow(size)
        return piece

    # --- the queues ---

    def _queue(self, record: UnstoredRecord) -> OrderedDict[str, UnstoredRecord]:
        tenant = record.holder[0]
        queue = self._queues.get(tenant)
        if queue is None:
            queue = self._queues[tenant] = OrderedDict()
        return queue

    def _take(self, key: str) -> UnstoredRecord | None:
        """Take a record out. It may be waiting again already, because streams can answer late."""
        record = self._under_way.pop(key, None)
        if record is None and key in self._waiting:
            record = self._waiting[key]
            self._take_waiting(record)
        return record

    def _next_of(self, tenant: str) -> UnstoredRecord:
        record = next(iter(self._queues[tenant].values()))
        self._take_waiting(record)
        return record

    def _take_waiting(self, record: UnstoredRecord) -> None:
        del self._waiting[record.key]
        queue = self._queue(record)
        del queue[record.key]
        if not queue:
            del self._queues[record.holder[0]]


def _number(record: UnstoredRecord) -> int:
    return record.number
