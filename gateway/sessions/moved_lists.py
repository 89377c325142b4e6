"""Reads the capability lists of sessions that come from other gateways, in turns.

The client is not there to be told of a refusal, and has registered the list once already. So if the list is refused for
room or for time, the session goes on with an unread one, and the list is read later. Commands are `unavailable` until
then.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Generator
from functools import partial
from typing import NamedTuple

import msgspec

from gateway.capabilities.contracts import NO_CONTRACT, Contract, Contracts, UnreadContract
from gateway.sessions.core.session import SessionState
from gateway.sessions.core.snapshots import SessionSnapshot
from gateway.sessions.live import LiveSession
from protocol.errors import BridgeError, Overloaded
from protocol.runtime.connections.turns import Turns, take_turn
from protocol.shares import Holder, Piece, Shares

AGAIN_SECONDS = 1.0
MAX_UNREAD_BYTES = 16 * 1024 * 1024  # of lists that wait to be read

log = logging.getLogger(__name__)


class _UnreadList(NamedTuple):
    """A session whose list is not read yet, and the room of the list."""

    session: LiveSession
    contract: UnreadContract
    place: Piece

    @property
    def is_wanted(self) -> bool:
        """Whether the session still has this list: it has not ended, and its client has not registered another one."""
        core = self.session.core
        return self.place.held and core.contract is self.contract and core.state is not SessionState.ENDED


class MovedLists:
    """The lists that have come with sessions. One task reads those that had to wait, one after the other.

    `turn_away` ends a session whose list has no room to wait.
    """

    def __init__(
        self,
        contracts: Contracts,
        turns: Turns,
        tasks: asyncio.TaskGroup,
        turn_away: Callable[[LiveSession], None],
        again_seconds: float = AGAIN_SECONDS,
        max_unread_bytes: int = MAX_UNREAD_BYTES,
    ) -> None:
        self._contracts = contracts
        self._turns = turns
        self._tasks = tasks
        self._turn_away = turn_away
        self._again_seconds = again_seconds
        self._loop = asyncio.get_running_loop()
        self._shares = Shares(max_unread_bytes, "too many capability lists wait to be read; connect again")
        self._waiting: deque[_UnreadList] = deque()
        self._is_reading = False

    @property
    def waiting(self) -> int:
        """How many sessions wait for their lists to be read."""
        return len(self._waiting)

    async def read(self, snapshot: SessionSnapshot) -> Contract:
        """Return a session's contract, an unread one if the list is refused for now, none if it is refused for good."""
        try:
            return await self._read(snapshot.capabilities, (snapshot.tenant, snapshot.sub))
        except BridgeError as exc:
            # A share or a rate is used up just now. The client cannot send its list again, so we read it later.
            if exc.meaning.retryable:
                return UnreadContract(snapshot.capabilities)
            log.warning("the capabilities of client %s are not taken over: %s", snapshot.client_id, exc.message)
            return NO_CONTRACT

    def read_later(self, session: LiveSession) -> None:
        """Queue a session's unread list, which is tried once a second. If too many wait, end a session."""
        contract = session.core.contract
        if not isinstance(contract, UnreadContract):
            # It is read already, or the client has registered another list.
            return
        principal = session.core.principal
        try:
            size = len(memoryview(contract.capabilities.raw))
            place = self._shares.ask((principal.tenant, principal.sub), size, lambda _: self._turn_away(session))
        except Overloaded:
            self._turn_away(session)
            return
        self._waiting.append(_UnreadList(session, contract, place))
        if not self._is_reading:
            self._is_reading = True
            self._tasks.create_task(self._read_waiting(), name="read moved lists")

    async def _read_waiting(self) -> None:
        """Try all lists that wait, one after the other, once a second, until none waits."""
        try:
            while self._waiting:
                await asyncio.sleep(self._again_seconds)
                # Each list once a round: those that must wait longer go to the end.
                for _ in range(len(self._waiting)):
                    waiting = self._waiting.popleft()
                    if await self._is_done(waiting):
                        waiting.place.release()
                    else:
                        self._waiting.append(waiting)
        finally:
            self._is_reading = False

    async def _is_done(self, waiting: _UnreadList) -> bool:
        """Read a list if its session still has it; return whether it need not be tried again."""
        core = waiting.session.core
        if not waiting.is_wanted:
            return True
        try:
            contract = await self._read(waiting.contract.capabilities.raw, (core.principal.tenant, core.principal.sub))
        except BridgeError as exc:
            if exc.meaning.retryable:
                return False
            log.warning("the capabilities of client %s are not taken over: %s", core.client_id, exc.message)
            contract = NO_CONTRACT
        except Exception:
            log.exception("a moved list could not be read")
            contract = NO_CONTRACT
        # Check again: the client may have registered another list while this one was read.
        if waiting.is_wanted:
            core.contract = contract
        return True

    async def _read(self, raw: msgspec.Raw, owner: Holder) -> Contract:
        """Read a list, a step a turn. Raises as `Contracts.steps()` does."""
        items = msgspec.json.decode(raw, type=list[msgspec.Raw])
        steps = self._contracts.steps(items, owner, self._loop.time())
        while True:
            contract: Contract | None = await take_turn(self._turns, owner, partial(_step, steps))
            if contract is not None:
                return contract
            await asyncio.sleep(0)


def _step(steps: Generator[None, None, Contract]) -> Contract | None:
    """Take one step of reading. Return the contract after the last step, None before."""
    try:
        next(steps)
    except StopIteration as done:
        contract: Contract = done.value
        return contract
    return None
