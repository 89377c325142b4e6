"""The template of the NATS configuration, for `up` and for deployments: users and the subjects that they may use.

`python -m agentbridge.deployment.nats_config > nats.conf` prints the one for a deployment. The file has no passwords:
NATS reads them from its environment. They must begin with a letter, because NATS reads `12345678` or `7M` in a variable
as a number.

Only our own processes have users here, each named in `auth_users`. Everybody else logs in with a token, about which the
server asks a registry (auth callout). One user belongs to the system account, because only there a client may ask
servers for their connections. A registry uses it to end connections of agents; it may do nothing else there.
"""

import json
import secrets
from typing import NamedTuple

from protocol.runtime.nats.login_keys import LoginKeys
from protocol.subjects import (
    ALL_AUDIT,
    ALL_CLIENT_CHANGES,
    ALL_COMMANDS,
    ALL_EVENTS,
    ALL_KEYS,
    ALL_OF_AGENT_APIS,
    ALL_REGISTRY_REQUESTS,
    CLIENTS_BUCKET,
    REGISTRY_STORES,
    RETIRED_KEYS_BUCKET,
    ROOT,
)

GATEWAY, REGISTRY, API = "gateway", "registry", "api"
SYSTEM = "system"  # user in the system account, with which a registry finds and ends agents' connections
PASSWORD_VARIABLE = "AGENTBRIDGE_NATS_PASSWORD_"  # noqa: S105  the name of a variable
# The public keys for agents' logins. Registries have the seeds.
ACCOUNT_VARIABLE, CURVE_VARIABLE = "AGENTBRIDGE_NATS_ACCOUNT", "AGENTBRIDGE_NATS_XKEY"
# A server refuses a login after this time if no registry has answered. It must be below the 2 s after which nats-py
# gives up, because nats-py would then report that the server is away.
LOGIN_SECONDS = 1.8
DEPLOYED_STORE = "/data"  # NATS makes a folder `jetstream` in it
# The limits hold for all users, because NATS's file of users has none per user (docs/scaling.md). Subscriptions are
# counted per connection, and each session is one subscription of its gateway.
# The default control line of 4 KB has no room for a login with a token of 8,192 characters.
LIMITS = ("max_payload: 1MB", "max_control_line: 16KB", "max_connections: 10000", "max_subscriptions: 30000")

SYSTEM_ACCOUNT = "SYS"
_INBOXES = "_INBOX.>"
_SERVICES = "$SRV.>"
_LOGINS, _LOGIN_REPLIES = "$SYS.REQ.USER.AUTH", "$SYS._INBOX.>"
_REGISTRIES = f"{ROOT}._registry.>"
# The names of tenants' streams are not known in advance, so these permissions have a `*` for the whole name. They are
# narrow even so: a direct get with a subject reads only the last message there, and a consumer on `agentbridge.>` gets
# no other subject.
_KEYS = (ALL_KEYS, f"$JS.API.DIRECT.GET.*.{ALL_KEYS}")
_TENANTS_CONSUMERS = f"$JS.API.CONSUMER.CREATE.*.*.{ROOT}.>"
_RETIRED_KEYS = (f"$KV.{RETIRED_KEYS_BUCKET}.>", f"$JS.API.STREAM.MSG.GET.KV_{RETIRED_KEYS_BUCKET}")


class User(NamedTuple):
    """A NATS user. Its inbox prefix is `_INBOX.<name>`."""

    name: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]

    @property
    def password_variable(self) -> str:
        """The environment variable from which NATS reads the password."""
        return PASSWORD_VARIABLE + self.name.upper().replace("-", "_")


class Server(NamedTuple):
    """The server's own part of the configuration. Port -1 takes any free port."""

    listen: str
    store: str
    ports_folder: str | None = None
    monitoring: str | None = None


DEPLOYED = Server("0.0.0.0:4222", DEPLOYED_STORE, monitoring="127.0.0.1:8222")


def users() -> list[User]:
    """Return all NATS users of a deployment with their permissions."""
    return [*_process_users(), _system()]


def public_keys(keys: LoginKeys) -> dict[str, str]:
    """Return the variables for the server's environment with the public keys for agents' logins."""
    return {ACCOUNT_VARIABLE: keys.account, CURVE_VARIABLE: keys.curve}


