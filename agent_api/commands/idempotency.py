"""Orders with an idempotency key: answered from the stored entry, joined to the one in flight, or sent.

The gateway makes sure that a command is executed at most once. This module reads the entry first, for two reasons: an
outcome can be replayed after the client or its gateway is gone, and an order that names no client keeps the client
chosen for its key before. A caller that loses the gateway while it waits reads the entry again, so that all callers
hear the stored outcome.
"""

import asyncio
import hashlib
from functools import partial

from msgspec.structs import replace

from agent_api.commands.attempts import Attempts
from agent_api.commands.gather import Gathered
from agent_api.commands.orders import Order
from agent_api.commands.targets import SKIPPED, Targets
from protocol.discovery import Query
from protocol.errors import BridgeError, ClientLost, ClientNotFound, Code, Conflict, DeadlineExceeded, Unavailable
from protocol.idempotency import IdempotencyEntry, content_of, entry_key
from protocol.messages import CommandRequest, CommandResponse
from protocol.runtime.commands.idempotency_store import IdempotencyStore, StoredEntry
from protocol.subjects import ClientAddress

FIRST_PAUSE_SECONDS = 0.02
POLL_SECONDS = 0.25


class KeyedOrders:
    """Sends orders that have a key."""

    def __init__(self, store: IdempotencyStore, targets: Targets) -> None:
        self._store = store
        self._targets = targets
        self._loop = asyncio.get_running_loop()

    async def send(self, order: Order, attempts: Attempts) -> CommandResponse | Gathered:
        """Return the one answer to the command under the order's key.

        If it asks several clients, each has its own answer under the key. Raises as `Targets.send()` does, `Conflict`
        if the key was used for another command, and `Unavailable` if the entry cannot be read: then nothing was sent.
        """
        with attempts.recorded(order.command, order.client_id):
            if order.scatter is not None:
                return await self._targets.send(order, attempts.principal, partial(self._send_to_one, attempts))
            return await self._send_once(order, attempts)

    async def _send_to_one(
        self, attempts: Attempts, address: ClientAddress, command: CommandRequest
    ) -> CommandResponse:
        """Send to one of several clients under a key derived for it, because a key stands for one execution."""
        assert command.idempotency_key is not None
        key = f"{address.client_id}:{command.idempotency_key}".encode()
        command = replace(command, idempotency_key=hashlib.sha256(key).hexdigest())
        with attempts.recorded(command, address.client_id):
            return await self._send_once(Order(address.client_id, command), attempts)

    async def _send_once(self, order: Order, attempts: Attempts) -> CommandResponse:
        """Send, or answer from the entry. Repeat while a request with the same key makes the result undecided.

        Raises `DeadlineExceeded` if it is still undecided at the deadline.
        """
        key, deadline, pause = _key(order, attempts), self._deadline(order), FIRST_PAUSE_SECONDS
        stored = await self._store.read(key)
        outcome = await self._attempt(order, attempts, deadline, stored)
        # An order with a client is decided by that client's gateway. Without one, a twin may go to another client.
        while order.client_id is None and _is_undecided(outcome, stored):
            await asyncio.sleep(min(pause, deadline - self._loop.time()))
            stored = await self._store.read(key)
            if stored.entry is not None and stored.entry.body != content_of(order.command):
                # The key belongs to another command by now, so the last outcome stands.
                break
            order, pause = self._with_time_left(order, deadline), min(2 * pause, POLL_SECONDS)
            outcome = await self._attempt(order, attempts, deadline, stored)
        return outcome

    async def _attempt(self, order: Order, attempts: Attempts, deadline: float, stored: StoredEntry) -> CommandResponse:
        if stored.entry is not None:
            return await self._again(order, attempts, stored.entry, deadline)
        ask = partial(self._ask, order, attempts, deadline, is_first=True)
        outcome = await self._targets.send(order, attempts.principal, partial(attempts.send, ask=ask))
        assert isinstance(outcome, CommandResponse)
        return outcome

    async def _again(
        self, order: Order, attempts: Attempts, entry: IdempotencyEntry, deadline: float
    ) -> CommandResponse:
        """Answer an order with a used key."""
        _require_same(order, entry)
        entry.require_visible(attempts.principal)
        with attempts.recorded(order.command, entry.client_id):
            if entry.ended:
                return attempts.remembered(entry.answer(order.request_id), order.command)
            try:
                address = ClientAddress(attempts.principal.tenant, entry.client_id)
                return await self._ask(order, attempts, deadline, address, order.command, is_first=False)
            except (ClientNotFound, Unavailable) as exc:
                # The client is gone, but its gateway may have written the outcome before.
                return await self._unreached(order, attempts, deadline, exc, entry.client_id)

    async def _ask(
        self,
        order: Order,
        attempts: Attempts,
        deadline: float,
        address: ClientAddress,
        command: CommandRequest,
        *,
        is_first: bool,
    ) -> CommandResponse:
        """Send to a client. If it is lost meanwhile, the stored entry is the answer.

        Raises as `ask` does; `ClientLost` only if there is no entry, or it cannot be read.
        """
        started = self._loop.time()
        try:
            return await attempts.ask(address, command)
        except ClientLost as lost:
            ended = await self._kept(order, attempts, deadline, lost)
            assert command.request_id is not None
            response = ended.answer(command.request_id)
            # If the entry is from this very request, it is no replay: only the reply was lost.
            if is_first and (ended.request_id, ended.client_id) == (command.request_id, address.client_id):
                response = replace(response, replayed=False)
            return attempts.remembered(response, command, self._loop.time() - started)

    async def _kept(self, order: Order, attempts: Attempts, deadline: float, lost: ClientLost) -> IdempotencyEntry:
        """Return the ended entry of a lost command. Raises `lost` if there is none.

        If the order names no client, a twin (a request with the same key) may have been executed at another client. Its
        outcome is the answer, too.
        """
        try:
            ended = await self._end(_key(order, attempts), deadline)
            if ended is None:
                raise lost
            _require_same(order, ended)
        except (Unavailable, Conflict):
            # `Unavailable` means "certainly not executed", which is not known here.
            raise lost from None
        ended.require_visible(attempts.principal)
        return ended

    async def _unreached(
        self, order: Order, attempts: Attempts, deadline: float, error: BridgeError, client_id: str
    ) -> CommandResponse:
        """Wait for the outcome of a command with an unreachable client: `client_lost` if its gateway is gone.

        Returns `error` if the key is free again, because then nothing was executed. Raises `DeadlineExceeded` at the
        deadline.
        """
        ended = await self._end(_key(order, attempts), deadline)
        if ended is None:
            return attempts.refused(error, order.command, client_id)
        return attempts.remembered(ended.answer(order.request_id), order.command)

    async def _end(self, key: str, deadline: float) -> IdempotencyEntry | None:
        """Wait for the end of a key's entry, and write `client_lost` if its gateway is gone. None: the key is free.

        Raises `DeadlineExceeded` if the entry is still in flight then.
        """
        while True:
            stored = await self._store.read(key)
            entry = stored.entry
            # Nobody else ends the entry of a gateway that is gone, so whoever waits for it writes `client_lost`.
            if entry is not None and not entry.ended and await self._store.is_gone(entry.gateway_id):
                entry = (await self._store.lose(key, stored)).entry
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
            raise DeadlineExceeded("other requests with this key delayed it until its deadline; it was not executed")
        return replace(order, command=replace(order.command, timeout_ms=remaining_ms))


def _key(order: Order, attempts: Attempts) -> str:
    assert order.command.idempotency_key is not None
    return entry_key(attempts.principal, order.command.idempotency_key)


def _require_same(order: Order, entry: IdempotencyEntry) -> None:
    """Raise `Conflict` if the entry is for another command, or if its client has not the user or app in `match`.

    The entry has no metadata, so metadata in `match` is not compared.
    """
    entry.require_same(content_of(order.command), order.client_id)
    query = order.any.query if order.any is not None else Query()
    if query.user not in (None, entry.user) or query.app not in (None, entry.app):
        raise Conflict("this idempotency key was used for a client that `match` does not select; use another key")


def _is_undecided(outcome: CommandResponse, stored: StoredEntry) -> bool:
    """Tell whether to try an order without a client again, after it was sent on the basis of the entry `stored`.

    A twin (a request with the same key) may have reserved the key for another client, and this order's gateway refused
    it before the twin's entry could be read. The twin may still free the key. The same holds if this order followed a
    twin to a client that refused both.
    """
    if outcome.error is None:
        return False
    return outcome.error.code == Code.CONFLICT.value or (stored.entry is not None and outcome.error.code in SKIPPED)
