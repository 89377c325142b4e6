"""Who waits for which command under an idempotency key. Sans-I/O.

    CLAIMING ──begin──▶ RUNNING ──end──▶ ENDED
        └──────────close or drop─────────▶ (forgotten)

A claim is one attempt to execute a command at most once; its waiters are the requests that asked for it, the first one
and its twins. They come and go without touching the command, until the last one cancels or has waited long enough.
"""

import asyncio
import enum

import msgspec

from protocol.access import ClientView, Principal
from protocol.audit import Asked
from protocol.errors import AGENT_LIMIT, Conflict, Overloaded
from protocol.idempotency import Entry
from protocol.messages import CommandResponse

MAX_CLAIMING = 1000
MAX_WAITING_PER_AGENT_AND_CLIENT = 256
MAX_WAITING_PER_AGENT = 8192
MAX_WAITING = 32_768  # some 50 MB; an agent may have a quarter

WaiterKey = tuple[str, str, str]  # client id, the caller's `sub`, its request id
_Crowd = tuple[str, ...]


class Stage(enum.Enum):
    """How far a claim has come: its entry is being made, its command is with the client, its outcome is known."""

    CLAIMING = "claiming"
    RUNNING = "running"
    ENDED = "ended"


class Waiter(msgspec.Struct, eq=False):
    """A request that waits. Times are monotonic, in seconds; `timer` is the shell's."""

    client: ClientView
    caller: Principal
    request_id: str
    reply: str
    started: float
    deadline: float
    asked: Asked
    progress_to: str | None = None
    timer: asyncio.TimerHandle | None = None

    @property
    def client_id(self) -> str:
        """Whose command it is."""
        return self.client.client_id

    @property
    def own_id(self) -> str:
        """The id by which the caller knows the request."""
        return self.asked.request_id or self.request_id

    @property
    def key(self) -> WaiterKey:
        """By what the request is probed and cancelled."""
        return (self.client_id, self.caller.sub, self.request_id)


class Claim(msgspec.Struct, eq=False):
    """One attempt: its entry, who waits, the entry's revision, and the response once it has ended."""

    key: str
    entry: Entry
    first: Waiter
    stage: Stage = Stage.CLAIMING
    waiters: list[Waiter] = []
    revision: int = 0
    response: CommandResponse | None = None

    @property
    def hangs_on_one(self) -> bool:
        """Whether the command is with the client for one request alone, so that it ends with that one's wait."""
        return self.stage is Stage.RUNNING and len(self.waiters) == 1

    @property
    def deadline(self) -> float:
        """Until when the last of those who wait now does so."""
        return max(waiter.deadline for waiter in self.waiters)

    def waiter(self, key: WaiterKey) -> Waiter | None:
        """Return the longest waiting request that goes by this key; a twin may have been sent under the same id."""
        return next((waiter for waiter in self.waiters if waiter.key == key), None)


class Claims:
    """The claims of this gateway, by the keys of their entries; `waiting` tells which one a request waits for."""

    def __init__(self) -> None:
        self._claims: dict[str, Claim] = {}
        self._running: dict[str, Claim] = {}
        self.waiting: dict[WaiterKey, Claim] = {}
        self._crowds: dict[_Crowd, int] = {}
        self._claiming = 0

    def __len__(self) -> int:
        return len(self._claims)

    def join(self, key: str, entry: Entry, waiter: Waiter) -> Claim:
        """Let a request wait for the command under this key; where there is no claim, its `entry` becomes one.

        Raises `Conflict` for another command under the key and for a request id that waits already, `Overloaded` where
        too many wait, `PermissionDenied` where the waiter may not be told the outcome.
        """
        claim = self._claims.get(key)
        self._require_room(waiter, claim)
        if claim is None:
            claim = self._open(key, entry, waiter)
        else:
            claim.entry.require_same(entry.body, entry.client_id)
            claim.entry.require_visible(waiter.caller)
        claim.waiters.append(waiter)
        self.waiting[waiter.key] = claim
        for crowd in _crowds(waiter):
            self._crowds[crowd] = self._crowds.get(crowd, 0) + 1
        return claim

    def leave(self, waiter: Waiter) -> None:
        """Let a request wait no more."""
        claim = self.waiting[waiter.key]
        claim.waiters.remove(waiter)
        if claim.waiter(waiter.key) is None:
            del self.waiting[waiter.key]
        for crowd in _crowds(waiter):
            self._crowds[crowd] -= 1
            if not self._crowds[crowd]:
                del self._crowds[crowd]

    def begin(self, claim: Claim, lead: Waiter) -> None:
        """Note that the command is with the client, in the name of a request that still waits."""
        assert claim.stage is Stage.CLAIMING
        claim.first = lead
        claim.stage = Stage.RUNNING
        self._claiming -= 1
        self._running[claim.entry.claim] = claim

    def end(self, nonce: str, response: CommandResponse) -> Claim:
        """Note a command's outcome and return its claim."""
        claim = self._running.pop(nonce)
        claim.stage, claim.response = Stage.ENDED, response
        return claim

    def close(self, claim: Claim) -> None:
        """Let nobody join a claim any more; who asks for its key from now on opens another one."""
        if self._claims.get(claim.key) is not claim:
            return
        del self._claims[claim.key]
        if claim.stage is Stage.CLAIMING:
            self._claiming -= 1

    def drop(self, claim: Claim) -> list[Waiter]:
        """Forget a claim; return who still waited for it."""
        self.close(claim)
        return self.dismiss(claim)

    def dismiss(self, claim: Claim) -> list[Waiter]:
        """Let everybody who waits for a claim leave, and return them."""
        waiters = list(claim.waiters)
        for waiter in waiters:
            self.leave(waiter)
        return waiters

    def _open(self, key: str, entry: Entry, waiter: Waiter) -> Claim:
        if self._claiming >= MAX_CLAIMING:
            raise Overloaded("too many idempotency keys are being looked up; try again in a moment")
        self._claiming += 1
        claim = self._claims[key] = Claim(key, entry, waiter)
        return claim

    def _require_room(self, waiter: Waiter, claim: Claim | None) -> None:
        if waiter.key in self.waiting and self.waiting[waiter.key] is not claim:
            raise Conflict("a command with this requestId is already in flight; use another id")
        at_client, of_agent, all_of_them = (self._crowds.get(crowd, 0) for crowd in _crowds(waiter))
        if at_client >= MAX_WAITING_PER_AGENT_AND_CLIENT or of_agent >= MAX_WAITING_PER_AGENT:
            told = "too many of this agent's requests with idempotency keys wait; try again in a moment"
            raise Overloaded(told, details={"limit": AGENT_LIMIT})
        if all_of_them >= MAX_WAITING:
            raise Overloaded("too many requests with idempotency keys wait at this gateway; try again in a moment")


def _crowds(waiter: Waiter) -> tuple[_Crowd, _Crowd, _Crowd]:
    """Return who is counted together: an agent's requests for this client, all that it has, all of this gateway."""
    agent = (waiter.client.tenant, waiter.caller.sub)
    return (*agent, waiter.client_id), agent, ()
