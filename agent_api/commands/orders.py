"""Bodies of `POST /api/command`: decoded, checked and bounded, without I/O."""

from typing import Annotated, Literal

import msgspec
from msgspec.structs import replace

from protocol import codec
from protocol.codec import WholeNumber, whole
from protocol.discovery import Query, text_of
from protocol.errors import InvalidRequest
from protocol.idempotency import one_key
from protocol.ids import new_request_id
from protocol.messages import CommandFields, CommandRequest, CommandResponse, check_fields

NULL = msgspec.Raw(b"null")
MAX_ASKED = 100
_AtLeastOne = Annotated[int, msgspec.Meta(ge=1)] | Annotated[float, msgspec.Meta(ge=1)]


class Match(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Selects clients, with the same filters as discovery. `null` is refused, because it would select everybody."""

    user: str | msgspec.UnsetType = msgspec.UNSET
    app: str | msgspec.UnsetType = msgspec.UNSET
    metadata: dict[str, str | int | float | bool] = {}


class CommandBody(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A command and its targets: `clientId`, `any`, `clientIds` or `match`, which `any` may narrow to one.

    Without any of these, the one client that offers the target gets it. Unknown fields are refused, because a misspelt
    one would widen the reach of a command.
    """

    command: CommandFields
    client_id: str | None = None
    timeout_ms: WholeNumber | None = None
    any: bool = False
    client_ids: list[str] | None = None
    match: Match | None = None
    gather: Literal["first", "all"] | _AtLeastOne | None = None
    across_users: bool = False


class CommandResult(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """The application's answer. `durationMs` is the time at the gateway."""

    success: bool = True
    request_id: str
    client_id: str
    result: msgspec.Raw
    duration_ms: int


class Scatter(msgspec.Struct, frozen=True):
    """Several clients at once: the named ones, or those that offer the target and are selected by `query`.

    `need` is the number of successes that is enough. None waits for every answer.
    """

    client_ids: tuple[str, ...] | None
    query: Query
    need: int | None


class AnyOf(msgspec.Struct, frozen=True):
    """One of the clients that offer the target and are selected by `query`, of one user or `across_users`."""

    query: Query = Query()
    across_users: bool = False


class Order(msgspec.Struct, frozen=True):
    """A checked command, with an id and a timeout.

    It goes to the client `client_id`, or to the clients of `scatter`, or to one of `any`. If all three are None, it
    goes to the only client that offers the target. If the caller chose the id, that is the `caller_request_id`.
    """

    client_id: str | None
    command: CommandRequest
    any: AnyOf | None = None
    scatter: Scatter | None = None

    @property
    def request_id(self) -> str:
        """The id by which the caller knows the command."""
        assert self.command.request_id is not None
        return self.command.request_id


_decoder = msgspec.json.Decoder(CommandBody)


def read_order(
    data: bytes, default_timeout_ms: int, max_timeout_ms: int, idempotency_header: str | None = None
) -> Order:
    """Read a body and the header `Idempotency-Key`.

    Raises `InvalidRequest` that names the field, and as `order_of()` does.
    """
    body = codec.decode(_decoder, data)
    if idempotency_header is not None:
        key = one_key(idempotency_header, body.command.idempotency_key)
        body = replace(body, command=replace(body.command, idempotency_key=key))
    return order_of(body, default_timeout_ms, max_timeout_ms)


def order_of(body: CommandBody, default_timeout_ms: int, max_timeout_ms: int) -> Order:
    """Return the order in a body. Raises `InvalidRequest`. A malformed client id is found when the order is sent."""
    any_of = scatter = None
    if (
        body.client_ids is not None
        or body.match is not None
        or body.any
        or body.gather is not None
        or body.across_users
    ):
        any_of, scatter = _whom(body)
    command = check_fields(body.command)
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
            sent_at=command.sent_at,
        ),
        any_of,
        scatter,
    )


def write_result(response: CommandResponse, client_id: str) -> bytes:
    """Return the response body of a command that succeeded."""
    result = response.result if isinstance(response.result, msgspec.Raw) else NULL
    return codec.encode(
        CommandResult(
            request_id=response.request_id, client_id=client_id, result=result, duration_ms=response.duration_ms
        )
    )


def _whom(body: CommandBody) -> tuple[AnyOf | None, Scatter | None]:
    """Return the clients of a body that names no single one: one of several, or all of several."""
    _require_one_way(body)
    if body.any:
        return AnyOf(_query(body.match or Match()), body.across_users), None
    if body.client_ids is not None:
        _check_client_ids(body.client_ids)
        return None, Scatter(tuple(body.client_ids), Query(), _need(body.gather))
    if body.match is not None:
        return None, Scatter(None, _query(body.match), _need(body.gather))
    raise InvalidRequest("`gather`: goes with `clientIds` or `match` only")


def _require_one_way(body: CommandBody) -> None:
    """Raise `InvalidRequest` for fields that contradict each other. Only `match` and `any` may be combined."""
    ways = {
        "clientId": body.client_id is not None,
        "any": body.any,
        "clientIds": body.client_ids is not None,
        "match": body.match is not None and not body.any,
    }
    given = [f"`{name}`" for name, is_given in ways.items() if is_given]
    if len(given) > 1:
        raise InvalidRequest(f"{' and '.join(given)}: these exclude each other, give one of them")
    if body.across_users and not body.any:
        raise InvalidRequest("`acrossUsers`: goes with `any` only")
    if body.gather is not None and body.any:
        raise InvalidRequest("`gather`: goes with `clientIds` or `match` only, not with `any`")


def _check_client_ids(client_ids: list[str]) -> None:
    if not client_ids:
        raise InvalidRequest("`clientIds`: must name at least one client")
    require_askable("clientIds", len(client_ids))
    if len(set(client_ids)) < len(client_ids):
        raise InvalidRequest("`clientIds`: names a client twice")


def require_askable(field: str, count: int) -> None:
    """Raise `InvalidRequest` if a field names more clients than may be asked at once."""
    if count > MAX_ASKED:
        raise InvalidRequest(f"`{field}`: {count} clients are selected, but at most {MAX_ASKED} can be asked at once")


def _query(match: Match) -> Query:
    metadata = {key: str(text_of(value)) for key, value in match.metadata.items()}
    user, app = (None if given is msgspec.UNSET else given for given in (match.user, match.app))
    return Query(user=user, app=app, metadata=metadata)


def _need(gather: str | float | None) -> int | None:
    if isinstance(gather, int | float):
        if gather != int(gather):
            raise InvalidRequest("`gather`: must be `first`, `all` or a whole number from 1")
        return int(gather)  # 2 and 2.0 are the same number in JSON
    return 1 if gather == "first" else None


def _timeout_ms(body: CommandBody, default_ms: int, max_ms: int) -> int:
    """Return the timeout of the body, else of the command, else the default. It is cut to the maximum."""
    wanted = body.timeout_ms if body.timeout_ms is not None else body.command.timeout_ms
    if wanted is None:
        return default_ms
    if wanted <= 0:
        raise InvalidRequest("`timeoutMs`: must be greater than 0")
    return min(whole(wanted, "`timeoutMs`"), max_ms)
