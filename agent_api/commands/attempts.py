"""One order's attempts at clients. Each has one audit record: the gateway's if it answered, else ours."""

import asyncio
import contextlib
from collections.abc import Iterator

from agent_api.commands.audit import CommandAudit
from agent_api.commands.gather import Send
from protocol.access import Principal
from protocol.errors import BridgeError, ClientNotFound
from protocol.ids import is_token
from protocol.messages import CommandRequest, CommandResponse, failure
from protocol.subjects import ClientAddress


class Attempts:
    """Sends one caller's command with `ask`, and records an error that comes in place of a gateway's answer."""

    def __init__(self, command_audit: CommandAudit, principal: Principal, ask: Send) -> None:
        self.principal = principal
        self.ask = ask
        self._command_audit = command_audit
        self._recorded: list[tuple[Exception, str | None]] = []
        self._loop = asyncio.get_running_loop()

    async def send(self, address: ClientAddress, command: CommandRequest, ask: Send | None = None) -> CommandResponse:
        """Send to one client, with `ask` if it is given. If an error comes instead of an answer, record it.

        Raises as `ask` does, and `ClientNotFound` for a malformed id.
        """
        with self.recorded(command, address.client_id):
            if not is_token(address.client_id):
                raise ClientNotFound
            return await (ask or self.ask)(address, command)

    @contextlib.contextmanager
    def recorded(self, command: CommandRequest, client_id: str | None = None) -> Iterator[None]:
        """Record an error that leaves the block, as `failed()` does."""
        started = self._loop.time()
        try:
            yield
        except Exception as exc:
            self.failed(exc, command, client_id, self._loop.time() - started)
            raise

    def failed(
        self, error: Exception, command: CommandRequest, client_id: str | None = None, duration_seconds: float = 0.0
    ) -> None:
        """Record an error, unless it is recorded already. A malformed client id is left out of the record."""
        if not self._is_recorded(error, client_id):
            self._recorded.append((error, client_id))
            whose = client_id if client_id is not None and is_token(client_id) else None
            self._command_audit.refused(error, self.principal, command, whose, duration_seconds)

    def refused(self, error: BridgeError, command: CommandRequest, client_id: str) -> CommandResponse:
        """Record that a client could not be reached, and return the error as a response."""
        assert command.request_id is not None
        self._command_audit.refused(error, self.principal, command, client_id)
        return failure(command.request_id, error, client_id)

    def remembered(
        self, response: CommandResponse, command: CommandRequest, duration_seconds: float = 0.0
    ) -> CommandResponse:
        """Record and return an answer that came from the stored entry of a key, not from a gateway."""
        self._command_audit.answered(response, self.principal, command, duration_seconds)
        return response

    def _is_recorded(self, error: Exception, client_id: str | None) -> bool:
        """Tell whether an error was recorded for this client, or with None for any. Clients may share one object."""
        return any(known is error and client_id in (None, whose) for known, whose in self._recorded)
