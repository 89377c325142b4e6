"""What every way in does with a checked command: hands it to the caller, for whomever it means."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol

from msgspec.structs import replace

from agent_api.commands.bodies import Order
from agent_api.commands.gathering import Gathered
from agent_api.commands.reaching import Reaching
from agent_api.commands.refusals import Refusals
from agent_api.commands.tries import Tries
from protocol.access import Principal
from protocol.errors import ClientNotFound
from protocol.ids import is_token, new_request_id
from protocol.messages import CommandRequest, CommandResponse, ProgressMessage
from protocol.runtime.listening import OnProgress
from protocol.subjects import ClientAddress

Heard = Callable[[str, ProgressMessage], None]


class Calls(Protocol):
    """Who sends commands to clients and brings their answers."""

    def call(
        self, address: ClientAddress, command: CommandRequest, token: str | None, on_progress: OnProgress | None = None
    ) -> Coroutine[Any, Any, CommandResponse]:
        """Send a command and return its one answer; call `on_progress` with what is told meanwhile."""


class Keyed(Protocol):
    """Who sends the orders that have an idempotency key."""

    def send(self, order: Order, tries: Tries) -> Coroutine[Any, Any, CommandResponse | Gathered]:
        """Return the one answer to the command under the order's key; what no gateway answered is recorded."""


class Commands:
    """Sends orders. With authentication off a token is any text, which has no business in a NATS header."""

    def __init__(
        self,
        caller: Calls,
        reaching: Reaching,
        keyed: Keyed,
        refusals: Refusals | None = None,
        *,
        passes_tokens_on: bool,
    ) -> None:
        self._caller = caller
        self._reaching = reaching
        self._keyed = keyed
        self._passes_tokens_on = passes_tokens_on
        self._loop = asyncio.get_running_loop()
        self.refusals = refusals or Refusals()

    def send(
        self, order: Order, principal: Principal, token: str | None, heard: Heard | None = None
    ) -> Coroutine[Any, Any, CommandResponse | Gathered]:
        """Return the sending of an order, to be awaited; a cancelled one cancels its commands.

        What comes of it is one client's response, which names the client and may be an error, or what several clients
        answered; it raises what `Caller.call`, `Reaching.send` and `Keyed.send` raise, and `ClientNotFound` for an id
        that no client can have. `heard` is called with the id of the client that tells how far it has come, and with
        what it tells; it must not wait.
        """
        if order.client_id is not None and not is_token(order.client_id):
            return self._nobody(order, principal)
        passed_on = token if self._passes_tokens_on else None
        if order.command.idempotency_key is not None:
            return self._keyed.send(order, Tries(self.refusals, principal, partial(self._call_anew, passed_on, heard)))
        if order.client_id is not None:
            address = ClientAddress(principal.tenant, order.client_id)
            return self._recorded(principal, passed_on, heard, address, order.command)
        return self._reach(order, principal, passed_on, heard)

    # --- each with its records: what a gateway answered is recorded there, all else here ---

    async def _nobody(self, order: Order, principal: Principal) -> CommandResponse:
        """Refuse an id that no client can have, which stays out of the record."""
        error = ClientNotFound()
        self.refusals.refused(error, principal, order.command)
        raise error

    async def _recorded(
        self,
        principal: Principal,
        token: str | None,
        heard: Heard | None,
        address: ClientAddress,
        command: CommandRequest,
    ) -> CommandResponse:
        """Send to the one client that is named; an error instead of an answer is recorded."""
        started = self._loop.time()
        try:
            return await self._call(token, heard, address, command)
        except Exception as exc:
            self.refusals.refused(exc, principal, command, address.client_id, self._loop.time() - started)
            raise

    async def _reach(
        self, order: Order, principal: Principal, token: str | None, heard: Heard | None
    ) -> CommandResponse | Gathered:
        """Send to whom an order without a client means; that nobody is meant is recorded, too."""
        tries = Tries(self.refusals, principal, partial(self._call, token, heard))
        try:
            return await self._reaching.send(order, principal, tries.send)
        except Exception as exc:
            tries.failed(exc, order.command)
            raise

    def _call(
        self, token: str | None, heard: Heard | None, address: ClientAddress, command: CommandRequest
    ) -> Coroutine[Any, Any, CommandResponse]:
        if command.caller_request_id is not None:
            return self._call_anew(token, heard, address, command)
        return self._send(token, heard, address, command)

    def _send(
        self, token: str | None, heard: Heard | None, address: ClientAddress, command: CommandRequest
    ) -> Coroutine[Any, Any, CommandResponse]:
        on_progress = None if heard is None else partial(heard, address.client_id)
        return self._caller.call(address, command, token, on_progress)

    async def _call_anew(
        self, token: str | None, heard: Heard | None, address: ClientAddress, command: CommandRequest
    ) -> CommandResponse:
        """Send a command under a request id of its own, and return the answer under the caller's.

        Who gives a command an id may give it to others, through other agent APIs too: to twins under one key, or one
        after the other. Each is probed and cancelled by itself, and no outcome is taken for another's.
        """
        assert command.request_id is not None
        sent = replace(command, request_id=new_request_id(), caller_request_id=command.request_id)
        return replace(await self._send(token, heard, address, sent), request_id=command.request_id)
