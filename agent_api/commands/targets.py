"""Finds the clients of an order that names no single one, and sends to them. No HTTP.

Every transport decodes a `CommandBody`, checks it with `orders.order_of`, and passes the order to `send.Sender.send`,
which comes here. `send(address, command)` sends to one client and returns its answer. If the call is cancelled, all
waiting commands are.
"""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from functools import partial

import msgspec

from agent_api.clients.candidates import EVERYBODY, Candidates
from agent_api.clients.find import KnownClients, ambiguous, clients_of, nobody_offers, were_lost
from agent_api.commands.admission import Admission
from agent_api.commands.gather import Gathered, Send, answer_of, gather
from agent_api.commands.least_busy import Ask, InFlight, LeastBusy
from agent_api.commands.orders import AnyOf, Order, Scatter, require_askable
from protocol.access import Principal
from protocol.discovery import Client, Query, matches, offering
from protocol.errors import BridgeError, Code, Unavailable
from protocol.messages import CommandRequest, CommandResponse, failure
from protocol.shares import Piece
from protocol.subjects import ClientAddress

MAX_TRIES = 4
# After these errors the command was certainly not executed, and another client may succeed.
SKIPPED = {
    Code.RATE_LIMITED.value,
    Code.OVERLOADED.value,
    Code.UNAVAILABLE.value,
    Code.CLIENT_NOT_FOUND.value,
    Code.UNKNOWN_CAPABILITY.value,
}
_STALE = {Code.CLIENT_NOT_FOUND.value, Code.UNKNOWN_CAPABILITY.value}


