"""A call of a tool as a command: which client gets it, and with which parameters.

Arguments stay JSON. Only those that are ours are looked for, because objects for 100,000 arguments take 60 ms to make.
"""

from collections.abc import Iterable
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from agent_api.commands.orders import CommandBody
from agent_api.tools.groups import ToolGroup
from agent_api.tools.schemas import VALUE
from agent_api.tools.views import MAX_LISTED_CLIENTS, ToolView, choice_argument, choice_of, of_one_user
from protocol import codec
from protocol.discovery import Client
from protocol.errors import AmbiguousClient, ClientNotFound, InvalidParameters, InvalidRequest, UnknownCapability
from protocol.messages import CommandFields

MAX_BESIDE_CHOICE = 20_000  # names of fields in arguments from which a choice has to be taken out
MAX_COUNTED = 1000
MAX_TIMEOUT_MS = 999_999_999
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_texts = msgspec.json.Decoder(str)


class CallOptions(NamedTuple):
    """A caller's options besides the arguments."""

    client_id: str | None = None
    timeout_ms: int | None = None
    idempotency_key: str | None = None


NO_OPTIONS = CallOptions()


def timeout_ms_of(value: float, field: str) -> int:
    """Return the timeout of a call; it ends earlier if the settings allow less. Raises `InvalidRequest`."""
    if not 1 <= value <= MAX_TIMEOUT_MS or value != int(value):
        raise wrong_timeout(field)
    return int(value)


def wrong_timeout(field: str) -> InvalidRequest:
    """Return the error for an invalid timeout."""
    return InvalidRequest(f"{field}: must be a whole number of milliseconds, from 1 to {MAX_TIMEOUT_MS}")


def command_of(view: ToolView, name: str, arguments: msgspec.Raw, options: CallOptions = NO_OPTIONS) -> CommandBody:
    """Return the command that a call of a tool is; `arguments` are an object.

    Raises `UnknownCapability` if no tool has the name, `ClientNotFound` if the named client does not offer it,
    `AmbiguousClient` if clients of several users offer it and none is named, and `InvalidParameters` if `value` is
    missing.
    """
    group = view.find(name)
    if group is None:
        raise UnknownCapability(f"there is no tool {name[:64]!r} for this token; list the tools again")
    argument = choice_argument(group.definition.schema)
    told = _argument(arguments, argument)
    if told is not None:
        arguments = _without(arguments, argument)
    chosen = options.client_id or _chosen(argument, told)
    client = _client(view, group, name, chosen)
    definition = group.definition
    fields = CommandFields(
        target=definition.target,
        action=definition.action,
        parameters=_parameters(group, arguments),
        timeout_ms=options.timeout_ms,
        idempotency_key=options.idempotency_key,
    )
    return CommandBody(command=fields, client_id=client.record.client_id)


def ambiguous_tool(name: str, clients: Iterable[Client]) -> AmbiguousClient:
    """Return the error that lists the first clients to choose among."""
    counted = list(islice(clients, MAX_COUNTED))
    choices = sorted((choice_of(client) for client in counted), key=lambda each: each["clientId"])
    return AmbiguousClient(
        f"{len(counted)}{' or more' if len(counted) == MAX_COUNTED else ''} clients of several users offer {name!r}; "
        "call it again with the argument `_client`, which is the id of one of them",
        details={"clients": choices[:MAX_LISTED_CLIENTS], "total": len(counted)},
    )


def _chosen(argument: str, given: msgspec.Raw | None) -> str | None:
    """Return the client that an argument names, or None. Models write null for an argument that they leave out."""
    if given is None or codec.raw_bytes(given) == b"null":
        return None
    try:
        return codec.decode(_texts, codec.raw_bytes(given), InvalidParameters)
    except InvalidParameters as exc:
        sentence = f"`{argument}`: must be the id of a client"
        raise InvalidParameters(sentence, details={"path": f"/{argument}"}) from exc


def _client(view: ToolView, group: ToolGroup, name: str, chosen: str | None) -> Client:
    if chosen is not None:
        client = view.offering(group, chosen)
        if client is None:
            raise ClientNotFound(f"no connected client with this id offers the tool {name!r}")
        return client
    if not of_one_user(view.clients_of(group)):
        raise ambiguous_tool(name, view.clients_of(group))
    return max(view.clients_of(group), key=_attention)


def _attention(client: Client) -> tuple[bool, bool, str, str]:
    """Return the sort key of a user's sessions: connected, visible now, seen last, opened last."""
    record = client.record
    return record.state == "active", record.is_visible, record.focused_at or "", record.connected_at


def _parameters(group: ToolGroup, arguments: msgspec.Raw) -> msgspec.Raw:
    if not group.definition.wrapped:
        return arguments
    value = _argument(arguments, VALUE)
    if value is None or not codec.is_object(value):
        raise InvalidParameters("`value`: must be an object, in which the parameters are", details={"path": "/value"})
    return value


def _argument(arguments: msgspec.Raw, name: str) -> msgspec.Raw | None:
    """Return an argument, None if it is not there."""
    value = codec.decode(_decoder_of(name), codec.raw_bytes(arguments)).argument
    return value if isinstance(value, msgspec.Raw) else None


@lru_cache(maxsize=16)
def _decoder_of(name: str) -> msgspec.json.Decoder[Any]:
    """Return the decoder of an object with one field of interest."""
    field: tuple[str, Any, Any] = ("argument", msgspec.Raw | msgspec.UnsetType, msgspec.UNSET)
    return msgspec.json.Decoder(msgspec.defstruct("Arguments", [field], rename={"argument": name}))


def _without(arguments: msgspec.Raw, name: str) -> msgspec.Raw:
    data = codec.raw_bytes(arguments)
    if data.count(b'":') > MAX_BESIDE_CHOICE:
        raise InvalidParameters(
            f"more than {MAX_BESIDE_CHOICE} fields beside `{name}`, from which it cannot be taken out"
        )
    members = codec.decode(_members, data)
    del members[name]
    return msgspec.Raw(codec.encode(members))
