"""The one template of a NATS configuration: who may publish and subscribe to what, for `up` and for deployments.

`python -m agentbridge.nats_config [TENANT…] > nats.conf` prints the one for a deployment. Passwords never stand in the
file: NATS reads them from the environment. They must begin with a letter, for NATS takes `12345678` and `7M` in a
variable for numbers.
"""

import json
import secrets
import sys
from typing import NamedTuple

from protocol.errors import ConfigurationError
from protocol.ids import is_token
from protocol.runtime.auth import DEFAULT_TENANT
from protocol.subjects import (
    ALL_AUDIT,
    ALL_CLIENT_CHANGES,
    ALL_COMMANDS,
    ALL_EVENTS,
    ALL_REGISTRY_REQUESTS,
    AUDIT_STREAM,
    CLIENTS_BUCKET,
    EVENTS_STREAM,
    IDEMPOTENCY_BUCKET,
    ROOT,
)

GATEWAY, REGISTRY, API, CONSOLE = "gateway", "registry", "api", "console"
PASSWORD_VARIABLE = "AGENTBRIDGE_NATS_PASSWORD_"  # noqa: S105  the name of a variable
DEPLOYED_STORE = "/data"  # NATS makes a folder `jetstream` in it

_INBOXES = "_INBOX.>"
_SERVICES = "$SRV.>"
_REGISTRIES = f"{ROOT}._registry.>"
_IDEMPOTENCY = f"KV_{IDEMPOTENCY_BUCKET}"
_READ_STREAMS = (f"KV_{CLIENTS_BUCKET}", _IDEMPOTENCY, EVENTS_STREAM, AUDIT_STREAM)
_READ_VERBS = ("STREAM.MSG.GET", "DIRECT.GET", "CONSUMER.CREATE", "CONSUMER.DELETE")


class User(NamedTuple):
    """A NATS user: its name is also that of its inbox prefix, `_INBOX.<name>`."""

    name: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]

    @property
    def password_variable(self) -> str:
        """The environment variable that NATS reads the password from."""
        return PASSWORD_VARIABLE + self.name.upper().replace("-", "_")


class Server(NamedTuple):
    """What differs between the servers that run this configuration. Port -1 takes any free one."""

    listen: str
    store: str
    ports_folder: str | None = None
    monitoring: str | None = None


DEPLOYED = Server("0.0.0.0:4222", DEPLOYED_STORE, monitoring="127.0.0.1:8222")


def agent_user(tenant: str) -> str:
    """Return the name of the NATS user for the agents of a tenant."""
    return f"agent_{tenant}"


def users(tenants: tuple[str, ...]) -> list[User]:
    """Return every NATS user of a deployment and what it may publish and subscribe to."""
    return [_gateway(), _registry(), _agent_api(), *map(_agent, tenants), _console()]


def new_password() -> str:
    """Return a random password that NATS cannot take for a number."""
    return f"p{secrets.token_urlsafe(32)}"


def render(server: Server, tenants: tuple[str, ...] = (DEFAULT_TENANT,)) -> str:
    """Return the configuration file. Raises `ConfigurationError` for tenants that cannot be."""
    _check(tenants)
    return "\n".join([*_server_lines(server), "", authorization(tenants), ""])


def authorization(tenants: tuple[str, ...]) -> str:
    """Return the part that names the users; their passwords come from the server's environment."""
    entries = [line for user in users(tenants) for line in _user_lines(user)]
    return "\n".join(["authorization {", "  users: [", *entries, "  ]", "}"])


def _check(tenants: tuple[str, ...]) -> None:
    """Raise `ConfigurationError` for a tenant that cannot stand in a subject, or shares another's password."""
    seen: set[str] = set()
    for tenant in tenants:
        if not is_token(tenant):
            raise ConfigurationError(f"{tenant!r} is no tenant: use 1 to 64 letters, digits, '-' or '_'")
        variable = _agent(tenant).password_variable
        if variable in seen:
            raise ConfigurationError(f"two tenants would share the password in {variable}: rename one of them")
        seen.add(variable)


