"""The requests that wait for the command of an idempotency key. Sans-I/O.

    RESERVING ──begin──▶ RUNNING ──end──▶ ENDED
        └──────────close or drop─────────▶ (forgotten)

A reservation is one attempt to execute a command at most once. Its waiters are the requests with its key: the first one
and its twins. A waiter may come or go without effect on the command. If the last one cancels or reaches its deadline,
the command is cancelled.
"""

import asyncio
import enum

import msgspec

from gateway.sessions.core.calls import Call
from protocol.access import ClientView, Principal
from protocol.errors import AGENT_LIMIT, Conflict, Overloaded
from protocol.idempotency import IdempotencyEntry
from protocol.messages import CommandResponse

MAX_RESERVING = 1000
MAX_WAITING_PER_AGENT_AND_CLIENT = 256
MAX_WAITING_PER_AGENT = 8192
MAX_WAITING = 32_768  # some 50 MB; an agent may have a quarter

WaiterKey = tuple[str, str, str]  # client id, the caller's `sub`, its request id
_Share = tuple[str, ...]


class ReservationStage(enum.Enum):
    """The stage of a reservation: its entry is being made, its command is with the client, or its outcome is known."""

    RESERVING = "reserving"
    RUNNING = "running"
    ENDED = "ended"


class Waiter(msgspec.Struct, eq=False):
    """A request that waits for the command of its key. Only the caller of this module uses `timer`."""

    client: ClientView
    caller: Principal
    call: Call
    timer: asyncio.TimerHandle | None = None

    @property
    def client_id(self) -> str:
        """The client of the command."""
        return self.client.client_id

    @property
    def key(self) -> WaiterKey:
        """The key by which the request is probed and cancelled."""
        return (self.client_id, self.caller.sub, self.call.request_id)


class Reservation(msgspec.Struct, eq=False):
    """One attempt: its entry, its waiters, the entry's revision, and the response once it has ended."""

    key: str
    entry: IdempotencyEntry
    first: Waiter
    stage: ReservationStage = ReservationStage.RESERVING
    waiters: list[Waiter] = []
    revision: int = 0
    response: CommandResponse | None = None

    @property
    def hangs_on_one(self) -> bool:
        """Whether the command is with the client and has only one waiter, so that it ends with that wait."""
        return self.stage is ReservationStage.RUNNING and len(self.waiters) == 1

    @property
    def deadline(self) -> float:
        """The latest deadline among the waiters."""
        return max(waiter.call.deadline for waiter in self.waiters)

    def waiter(self, key: WaiterKey) -> Waiter | None:
        """Return the longest waiting request with this key. Twins may have the same id."""
        return next((waiter for waiter in self.waiters if waiter.key == key), None)


class Reservations:
    """The reservations of this gateway, by the keys of their entries. `waiting` maps a request to its reservation."""

    def __init__(self) -> None:
        self._reservations: dict[str, Reservation] = {}
        self._running: dict[str, Reservation] = {}
        self.waiting: dict[WaiterKey, Reservation] = {}
        self._by_share: dict[_Share, int] = {}
        self._reserving = 0

    def __len__(self) -> int:
        return len(self._reservations)

    def join(self, key: str, entry: IdempotencyEntry, waiter: Waiter) -> Reservation:
        """Let a request wait for the command of this key. If there is no reservation, make one from its `entry`.

        Raises `Conflict` for another command with the key and for a request id that waits already, `Overloaded` if too
        many wait, and `PermissionDenied` if the waiter may not read the outcome.
        """
        reservation = self._reservations.get(key)
        self._require_room(waiter, reservation)
        if reservation is None:
            reservation = self._open(key, entry, waiter)
        else:
            reservation.entry.require_same(entry.body, entry.client_id)
            reservation.entry.require_visible(waiter.caller)
        reservation.waiters.append(waiter)
        self.waiting[waiter.key] = reservation
        for share in _shares_of(waiter):
            self._by_share[share] = self._by_share.get(share, 0) + 1
        return reservation

    def leave(self, waiter: Waiter) -> None:
        """Remove a waiting request."""
        reservation = self.waiting[waiter.key]
        reservation.waiters.remove(waiter)
        if reservation.waiter(waiter.key) is None:
            del self.waiting[waiter.key]
        for share in _shares_of(waiter):
            self._by_share[share] -= 1
            if not self._by_share[share]:
                del self._by_share[share]

    def begin(self, reservation: Reservation, lead: Waiter) -> None:
        """Note that the command is with the client, sent for a request that still waits."""
        assert reservation.stage is ReservationStage.RESERVING
        reservation.first = lead
        reservation.stage = ReservationStage.RUNNING
        self._reserving -= 1
        self._running[reservation.entry.reservation] = reservation

    def end(self, nonce: str, response: CommandResponse) -> Reservation:
        """Note a command's outcome and return its reservation."""
        reservation = self._running.pop(nonce)
        reservation.stage, reservation.response = ReservationStage.ENDED, response
        return reservation

    def close(self, reservation: Reservation) -> None:
        """Close a reservation to new waiters. The next request for its key makes another one."""
        if self._reservations.get(reservation.key) is not reservation:
            return
        del self._reservations[reservation.key]
        if reservation.stage is ReservationStage.RESERVING:
            self._reserving -= 1

    def drop(self, reservation: Reservation) -> list[Waiter]:
        """Forget a reservation. Return its remaining waiters."""
        self.close(reservation)
        return self.dismiss(reservation)

    def dismiss(self, reservation: Reservation) -> list[Waiter]:
        """Remove and return the waiters of a reservation."""
        waiters = list(reservation.waiters)
        for waiter in waiters:
            self.leave(waiter)
        return waiters

    def _open(self, key: str, entry: IdempotencyEntry, waiter: Waiter) -> Reservation:
        if self._reserving >= MAX_RESERVING:
            raise Overloaded("too many idempotency keys are being looked up; try again in a moment")
        self._reserving += 1
        reservation = self._reservations[key] = Reservation(key, entry, waiter)
        return reservation

    def _require_room(self, waiter: Waiter, reservation: Reservation | None) -> None:
        if waiter.key in self.waiting and self.waiting[waiter.key] is not reservation:
            raise Conflict("a command with this requestId is already in flight; use another id")
        at_client, of_agent, all_of_them = (self._by_share.get(share, 0) for share in _shares_of(waiter))
        if at_client >= MAX_WAITING_PER_AGENT_AND_CLIENT or of_agent >= MAX_WAITING_PER_AGENT:
            told = "too many of this agent's requests with idempotency keys wait; try again in a moment"
            raise Overloaded(told, details={"limit": AGENT_LIMIT})
        if all_of_them >= MAX_WAITING:
            raise Overloaded("too many requests with idempotency keys wait at this gateway; try again in a moment")


def _shares_of(waiter: Waiter) -> tuple[_Share, _Share, _Share]:
    """Return a request's counters: the agent's for this client, all of the agent's, all of this gateway's."""
    agent = (waiter.client.tenant, waiter.caller.sub)
    return (*agent, waiter.client_id), agent, ()
