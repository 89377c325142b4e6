"""`agentbridge clients` and `agentbridge capabilities`: the connected applications and their capabilities."""

import asyncio
from collections.abc import Callable
from typing import Any

import click
from msgspec.structs import replace

from agentbridge.cli import output
from agentbridge.cli.credentials import CommandSettings, connected, tenant_of, token_of
from agentbridge.cli.registry_client import RegistryClient
from agentbridge.commands.help import TeachingCommand
from agentbridge.commands.options import TO_CALL, as_json, needs_settings
from protocol import codec
from protocol.discovery import Query, narrowed
from protocol.errors import ClientNotFound
from protocol.records import ClientRecord, read_capabilities

Function = Callable[..., Any]


def _filters(function: Function) -> Function:
    for option in (
        click.option("--path", help="Only capabilities with a path that begins with this."),
        click.option("--auth-level", help="Only capabilities with this `authLevel`."),
        click.option("--component-type", help="Only components of this type."),
        click.option(
            "--tag", "tags", multiple=True, help="Only capabilities with this tag. Repeatable: one of them is enough."
        ),
        click.option(
            "--metadata", multiple=True, metavar="KEY=VALUE", help="Only clients with this metadata. Repeatable."
        ),
        click.option("--name", help="Only clients that offer this capability."),
        click.option("--app", help="Only clients of this application."),
        click.option("--user", help="Only clients of this user."),
    ):
        function = option(function)
    return function


@click.command(cls=TeachingCommand)
@_filters
@as_json
@needs_settings(*TO_CALL)
def clients(settings: CommandSettings, as_json: bool, **filters: Any) -> None:
    """List the connected applications.

    Shows only those that the token may see.

    Examples:
      agentbridge clients
      agentbridge clients --user ann --app todo
      agentbridge clients --json | jq '.[].clientId'
    """
    records = asyncio.run(_records(settings, _query(**filters)))
    if as_json:
        click.echo(output.one_line(records))
    elif records:
        click.echo(output.table(["CLIENT", "USER", "APP", "STATE", "CONNECTED", "OFFERS"], map(_client_row, records)))
    else:
        click.echo(_nobody(filters), err=True)


@click.command(cls=TeachingCommand)
@click.argument("client", required=False)
@_filters
@as_json
@needs_settings(*TO_CALL)
def capabilities(settings: CommandSettings, client: str | None, as_json: bool, **filters: Any) -> None:
    """List the capabilities of the applications, or of one.

    Examples:
      agentbridge capabilities
      agentbridge capabilities 0b6e1c1e-2f0f-4d7e-9d59-6a4f4f3d9c55
      agentbridge capabilities --name addTodo --json
      agentbridge capabilities --tag cart --component-type form
    """
    query = _query(client_id=client, **filters)
    records = [_narrowed(record, query) for record in asyncio.run(_records(settings, query))]
    if client is not None and not records:
        raise ClientNotFound
    if as_json:
        click.echo(output.one_line({record.client_id: record.capabilities for record in records}))
    elif records:
        click.echo("\n\n".join(map(_offers, records)))
    else:
        click.echo(_nobody(filters), err=True)


def _nobody(filters: dict[str, Any]) -> str:
    return "no connected application matches" if any(filters.values()) else "no application is connected"


async def _records(settings: CommandSettings, query: Query) -> list[ClientRecord]:
    token = token_of(settings)
    async with connected(settings) as connection:
        directory = RegistryClient(connection, tenant_of(token), token)
        return [record async for record in directory.clients(query)]


def _query(metadata: tuple[str, ...], **filters: Any) -> Query:
    pairs = [entry.partition("=") for entry in metadata]
    if any(not equals for _, equals, _ in pairs):
        raise click.BadParameter("say KEY=VALUE", param_hint="--metadata")
    return Query(metadata={key: value for key, _, value in pairs}, **filters)


def _narrowed(record: ClientRecord, query: Query) -> ClientRecord:
    """Return a record with only the capabilities that the query selects."""
    if not query.selects_capabilities:
        return record
    return replace(record, capabilities=narrowed(read_capabilities(record.capabilities), query))


def _client_row(record: ClientRecord) -> list[str]:
    offers = str(len(read_capabilities(record.capabilities).offers))
    return [record.client_id, record.user, _app(record), record.state, record.connected_at, offers]


def _app(record: ClientRecord) -> str:
    return f"{record.app_name} {record.app.get('version', '')}".strip() or "-"


def _offers(record: ClientRecord) -> str:
    title = click.style(output.printable(f"{record.client_id}  {_app(record)}  {record.user}"), bold=True)
    rows = [row for capability in codec.decode_value(record.capabilities) for row in capability_rows(capability)]
    return f"{title}\n{output.table(['TARGET', 'ACTION', 'PARAMETERS', 'DESCRIPTION'], rows)}" if rows else title


def capability_rows(capability: dict[str, Any]) -> list[list[str]]:
    """Return the table rows of a capability: one for a function, one for each action of a component."""
    description = str(capability.get("description") or "")
    if capability["type"] == "function":
        return [[capability["name"], "", _parameters(capability.get("parameters")), description]]
    actions = capability.get("actions") or {}
    named = actions.items() if isinstance(actions, dict) else map(_named, actions)
    return [
        [capability["id"], name, _parameters((action or {}).get("parameters")), (action or {}).get("description") or ""]
        for name, action in named
    ]


def _named(action: str | dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return (action, {}) if isinstance(action, str) else (action["name"], action)


def _parameters(schema: Any) -> str:
    """Return the names in a JSON Schema, optional ones in brackets.

    Returns `none` if there are no parameters, `any` if the schema does not name them.
    """
    if not isinstance(schema, dict):
        return "any"
    names = schema.get("properties")
    if not names or not isinstance(names, dict):
        return "none" if _takes_nothing(schema) else "any"
    required = schema.get("required") or []
    return " ".join(name if name in required else f"[{name}]" for name in names)


def _takes_nothing(schema: dict[str, Any]) -> bool:
    """Tell whether a JSON Schema without named properties allows no parameters, rather than any."""
    if "patternProperties" in schema:
        return False
    others = schema.get("additionalProperties")
    return others is False or (others is None and schema.get("properties") == {})
