"""What every way in does with a checked command: finds out whom it is for, and hands it to the caller."""

from collections.abc import Coroutine
from typing import Any, Protocol

from agent_api.bodies import Order
from agent_api.finding import Clients, clients_of, only_client
from protocol.access import Principal
from protocol.messages import CommandRequest, CommandResponse
from protocol.subjects import ClientAddress


class Calls(Protocol):
    """Who sends commands to clients and brings their answers."""

    def call(
        self, address: ClientAddress, command: CommandRequest, token: str | None
    ) -> Coroutine[Any, Any, CommandResponse]:
        """Send a command and return its one answer."""


class Commands:
    """Sends orders. With authentication off a token is any text, which has no business in a NATS header."""

    def __init__(self, caller: Calls, clients: Clients, *, passes_tokens_on: bool) -> None:
        self._caller = caller
        self._clients = clients
        self._passes_tokens_on = passes_tokens_on

    def address_of(self, order: Order, principal: Principal) -> ClientAddress:
        """Return whom an order is for.

        Raises `Unavailable`, `UnknownCapability` or `AmbiguousClient` where it names no client and not just one fits.
        """
        return ClientAddress(principal.tenant, order.client_id or self._only_client(order, principal))

    def send(self, address: ClientAddress, order: Order, token: str | None) -> Coroutine[Any, Any, CommandResponse]:
        """Return the call of an order, to be awaited; a cancelled one cancels the command."""
        return self._caller.call(address, order.command, token if self._passes_tokens_on else None)

    def _only_client(self, order: Order, principal: Principal) -> str:
        clients = clients_of(self._clients, principal)
        return only_client(clients, principal, order.command.target, order.command.action)
