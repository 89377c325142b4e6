"""What `POST /api/command` takes and gives: bodies decoded, checked and bounded, without a socket in sight."""

from typing import Annotated, Literal

import msgspec
from msgspec.structs import replace

from protocol import codec
from protocol.discovery import Query, text_of
from protocol.errors import InvalidRequest
from protocol.idempotency import one_key
from protocol.ids import new_request_id
from protocol.messages import CommandRequest, CommandResponse, check_command

NULL = msgspec.Raw(b"null")
MAX_ASKED = 100
_AtLeastOne = Annotated[int, msgspec.Meta(ge=1)] | Annotated[float, msgspec.Meta(ge=1)]


class Match(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which clients are asked, as discovery filters them; an unknown field would widen it, so there is none."""

    user: str | None = None
    app: str | None = None
    metadata: dict[str, str | int | float | bool] = {}


class CommandBody(msgspec.Struct, frozen=True, rename="camel"):
    """A command and whom it is for: `clientId`, `any`, `clientIds` or `match`.

    Without any of these, the one client that offers the target gets it.
    """

    command: CommandRequest
    client_id: str | None = None
    timeout_ms: int | None = None
    any: bool = False
    client_ids: list[str] | None = None
    match: Match | None = None
    gather: Literal["first", "all"] | _AtLeastOne | None = None


class CommandResult(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """What the application answered. `durationMs` is counted at the gateway."""

    success: bool = True
    request_id: str
    client_id: str
    result: msgspec.Raw
    duration_ms: int


class Scatter(msgspec.Struct, frozen=True):
    """Several clients at once: those that are named, or those that offer the target and that `query` selects.

    `need` is how many successes are enough; None asks for every answer.
    """

    client_ids: tuple[str, ...] | None
    query: Query
    need: int | None


class Order(msgspec.Struct, frozen=True):
    """A command that may be sent: checked, with an id and with a timeout.

    Where `client_id` is None, `scatter` says who is meant, `any` the least busy client that offers the target, and
    neither the only one. The command has a `caller_request_id` where its id is the caller's own.
    """

    client_id: str | None
    command: CommandRequest
    any: bool = False
    scatter: Scatter | None = None

    @property
    def request_id(self) -> str:
        """The id under which the caller will know the answer."""
        assert self.command.request_id is not None
        return self.command.request_id


_decoder = msgspec.json.Decoder(CommandBody)


def read_order(
    data: bytes, default_timeout_ms: int, max_timeout_ms: int, idempotency_header: str | None = None
) -> Order:
    """Read a body and the header `Idempotency-Key`.

    Raises `InvalidRequest` naming the field, and what `order_of()` does.
    """
    body = codec.decode(_decoder, data)
    if idempotency_header is not None:
        key = one_key(idempotency_header, body.command.idempotency_key)
        body = replace(body, command=replace(body.command, idempotency_key=key))
    return order_of(body, default_timeout_ms, max_timeout_ms)


def order_of(body: CommandBody, default_timeout_ms: int, max_timeout_ms: int) -> Order:
    """Return what a body orders. Raises `InvalidRequest`; an id that no client can have is not looked at."""
    scatter = None
    if body.any or body.client_ids is not None or body.match is not None or body.gather is not None:
        scatter = _scatter(body)
    command = check_command(body.command)
    return Order(
        body.client_id,
        CommandRequest(
            target=command.target,
            action=command.action,
            parameters=command.parameters,
            request_id=command.request_id or new_request_id(),
            caller_request_id=command.request_id,
            timeout_ms=_timeout_ms(body, default_timeout_ms, max_timeout_ms),
            idempotency_key=command.idempotency_key,
        ),
        body.any,
        scatter,
    )


def write_result(response: CommandResponse, client_id: str) -> bytes:
    """Return the body of a command that went well."""
    result = response.result if isinstance(response.result, msgspec.Raw) else NULL
    return codec.encode(
        CommandResult(
            request_id=response.request_id, client_id=client_id, result=result, duration_ms=response.duration_ms
        )
    )


def _scatter(body: CommandBody) -> Scatter | None:
    """Return whom a body means that names no single client; None for `any`."""
    _require_one_way(body)
    if body.client_ids is not None:
        _check_client_ids(body.client_ids)
    elif body.match is None:
        if body.gather is not None:
            raise InvalidRequest("`gather`: goes with `clientIds` or `match` only")
        return None
    client_ids = None if body.client_ids is None else tuple(body.client_ids)
    return Scatter(client_ids, _query(body.match or Match()), _need(body.gather))


def _require_one_way(body: CommandBody) -> None:
    ways = {
        "clientId": body.client_id is not None,
        "any": body.any,
        "clientIds": body.client_ids is not None,
        "match": body.match is not None,
    }
    given = [f"`{name}`" for name, is_given in ways.items() if is_given]
    if len(given) > 1:
        raise InvalidRequest(f"{' and '.join(given)}: these exclude each other, give one of them")


def _check_client_ids(client_ids: list[str]) -> None:
    if not client_ids:
        raise InvalidRequest("`clientIds`: must name at least one client")
    require_askable("clientIds", len(client_ids))
    if len(set(client_ids)) < len(client_ids):
        raise InvalidRequest("`clientIds`: names a client twice")


def require_askable(field: str, count: int) -> None:
    """Raise `InvalidRequest` where a field means more clients than may be asked at once."""
    if count > MAX_ASKED:
        raise InvalidRequest(f"`{field}`: {count} clients are meant, but at most {MAX_ASKED} can be asked at once")


def _query(match: Match) -> Query:
    metadata = {key: str(text_of(value)) for key, value in match.metadata.items()}
    return Query(user=match.user, app=match.app, metadata=metadata)


def _need(gather: str | float | None) -> int | None:
    if isinstance(gather, int | float):
        if gather != int(gather):
            raise InvalidRequest("`gather`: must be `first`, `all` or a whole number from 1")
        return int(gather)  # JSON tells 2 and 2.0 not apart
    return 1 if gather == "first" else None


def _timeout_ms(body: CommandBody, default_ms: int, max_ms: int) -> int:
    """Return the timeout: the body's before the command's before the default, never above the maximum."""
    wanted = body.timeout_ms if body.timeout_ms is not None else body.command.timeout_ms
    if wanted is None:
        return default_ms
    if wanted <= 0:
        raise InvalidRequest("`timeoutMs`: must be greater than 0")
    return min(wanted, max_ms)
