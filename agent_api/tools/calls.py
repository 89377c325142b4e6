"""Turns the call of a tool into a command, with its client and its parameters."""

from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

import msgspec

from agent_api.commands.orders import CommandBody
from agent_api.tools.groups import ToolGroup
from agent_api.tools.views import MAX_LISTED_CLIENTS, ToolView, choice_argument, choice_of, of_one_user
from protocol import codec
from protocol.codec import WholeNumber
from protocol.discovery import Client
from protocol.errors import AmbiguousClient, ClientNotFound, InvalidParameters, UnknownCapability
from protocol.messages import CommandFields

Arguments = dict[str, msgspec.Raw]
MAX_COUNTED = 1000
_texts = msgspec.json.Decoder(str)


class CallOptions(NamedTuple):
    """A caller's options besides the arguments."""

    client_id: str | None = None
    timeout_ms: WholeNumber | None = None
    idempotency_key: str | None = None


NO_OPTIONS = CallOptions()


def command_of(view: ToolView, name: str, arguments: Arguments, options: CallOptions = NO_OPTIONS) -> CommandBody:
    """Return the command for a call of a tool.

    Raises `UnknownCapability` if no tool has the name, `ClientNotFound` if the named client does not offer it,
    `AmbiguousClient` if clients of several users offer it and none is named, and `InvalidParameters` if `value` is
    missing.
    """
    group = view.find(name)
    if group is None:
        raise UnknownCapability(f"there is no tool {name[:64]!r} for this token; list the tools again")
    arguments = dict(arguments)
    argument = choice_argument(group.definition.schema)
    told = arguments.pop(argument, None)
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


def _parameters(group: ToolGroup, arguments: Arguments) -> msgspec.Raw:
    if not group.definition.wrapped:
        return msgspec.Raw(codec.encode(arguments))
    value = arguments.get("value")
    if value is None or not codec.is_object(value):
        raise InvalidParameters("`value`: must be an object, in which the parameters are", details={"path": "/value"})
    return value
