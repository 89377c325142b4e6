"""Sends a checked order, from HTTP, a socket or MCP, to its clients."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol

from msgspec.structs import replace

from agent_api.commands.attempts import Attempts
from agent_api.commands.audit import CommandAudit
from agent_api.commands.gather import Gathered
from agent_api.commands.orders import Order
from agent_api.commands.targets import Targets
from protocol.access import Principal
from protocol.audit import SUCCESS
from protocol.errors import BridgeError, ClientNotFound, Code, DeadlineExceeded
from protocol.ids import is_token, new_request_id
from protocol.messages import CommandRequest, CommandResponse, ProgressMessage, is_past_deadline
from protocol.runtime.clock import wall_ms
from protocol.runtime.commands.progress import OnProgress
from protocol.runtime.process.command_counts import CommandCounts
from protocol.subjects import ClientAddress

OnClientProgress = Callable[[str, ProgressMessage], None]


class Calls(Protocol):
    """Sends commands to clients and returns their answers."""

    def call(
        self, address: ClientAddress, command: CommandRequest, token: str | None, on_progress: OnProgress | None = None
    ) -> Coroutine[Any, Any, CommandResponse]:
        """Send a command and return its one answer; call `on_progress` with progress meanwhile."""


class SendsKeyed(Protocol):
    """Sends orders that have an idempotency key."""

    def send(self, order: Order, attempts: Attempts) -> Coroutine[Any, Any, CommandResponse | Gathered]:
        """Return the one answer to the command under the order's key. Record an outcome that no gateway decided."""


class Sender:
    """Sends orders. With authentication off no token is sent, because it could be any text in a NATS header."""

    def __init__(
        self,
        caller: Calls,
        targets: Targets,
        keyed: SendsKeyed,
        audit: CommandAudit | None = None,
        *,
        passes_tokens_on: bool,
    ) -> None:
        self._caller = caller
        self._targets = targets
        self._keyed = keyed
        self._passes_tokens_on = passes_tokens_on
        self._loop = asyncio.get_running_loop()
        self.audit = audit or CommandAudit()
        self._counts = CommandCounts()

    async def send(
        self, order: Order, principal: Principal, token: str | None, heard: OnClientProgress | None = None
    ) -> CommandResponse | Gathered:
        """Send an order. If this is cancelled, it cancels its commands.

        Return the response of one client, which may be an error, or the responses of several. `heard` is called with a
        client's id and its progress; it must not wait.

        Raises as `Caller.call`, `Targets.send` and `KeyedOrders.send` do, `ClientNotFound` for a malformed id, and
        `DeadlineExceeded` if the deadline passed before the order was sent.
        """
        started, outcome = self._loop.time(), Code.INTERNAL.value
        try:
            answer = await self._sending(order, principal, token, heard)
            outcome = _outcome(answer)
        except BridgeError as exc:
            outcome = exc.code.value
            raise
        except asyncio.CancelledError:
            outcome = Code.CANCELLED.value
            raise
        finally:
            self._counts.note(outcome, self._loop.time() - started)
        return answer

    def counters(self) -> dict[str, int]:
        """Return the counters of `/metrics`: orders by outcome, and their durations. One for several clients is one."""
        return self._counts.counters()

    def _sending(
        self, order: Order, principal: Principal, token: str | None, heard: OnClientProgress | None
    ) -> Coroutine[Any, Any, CommandResponse | Gathered]:
        if order.client_id is not None and not is_token(order.client_id):
            return self._refuse(order, principal, ClientNotFound())
        if order.command.sent_at is not None and _is_past_deadline(order.command):
            return self._refuse(order, principal, DeadlineExceeded("it came after its deadline; it was not executed"))
        passed_on = token if self._passes_tokens_on else None
        if order.command.idempotency_key is not None:
            return self._keyed.send(order, Attempts(self.audit, principal, partial(self._call_anew, passed_on, heard)))
        if order.client_id is not None:
            address = ClientAddress(principal.tenant, order.client_id)
            return self._recorded(principal, passed_on, heard, address, order.command)
        return self._reach(order, principal, passed_on, heard)

    # --- each with its audit record: the gateway writes it if it answered, else this process ---

    async def _refuse(self, order: Order, principal: Principal, error: BridgeError) -> CommandResponse:
        """Refuse an order before it is sent. The client id is left out of the record, because it may be malformed."""
        self.audit.refused(error, principal, order.command)
        raise error

    async def _recorded(
        self,
        principal: Principal,
        token: str | None,
        heard: OnClientProgress | None,
        address: ClientAddress,
        command: CommandRequest,
    ) -> CommandResponse:
        """Send to the one named client. If an error comes instead of an answer, record it."""
        started = self._loop.time()
        try:
            return await self._call(token, heard, address, command)
        except Exception as exc:
            self.audit.refused(exc, principal, command, address.client_id, self._loop.time() - started)
            raise

    async def _reach(
        self, order: Order, principal: Principal, token: str | None, heard: OnClientProgress | None
    ) -> CommandResponse | Gathered:
        """Send an order to one or several clients that fit. If none fits, the refusal is written to the audit."""
        attempts = Attempts(self.audit, principal, partial(self._call, token, heard))
        try:
            return await self._targets.send(order, principal, attempts.send)
        except Exception as exc:
            attempts.failed(exc, order.command)
            raise

    def _call(
        self, token: str | None, heard: OnClientProgress | None, address: ClientAddress, command: CommandRequest
    ) -> Coroutine[Any, Any, CommandResponse]:
        if command.caller_request_id is not None:
            return self._call_anew(token, heard, address, command)
        return self._send(token, heard, address, command)

    def _send(
        self, token: str | None, heard: OnClientProgress | None, address: ClientAddress, command: CommandRequest
    ) -> Coroutine[Any, Any, CommandResponse]:
        on_progress = None if heard is None else partial(heard, address.client_id)
        return self._caller.call(address, command, token, on_progress)

    async def _call_anew(
        self, token: str | None, heard: OnClientProgress | None, address: ClientAddress, command: CommandRequest
    ) -> CommandResponse:
        """Send a command under a request id of its own, and return the answer under the caller's.

        A caller may use one id for several commands, at several agent APIs, at once under one idempotency key or one
        after the other. With our own ids, each command is probed and cancelled by itself, and outcomes stay apart.
        """
        assert command.request_id is not None
        sent = replace(command, request_id=new_request_id(), caller_request_id=command.request_id)
        return replace(await self._send(token, heard, address, sent), request_id=command.request_id)


def _is_past_deadline(command: CommandRequest) -> bool:
    assert command.timeout_ms is not None
    return is_past_deadline(command, command.timeout_ms, wall_ms())


def _outcome(answer: CommandResponse | Gathered) -> str:
    return SUCCESS if isinstance(answer, Gathered) or answer.error is None else answer.error.code