def _gateway() -> User:
    return User(
        GATEWAY,
        publish=(
            ALL_EVENTS,
            ALL_AUDIT,
            ALL_COMMANDS,
            _REGISTRIES,
            f"{ROOT}._gateway.>",
            _INBOXES,
            f"$KV.{IDEMPOTENCY_BUCKET}.>",
            f"$JS.API.STREAM.INFO.{_IDEMPOTENCY}",
            f"$JS.API.STREAM.MSG.GET.{_IDEMPOTENCY}",
            f"$JS.API.DIRECT.GET.{_IDEMPOTENCY}.>",
        ),
        subscribe=(ALL_COMMANDS, f"{ROOT}._gateway.*.*", _SERVICES, _inbox(GATEWAY)),
    )


def _registry() -> User:
    return User(
        REGISTRY,
        publish=(
            ALL_CLIENT_CHANGES,
            f"{ROOT}._gateway.*.*",
            _REGISTRIES,
            "$KV.>",
            "$JS.API.>",
            "$JS.FC.>",
            _SERVICES,
            _INBOXES,
        ),
        subscribe=(ALL_REGISTRY_REQUESTS, _REGISTRIES, _SERVICES, _inbox(REGISTRY)),
    )


def _agent_api() -> User:
    read = (f"$JS.API.{verb}.{stream}{tail}" for verb in _READ_VERBS for stream in _READ_STREAMS for tail in ("", ".>"))
    return User(
        API,
        publish=(
            ALL_COMMANDS,
            ALL_REGISTRY_REQUESTS,
            f"{ROOT}._gateway.*.disconnect",
            f"{ROOT}._gateway.*.ping",
            ALL_AUDIT,
            _SERVICES,
            _INBOXES,
            f"$KV.{IDEMPOTENCY_BUCKET}.>",
            "$JS.FC.>",  # without it a long mirror silently stops short
            "$JS.API.STREAM.INFO.*",
            *read,
        ),
        subscribe=(_SERVICES, _inbox(API)),
    )


def _agent(tenant: str) -> User:
    name = agent_user(tenant)
    return User(
        name,
        publish=(f"{ROOT}.{tenant}.command.*", f"{ROOT}.{tenant}.registry.*"),
        subscribe=(f"{ROOT}.{tenant}.event.>", f"{ROOT}.{tenant}.client.>", _inbox(name)),
    )


def _console() -> User:
    return User(
        CONSOLE,
        publish=(
            ALL_COMMANDS,
            ALL_REGISTRY_REQUESTS,
            _SERVICES,
            f"$JS.API.STREAM.INFO.{AUDIT_STREAM}",
            f"$JS.API.DIRECT.GET.{AUDIT_STREAM}",
        ),
        subscribe=(f"{ROOT}.*.event.>", f"{ROOT}.*.client.>", f"{ROOT}.*.audit.>", _inbox(CONSOLE)),
    )


def _inbox(user: str) -> str:
    return f"_INBOX.{user}.>"


def _server_lines(server: Server) -> list[str]:
    """Return the settings of the server itself; its pings notice a lost host in seconds instead of minutes."""
    lines = [
        "# Rendered by `python -m agentbridge.nats_config`: change it there. Passwords come from the environment of",
        "# nats-server; begin each with a letter, and use letters, digits, - and _ alone.",
        f"listen: {_quoted(server.listen)}",
        "max_payload: 1MB",
        'ping_interval: "2s"',
        "ping_max: 2",
        f"jetstream {{ store_dir: {_quoted(server.store)} }}",
    ]
    lines += [f"ports_file_dir: {_quoted(server.ports_folder)}"] if server.ports_folder else []
    return lines + ([f"http: {_quoted(server.monitoring)}"] if server.monitoring else [])


def _user_lines(user: User) -> list[str]:
    return [
        "    {",
        f"      user: {_quoted(user.name)}, password: ${user.password_variable}",
        "      permissions {",
        *_permission_lines("publish", user.publish),
        *_permission_lines("subscribe", user.subscribe),
        "      }",
        "    }",
    ]


def _permission_lines(verb: str, subjects: tuple[str, ...]) -> list[str]:
    return [f"        {verb}: [", *(f"          {_quoted(subject)}" for subject in subjects), "        ]"]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


if __name__ == "__main__":
    print(render(DEPLOYED, tuple(sys.argv[1:]) or (DEFAULT_TENANT,)), end="")  # noqa: T201  its one purpose