def new_password() -> str:
    """Return a random password that NATS cannot read as a number."""
    return f"p{secrets.token_urlsafe(32)}"


def render(server: Server) -> str:
    """Return the configuration file."""
    return "\n".join([*_server_lines(server), "", authorization(), ""])


def authorization() -> str:
    """Return the part with users and permissions. Passwords and keys come from the server's environment."""
    entries = [line for user in _process_users() for line in _user_lines(user)]
    return "\n".join(
        ["authorization {", *_callout_lines(), "  users: [", *entries, "  ]", "}", *_system_account_lines()]
    )


def _process_users() -> list[User]:
    return [_gateway(), _registry(), _agent_api()]


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
            *_KEYS,
            *_RETIRED_KEYS,
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
            ALL_AUDIT,
            "$KV.>",
            "$JS.API.>",
            "$JS.FC.>",
            _SERVICES,
            _INBOXES,
            _LOGIN_REPLIES,
        ),
        subscribe=(ALL_REGISTRY_REQUESTS, _REGISTRIES, _SERVICES, _LOGINS, _inbox(REGISTRY)),
    )


def _agent_api() -> User:
    return User(
        API,
        publish=(
            ALL_COMMANDS,
            ALL_REGISTRY_REQUESTS,
            f"{ROOT}._gateway.*.disconnect",
            f"{ROOT}._gateway.*.ping",
            ALL_OF_AGENT_APIS,
            ALL_AUDIT,
            _SERVICES,
            _INBOXES,
            REGISTRY_STORES,
            *_KEYS,
            *_RETIRED_KEYS,
            "$JS.FC.>",  # without it a long mirror silently stops short
            "$JS.API.STREAM.INFO.*",
            "$JS.API.STREAM.MSG.GET.*",
            "$JS.API.DIRECT.GET.*",
            _TENANTS_CONSUMERS,
            f"$JS.API.CONSUMER.CREATE.KV_{CLIENTS_BUCKET}.>",
        ),
        subscribe=(ALL_OF_AGENT_APIS, _SERVICES, _inbox(API)),
    )


def _system() -> User:
    return User(
        SYSTEM,
        publish=("$SYS.REQ.SERVER.PING", "$SYS.REQ.SERVER.PING.CONNZ", "$SYS.REQ.SERVER.*.KICK"),
        subscribe=(_inbox(SYSTEM),),
    )


def _inbox(user: str) -> str:
    return f"_INBOX.{user}.>"


def _server_lines(server: Server) -> list[str]:
    """Return the settings of the server itself. Its pings notice a lost host within seconds instead of minutes."""
    lines = [
        "# Rendered by `python -m agentbridge.deployment.nats_config`: change it there. Passwords come from the",
        "# environment of nats-server; begin each with a letter, and use letters, digits, - and _ alone.",
        f"listen: {_quoted(server.listen)}",
        *LIMITS,
        'ping_interval: "2s"',
        "ping_max: 2",
        f"jetstream {{ store_dir: {_quoted(server.store)} }}",
    ]
    lines += [f"ports_file_dir: {_quoted(server.ports_folder)}"] if server.ports_folder else []
    return lines + ([f"http: {_quoted(server.monitoring)}"] if server.monitoring else [])


def _callout_lines() -> list[str]:
    """Return the lines for agents' logins. The server asks a registry about each user outside `auth_users`."""
    names = ", ".join(_quoted(user.name) for user in users())
    return [
        f"  timeout: {LOGIN_SECONDS}",
        "  auth_callout {",
        f"    issuer: ${ACCOUNT_VARIABLE}, xkey: ${CURVE_VARIABLE}",
        f"    auth_users: [{names}]",
        "  }",
    ]


def _system_account_lines() -> list[str]:
    """Return the lines of the system account, for requests to the servers. All else is in the global account."""
    users = _user_lines(_system())
    return [
        f"system_account: {SYSTEM_ACCOUNT}",
        "accounts {",
        f"  {SYSTEM_ACCOUNT} {{",
        "    users: [",
        *(f"  {line}" for line in users),
        "    ]",
        "  }",
        "}",
    ]


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
    print(render(DEPLOYED), end="")  # noqa: T201  its one purpose
