"""What `POST /api/command` takes and gives: bodies decoded, checked and bounded, without a socket in sight."""

import msgspec

from protocol import codec
from protocol.errors import ClientNotFound, InvalidRequest
from protocol.ids import is_token, new_request_id
from protocol.messages import CommandRequest, CommandResponse, check_command

NULL = msgspec.Raw(b"null")


class CommandBody(msgspec.Struct, frozen=True, rename="camel"):
    """A command and whom it is for. Without `clientId` the one client that offers the target gets it."""

    command: CommandRequest
    client_id: str | None = None
    timeout_ms: int | None = None
    any: bool = False


class CommandResult(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """What the application answered. `durationMs` is counted at the gateway."""

    success: bool = True
    request_id: str
    client_id: str
    result: msgspec.Raw
    duration_ms: int


class Order(msgspec.Struct, frozen=True):
    """A command that may be sent: checked, with an id and with a timeout. `client_id` is None where none was named."""

    client_id: str | None
    command: CommandRequest

    @property
    def request_id(self) -> str:
        """The id under which the caller will know the answer."""
        assert self.command.request_id is not None
        return self.command.request_id


_decoder = msgspec.json.Decoder(CommandBody)


def read_order(data: bytes, default_timeout_ms: int, max_timeout_ms: int) -> Order:
    """Read a body. Raises `InvalidRequest` naming the field, and what `order_of()` does."""
    return order_of(codec.decode(_decoder, data), default_timeout_ms, max_timeout_ms)


def order_of(body: CommandBody, default_timeout_ms: int, max_timeout_ms: int) -> Order:
    """Return what a body orders. Raises `InvalidRequest`, and `ClientNotFound` for an id that no client can have."""
    if body.any:
        raise InvalidRequest("`any`: true is not supported yet; name a `clientId`")
    if body.client_id is not None and not is_token(body.client_id):
        raise ClientNotFound
    command = check_command(body.command)
    return Order(
        body.client_id,
        CommandRequest(
            target=command.target,
            action=command.action,
            parameters=command.parameters,
            request_id=command.request_id or new_request_id(),
            timeout_ms=_timeout_ms(body, default_timeout_ms, max_timeout_ms),
            idempotency_key=command.idempotency_key,
        ),
    )


def write_result(response: CommandResponse, client_id: str) -> bytes:
    """Return the body of a command that went well."""
    result = response.result if isinstance(response.result, msgspec.Raw) else NULL
    return codec.encode(
        CommandResult(
            request_id=response.request_id, client_id=client_id, result=result, duration_ms=response.duration_ms
        )
    )


def _timeout_ms(body: CommandBody, default_ms: int, max_ms: int) -> int:
    """Return the timeout: the body's before the command's before the default, never above the maximum."""
    wanted = body.timeout_ms if body.timeout_ms is not None else body.command.timeout_ms
    if wanted is None:
        return default_ms
    if wanted <= 0:
        raise InvalidRequest("`timeoutMs`: must be greater than 0")
    return min(wanted, max_ms)
