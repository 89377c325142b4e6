"""Audit records that their stream has not acknowledged: under way to it, or waiting to be sent again. Sans-I/O.

What a record takes is counted in bytes, a share for each tenant and each `sub` (`protocol.shares`). A record without
room is refused, and none is ever pushed out by another. A sixteenth of the room is anybody's: usually no more is
needed, and the books of shares would cost each command a microsecond.

A tenant whose stream has refused a record is *refusing* until the stream takes one: meanwhile only the oldest of its
records is tried again.
"""

from collections import OrderedDict
from collections.abc import Iterator

from protocol.shares import Holder, Piece, Shares

SILENCE_SECONDS = 5.0  # a frozen server is noticed earlier, so this is a stream that takes nothing
OVERHEAD_BYTES = 512  # of a record here, beside its frame


class UnstoredRecord:
    """A record as it travels, and for how many outcomes it stands. `number` is its place in the order of all."""

    __slots__ = ("frame", "holder", "key", "number", "outcomes", "piece", "sent_at", "size")

    def __init__(self, number: int, key: str, holder: Holder, outcomes: int) -> None:
        self.number = number
        self.key = key
        self.holder = holder
        self.outcomes = outcomes
        self.frame = b""
        self.size = 0
        self.piece: Piece | None = None  # of its holder's share, if it takes any of it
        self.sent_at = 0.0


class UnstoredRecords:
    """The records of a process. `now` is a monotonic time in seconds."""

    def __init__(self, max_bytes: int) -> None:
        self.outcomes = 0
        self._anybodys = max_bytes // 16
        self._shares = Shares(max_bytes - self._anybodys, "too many audit records wait to be stored")
        self._pieces: dict[Holder, Piece] = {}
        # Not plain dicts: looking for their first entry passes all the places of removed ones.
        self._under_way: OrderedDict[str, UnstoredRecord] = OrderedDict()
        self._queues: dict[str, OrderedDict[str, UnstoredRecord]] = {}
        self._waiting: dict[str, UnstoredRecord] = {}
        self._refusing: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._under_way or self._waiting)

    def add(self, record: UnstoredRecord, frame: bytes) -> None:
        """Keep a record, which waits until `sent()`. Raises `Overloaded` if its tenant or its `sub` has its share."""
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
        """Note that a record could not be written; it is the newest that waits."""
        self._queue(record)[record.key] = record
        self._waiting[record.key] = record

    def wait_first(self, record: UnstoredRecord) -> None:
        """Note that a record could not be written after all; it is the oldest that waits."""
        self.wait(record)
        self._queue(record).move_to_end(record.key, last=False)

    def stored(self, key: str) -> UnstoredRecord | None:
        """Note that the stream has a record, wherever it is now; return it, None if that was known."""
        record = self._take(key)
        if record is not None:
            self.drop(record)
            self._refusing.discard(record.holder[0])
        return record

    def refused(self, key: str) -> UnstoredRecord | None:
        """Note that the stream does not have a record, which waits again; return it, None if it is not under way."""
        record = self._under_way.pop(key, None)
        if record is not None:
            self._refusing.add(record.holder[0])
            self.wait_first(record)
        return record

    def lost(self, key: str) -> UnstoredRecord | None:
        """Forget a record that cannot be stored; return it, None if it is not known."""
        record = self._take(key)
        if record is not None:
            self.drop(record)
        return record

    def drop(self, record: UnstoredRecord) -> None:
        """Forget a record that was taken out."""
        if record.piece is None:
            self._anybodys += record.size
        else:
            record.piece.shrink(record.size)
        self.outcomes -= record.outcomes

    def disconnected(self) -> None:
        """Note that what is under way may be lost: all waits again, in its old order, and no stream is refusing."""
        under_way, self._under_way = self._under_way, OrderedDict()
        for record in sorted(under_way.values(), key=_number, reverse=True):
            self.wait_first(record)
        self._refusing.clear()

    def try_again(self, tenant: str) -> None:
        """Have all of a tenant's records wait, and none refused: its stream was not there before."""
        for record in [record for record in self._under_way.values() if record.holder[0] == tenant]:
            self.refused(record.key)
        self._refusing.discard(tenant)

    def silent(self, now: float) -> set[str]:
        """Return the tenants whose stream has said nothing of a record for five seconds; those records wait again."""
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
        """Tell whether records wait that nothing but the connection keeps from being sent."""
        return any(tenant not in self._refusing for tenant in self._queues)

    def due(self) -> Iterator[UnstoredRecord]:
        """Yield the oldest waiting record of each tenant that is not refusing, tenants in turn; each is taken out."""
        while self.is_due():
            for tenant in [name for name in self._queues if name not in self._refusing]:
                yield self._next_of(tenant)

    def trials(self) -> Iterator[UnstoredRecord]:
        """Yield the oldest waiting record of each refusing tenant, to see whether its stream takes it; taken out."""
        for tenant in self._refusing & self._queues.keys():
            yield self._next_of(tenant)

    def tidy(self) -> None:
        """Forget the holders that hold nothing. They count as holders until then: a second is soon enough."""
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
        """Take a record out, wherever it is: its stream may answer late, when it waits again already."""
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