class Targets:
    """Sends orders to clients that are chosen here.

    `candidates` and `least_busy` must get all changes of the mirror `known`. `in_flight` returns the number of commands
    in flight to a client. `max_bytes` bounds the answers of several clients together.
    """

    def __init__(
        self,
        known: KnownClients,
        candidates: Candidates,
        least_busy: LeastBusy,
        in_flight: InFlight,
        admission: Admission,
        max_bytes: int,
    ) -> None:
        self._known = known
        self._candidates = candidates
        self._least_busy = least_busy
        self._in_flight = in_flight
        self._admission = admission
        self._max_bytes = max_bytes
        self._loop = asyncio.get_running_loop()

    async def send(self, order: Order, principal: Principal, send: Send) -> CommandResponse | Gathered:
        """Send an order and return its outcome.

        Raises as `send` does for a single client; `AmbiguousClient` if several clients fit; `UnknownCapability` if none
        does; `InvalidRequest` with the number if too many fit; `Overloaded` if this process has no room; `Unavailable`
        before the mirror is filled, and while lost clients that offered the target are expected back.
        """
        if order.scatter is not None:
            return await self._scatter(order, order.scatter, principal, send)
        if order.any is not None:
            return await self._to_any(order.command, order.any, principal, send)
        client_id = order.client_id or self._only_client(order.command, principal)
        response = await send(ClientAddress(principal.tenant, client_id), order.command)
        return _naming(response, client_id)

    def _only_client(self, command: CommandRequest, principal: Principal) -> str:
        clients = clients_of(self._known, principal)
        found = self._candidates.of(clients, principal, command.target, command.action)
        if not found:
            raise self._nobody(command, principal, EVERYBODY)
        if len(found) > 1 and clients[found[0]].record.is_detached:
            raise were_lost(command.target, command.action)
        if len(found) > 1:
            raise ambiguous(clients, found, command.target, command.action)
        return found[0]

    def _nobody(self, command: CommandRequest, principal: Principal, query: Query) -> BridgeError:
        """Return the error for a command without a client."""
        target, action = command.target, command.action
        if self._known.lost.offered(principal, target, action, query, self._loop.time()):
            return were_lost(target, action)
        return nobody_offers(target, action)

    # --- any ---

    async def _to_any(
        self, command: CommandRequest, any_of: AnyOf, principal: Principal, send: Send
    ) -> CommandResponse:
        """Send to one client. If it certainly did not execute the command, try another one, within bounds."""
        assert command.timeout_ms is not None
        deadline = self._loop.time() + command.timeout_ms / 1000
        tried: set[str] = set()
        response: CommandResponse | None = None
        while len(tried) < MAX_TRIES and (client := self._next(command, any_of, principal, tried)) is not None:
            response = await self._try(client, command, principal, send)
            remaining_ms = round((deadline - self._loop.time()) * 1000)
            if response.error is None or response.error.code not in SKIPPED or remaining_ms <= 0:
                break
            tried.add(client.record.client_id)
            command = msgspec.structs.replace(command, timeout_ms=remaining_ms)
            any_of = _of_same_user(any_of, client)
        if response is None:
            raise self._nobody(command, principal, any_of.query)
        return _last(command, response)

    def _next(self, command: CommandRequest, any_of: AnyOf, principal: Principal, tried: set[str]) -> Client | None:
        """Choose one user's session, or with `across_users` the least busy session of all users.

        Raises `AmbiguousClient` if sessions of several users fit and the caller does not allow that.
        """
        clients = clients_of(self._known, principal)
        ids, of_one_user = self._candidates.among(clients, principal, command.target, command.action, any_of.query)
        asked, now = _asked(command, principal), self._loop.time()
        if any_of.across_users:
            return self._least_busy.choose(clients, ids, asked, tried, self._in_flight, now)
        if not of_one_user:
            raise ambiguous(clients, ids, command.target, command.action)
        return self._least_busy.choose_of_user(clients, ids, asked, tried, self._in_flight, now)

    async def _try(self, client: Client, command: CommandRequest, principal: Principal, send: Send) -> CommandResponse:
        record = client.record
        address = ClientAddress(record.tenant, record.client_id)
        response = await answer_of(partial(send, address), command, record.client_id)
        response = _naming(response, record.client_id)
        if response.error is not None and response.client_id == record.client_id:
            self._least_busy.ended(client, _asked(command, principal), response.error, self._loop.time())
        return response

    # --- several ---

    async def _scatter(self, order: Order, scatter: Scatter, principal: Principal, send: Send) -> Gathered:
        """Send to all fitting clients. One command is admitted already. The others are admitted here."""
        client_ids = scatter.client_ids or self._matching(order.command, scatter, principal)
        others = len(client_ids) - 1
        limits = (scatter.need, self._max_bytes)
        if others <= 0:
            return await gather(client_ids, principal.tenant, order.command, *limits, send)
        with self._admitted(others, order.command, principal) as piece:
            return await gather(client_ids, principal.tenant, order.command, *limits, send, piece.grow)

    @contextlib.contextmanager
    def _admitted(self, commands: int, command: CommandRequest, principal: Principal) -> Iterator[Piece]:
        """Admit `copies` of a command, and let their piece grow with the answers."""
        size = memoryview(command.parameters).nbytes
        piece = self._admission.admit((principal.tenant, principal.sub), size, commands)
        try:
            yield piece
        finally:
            self._admission.release(piece, commands)

    def _matching(self, command: CommandRequest, scatter: Scatter, principal: Principal) -> Sequence[str]:
        clients = clients_of(self._known, principal)
        query = scatter.query
        among = clients if query.user is None else self._candidates.of_user(principal.tenant, query.user)
        meant = [clients[client_id] for client_id in among if matches(clients[client_id], query)]
        ids = [one.record.client_id for one in offering(meant, principal, command.target, command.action)]
        require_askable("match", len(ids))
        return sorted(ids)


def _naming(response: CommandResponse, client_id: str) -> CommandResponse:
    """Return a response that names its client. For a twin under the same key that is the one that executed it."""
    return msgspec.structs.replace(response, client_id=response.client_id or client_id)


def _asked(command: CommandRequest, principal: Principal) -> Ask:
    assert command.timeout_ms is not None
    return Ask(principal.sub, command.target, command.timeout_ms)


def _of_same_user(any_of: AnyOf, client: Client) -> AnyOf:
    """Return the candidates of the next attempt. Clients come and go, but the user must stay the same."""
    if any_of.across_users:
        return any_of
    return AnyOf(msgspec.structs.replace(any_of.query, user=client.record.user))


def _last(command: CommandRequest, last: CommandResponse) -> CommandResponse:
    """Return the last answer.

    A caller that named no client must not get an error about one that is gone or has withdrawn the target.
    """
    if last.error is None or last.error.code not in _STALE:
        return last
    assert command.request_id is not None
    error = Unavailable("the clients that offer this have just gone; try again in a moment")
    return failure(command.request_id, error, last.client_id)
