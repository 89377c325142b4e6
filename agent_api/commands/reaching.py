"""Who is meant by an order that names no single client, and the sending to them; without HTTP in sight.

Every way into this process takes a `CommandBody`, which `bodies.order_of` checks, and hands the order to
`sending.Commands.send`, which asks here. `send(address, command)` sends to one client and returns its answer; to
cancel, cancel the call: every command that still waits is cancelled.
"""

import asyncio
from collections.abc import Sequence
from functools import partial

import msgspec

from agent_api.commands.balance import Ask, Balance, InFlight
from agent_api.commands.bodies import Order, Scatter, require_askable
from agent_api.commands.candidates import Candidates
from agent_api.commands.gathering import Gathered, Send, answer_of, gather
from agent_api.commands.intake import Intake
from agent_api.finding import Clients, clients_of, nobody_offers, only_client
from protocol.access import Principal
from protocol.discovery import Client, matches, usable
from protocol.errors import Code, Unavailable
from protocol.messages import CommandRequest, CommandResponse, failure
from protocol.subjects import ClientAddress

MAX_TRIES = 4
# After these the command was certainly not executed, and another client may do better.
SKIPPED = {
    Code.RATE_LIMITED.value,
    Code.OVERLOADED.value,
    Code.UNAVAILABLE.value,
    Code.CLIENT_NOT_FOUND.value,
    Code.UNKNOWN_CAPABILITY.value,
}
_STALE = {Code.CLIENT_NOT_FOUND.value, Code.UNKNOWN_CAPABILITY.value}


class Reaching:
    """Sends orders to whom they mean.

    `candidates` and `balance` must hear all news of the mirror `known`. `in_flight` says how many commands are under
    way to a client, and `max_bytes` how large the answers of several may be together.
    """

    def __init__(
        self,
        known: Clients,
        candidates: Candidates,
        balance: Balance,
        in_flight: InFlight,
        intake: Intake,
        max_bytes: int,
    ) -> None:
        self._known = known
        self._candidates = candidates
        self._balance = balance
        self._in_flight = in_flight
        self._intake = intake
        self._max_bytes = max_bytes
        self._loop = asyncio.get_running_loop()

    async def send(self, order: Order, principal: Principal, send: Send) -> CommandResponse | Gathered:
        """Send an order and return what came of it.

        Raises what `send` raises for a single client, `AmbiguousClient` or `UnknownCapability` where there is not one
        to be found, `InvalidRequest` naming the number where more clients are meant than may be asked at once,
        `Overloaded` where this process has too much to do, `Unavailable` before it knows the clients.
        """
        if order.scatter is not None:
            return await self._scatter(order, order.scatter, principal, send)
        if order.any:
            return await self._to_any(order.command, principal, send)
        client_id = order.client_id or self._only_client(order.command, principal)
        response = await send(ClientAddress(principal.tenant, client_id), order.command)
        return _naming(response, client_id)

    def _only_client(self, command: CommandRequest, principal: Principal) -> str:
        clients = clients_of(self._known, principal)
        found = self._candidates.of(clients, principal, command.target, command.action)
        return only_client(found, command.target, command.action)

    # --- any ---

    async def _to_any(self, command: CommandRequest, principal: Principal, send: Send) -> CommandResponse:
        """Send to the least busy client; to the next one where a command was certainly not executed, within bounds."""
        assert command.timeout_ms is not None
        deadline = self._loop.time() + command.timeout_ms / 1000
        tried: set[str] = set()
        response: CommandResponse | None = None
        while len(tried) < MAX_TRIES and (client := self._next(command, principal, tried)) is not None:
            response = await self._try(client, command, principal, send)
            remaining_ms = round((deadline - self._loop.time()) * 1000)
            if response.error is None or response.error.code not in SKIPPED or remaining_ms <= 0:
                break
            tried.add(client.record.client_id)
            command = msgspec.structs.replace(command, timeout_ms=remaining_ms)
        return self._last(command, response)

    def _next(self, command: CommandRequest, principal: Principal, tried: set[str]) -> Client | None:
        clients = clients_of(self._known, principal)
        ids = self._candidates.of(clients, principal, command.target, command.action)
        return self._balance.choose(clients, ids, _asked(command, principal), tried, self._in_flight, self._loop.time())

    async def _try(self, client: Client, command: CommandRequest, principal: Principal, send: Send) -> CommandResponse:
        record = client.record
        address = ClientAddress(record.tenant, record.client_id)
        response = await answer_of(partial(send, address), command, record.client_id)
        response = _naming(response, record.client_id)
        if response.error is not None and response.client_id == record.client_id:
            self._balance.ended(client, _asked(command, principal), response.error, self._loop.time())
        return response

    def _last(self, command: CommandRequest, last: CommandResponse | None) -> CommandResponse:
        """Return the last answer; raise `UnknownCapability` where nobody was there to give one.

        That a client is not there any more, or offers it no more, is no answer to a caller who named none.
        """
        if last is None:
            raise nobody_offers(command.target, command.action)
        if last.error is None or last.error.code not in _STALE:
            return last
        assert command.request_id is not None
        error = Unavailable("the clients that offer this have just gone; try again in a moment")
        return failure(command.request_id, error, last.client_id)

    # --- several ---

    async def _scatter(self, order: Order, scatter: Scatter, principal: Principal, send: Send) -> Gathered:
        """Ask all who are meant; one command has been admitted already, the others are here."""
        client_ids = scatter.client_ids or self._matching(order.command, scatter, principal)
        commands = max(0, len(client_ids) - 1)
        size = commands * memoryview(order.command.parameters).nbytes
        self._intake.admit(size, commands)
        try:
            return await gather(client_ids, principal.tenant, order.command, scatter.need, self._max_bytes, send)
        finally:
            self._intake.release(size, commands)

    def _matching(self, command: CommandRequest, scatter: Scatter, principal: Principal) -> Sequence[str]:
        clients = clients_of(self._known, principal)
        query = scatter.query
        among = clients if query.user is None else self._candidates.of_user(principal.tenant, query.user)
        meant = [
            client_id
            for client_id in among
            if matches(clients[client_id], query)
            and usable(clients[client_id], principal, command.target, command.action)
        ]
        require_askable("match", len(meant))
        return sorted(meant)


def _naming(response: CommandResponse, client_id: str) -> CommandResponse:
    """Return a response that names its client, which is another one where a twin got the command executed there."""
    return msgspec.structs.replace(response, client_id=response.client_id or client_id)


def _asked(command: CommandRequest, principal: Principal) -> Ask:
    assert command.timeout_ms is not None
    return Ask(principal.sub, command.target, command.timeout_ms)
