"""Orders under an idempotency key: answered from what is remembered, joined where they are under way, else sent.

The gateway is what executes a command once; this looks first, so that an outcome is told when the client or its gateway
is gone, and an order that names no client means the one that was chosen for its key before. Whoever loses the gateway
while it waits looks again, so that all are told what is remembered.
"""

import asyncio
import hashlib
from functools import partial

from msgspec.structs import replace

from agent_api.commands.bodies import Order
from agent_api.commands.gathering import Gathered
from agent_api.commands.reaching import SKIPPED, Reaching
from agent_api.commands.tries import Tries
from protocol.errors import BridgeError, ClientLost, ClientNotFound, Code, Conflict, DeadlineExceeded, Unavailable
from protocol.idempotency import Entry, content_of, entry_key
from protocol.messages import CommandRequest, CommandResponse
from protocol.runtime.entries import Entries, Stored
from protocol.subjects import ClientAddress

FIRST_PAUSE_SECONDS = 0.02
POLL_SECONDS = 0.25


class Keyed:
    """Sends orders that have a key."""

    def __init__(self, entries: Entries, reaching: Reaching) -> None:
        self._entries = entries
        self._reaching = reaching
        self._loop = asyncio.get_running_loop()

    async def send(self, order: Order, tries: Tries) -> CommandResponse | Gathered:
        """Return the one answer to the command under the order's key.

        Where it asks several clients, each has its own answer under the key. Raises what `Reaching.send()` does,
        `Conflict` where the key was used for another command, `Unavailable` where what is remembered cannot be read:
        then nothing was sent.
        """
        with tries.recorded(order.command, order.client_id):
            if order.scatter is not None:
                return await self._reaching.send(order, tries.principal, partial(self._send_to_one, tries))
            return await self._send_once(order, tries)

    async def _send_to_one(self, tries: Tries, address: ClientAddress, command: CommandRequest) -> CommandResponse:
        """Send to one of several clients; the key is made its own, for a key names one execution."""
        assert command.idempotency_key is not None
        key = f"{address.client_id}:{command.idempotency_key}".encode()
        command = replace(command, idempotency_key=hashlib.sha256(key).hexdigest())
        with tries.recorded(command, address.client_id):
            return await self._send_once(Order(address.client_id, command), tries)

    async def _send_once(self, order: Order, tries: Tries) -> CommandResponse:
        """Send, or answer from what is there; again where that was undecided.

        Raises `DeadlineExceeded` where twins came and went until the time was up.
        """
        key, deadline, pause = _key(order, tries), self._deadline(order), FIRST_PAUSE_SECONDS
        stored = await self._entries.read(key)
        outcome = await self._attempt(order, tries, deadline, stored)
        while order.client_id is None and _is_undecided(outcome, stored):
            await asyncio.sleep(min(pause, deadline - self._loop.time()))
            stored = await self._entries.read(key)
            if stored.entry is not None and stored.entry.body != content_of(order.command):
                break
            order, pause = self._with_time_left(order, deadline), min(2 * pause, POLL_SECONDS)
            outcome = await self._attempt(order, tries, deadline, stored)
        return outcome

    async def _attempt(self, order: Order, tries: Tries, deadline: float, stored: Stored) -> CommandResponse:
        if stored.entry is not None:
            return await self._again(order, tries, stored.entry, deadline)
        ask = partial(self._ask, order, tries, deadline, is_first=True)
        outcome = await self._reaching.send(order, tries.principal, partial(tries.send, ask=ask))
        assert isinstance(outcome, CommandResponse)
        return outcome

    async def _again(self, order: Order, tries: Tries, entry: Entry, deadline: float) -> CommandResponse:
        """Answer an order whose key was used."""
        entry.require_same(content_of(order.command), order.client_id)
        entry.require_visible(tries.principal)
        with tries.recorded(order.command, entry.client_id):
            if entry.ended:
                return tries.remembered(entry.answer(order.request_id), order.command)
            try:
                address = ClientAddress(tries.principal.tenant, entry.client_id)
                return await self._ask(order, tries, deadline, address, order.command, is_first=False)
            except (ClientNotFound, Unavailable) as exc:
                return await self._unreached(order, tries, deadline, exc, entry.client_id)

    async def _ask(
        self,
        order: Order,
        tries: Tries,
        deadline: float,
        address: ClientAddress,
        command: CommandRequest,
        *,
        is_first: bool,
    ) -> CommandResponse:
        """Send to a client; where it is lost meanwhile, what is remembered of the command is the answer.

        Raises what `ask` does; `ClientLost` only where nothing is remembered, or that cannot be found out.
        """
        started = self._loop.time()
        try:
            return await tries.ask(address, command)
        except ClientLost as lost:
            ended = await self._kept(order, tries, deadline, lost)
            assert command.request_id is not None
            response = ended.answer(command.request_id)
            if is_first and (ended.request_id, ended.client_id) == (command.request_id, address.client_id):
                response = replace(response, replayed=False)
            return tries.remembered(response, command, self._loop.time() - started)

    async def _kept(self, order: Order, tries: Tries, deadline: float, lost: ClientLost) -> Entry:
        """Return the ended entry of a command that was lost; raise `lost` where there is none of it.

        Where the order names no client, a twin may have got it executed at another one: that is its outcome, too.
        """
        try:
            ended = await self._end(_key(order, tries), deadline)
            if ended is None:
                raise lost
            ended.require_same(content_of(order.command), order.client_id)
        except (Unavailable, Conflict):  # of which the first would say that nothing was executed
            raise lost from None
        ended.require_visible(tries.principal)
        return ended

    async def _unreached(
        self, order: Order, tries: Tries, deadline: float, error: BridgeError, client_id: str
    ) -> CommandResponse:
        """Wait for the outcome of a command whose client cannot be reached; where its gateway is gone, that is it.

        It is `error` where the key is free again, so that nothing was executed. Raises `DeadlineExceeded` at the end.
        """
        ended = await self._end(_key(order, tries), deadline)
        if ended is None:
            return tries.refused(error, order.command, client_id)
        return tries.remembered(ended.answer(order.request_id), order.command)

    async def _end(self, key: str, deadline: float) -> Entry | None:
        """Wait until what lies under a key has ended, and end it where its gateway is gone; None where it is free.

        Raises `DeadlineExceeded` where it goes on.
        """
        while True:
            stored = await self._entries.read(key)
            entry = stored.entry
            if entry is not None and not entry.ended and await self._entries.is_gone(entry.gateway_id):
                entry = (await self._entries.lose(key, stored)).entry
            if entry is None or entry.ended:
                return entry
            if self._loop.time() >= deadline:
                raise DeadlineExceeded("the command under this key had no outcome in time; it may still run")
            await asyncio.sleep(POLL_SECONDS)

    def _deadline(self, order: Order) -> float:
        assert order.command.timeout_ms is not None
        return self._loop.time() + order.command.timeout_ms / 1000

    def _with_time_left(self, order: Order, deadline: float) -> Order:
        remaining_ms = round((deadline - self._loop.time()) * 1000)
        if remaining_ms <= 0:
            raise DeadlineExceeded("twins of the command were in its way until its time was up; it was not executed")
        return replace(order, command=replace(order.command, timeout_ms=remaining_ms))


def _key(order: Order, tries: Tries) -> str:
    assert order.command.idempotency_key is not None
    return entry_key(tries.principal, order.command.idempotency_key)


def _is_undecided(outcome: CommandResponse, stored: Stored) -> bool:
    """Tell whether another try may do better for an order that names no client, which was sent in view of `stored`.

    A gateway refuses it before the entry of a twin that means another client can be read, and that twin may free the
    key yet. So may the one that it followed to a client which refused them both.
    """
    if outcome.error is None:
        return False
    return outcome.error.code == Code.CONFLICT.value or (stored.entry is not None and outcome.error.code in SKIPPED)
