"""The one place that builds, parses and checks NATS subjects and KV keys.

The form is `agentbridge.T.KIND...`. `T` is a tenant, or one of our own names, which begin with an underscore. Values
from outside are checked here before they become part of a subject, because a dot or a wildcard would reroute a message,
and the server closes the connection if a subject has some thousand characters.
"""

import re
from typing import NamedTuple

from protocol.errors import InvalidRequest
from protocol.ids import check_token, is_token

ROOT = "agentbridge"
NO_CLIENT = "_none"
MAX_REPLY_CHARS = 256
MAX_EVENT_NAME_BYTES = 256

ALL_EVENTS = f"{ROOT}.*.event.*.*"
ALL_CLIENT_CHANGES = f"{ROOT}.*.client.*.*"
ALL_NEWS = f"{ROOT}.*.*.*.*"  # filter on an events stream, which has only events and client changes
ALL_AUDIT = f"{ROOT}.*.audit.*.*"
ALL_KEYS = f"{ROOT}.*.key.*"
STRANGERS = "_strangers"  # in the place of the tenant, if the caller has no good token
ALL_COMMANDS = f"{ROOT}.*.command.*"
ALL_REGISTRY_REQUESTS = f"{ROOT}.*.registry.*"
REGISTRY_REPORT = f"{ROOT}._registry.report"
REGISTRY_STORES = f"{ROOT}._registry.stores"
REGISTRY_PEER_HEARD = f"{ROOT}._registry.peer.heard"
ALL_OF_AGENT_APIS = f"{ROOT}._api.>"
API_MCP_CANCEL = f"{ROOT}._api.mcp.cancel"
API_TOOL_AGES = f"{ROOT}._api.tools.ages"

PEERS = "_peers"  # in the place of a gateway's id: any one gateway

CLIENTS_BUCKET = "agentbridge_clients"
# The common stores of all tenants in older versions. They are read until they are empty.
RETIRED = f"{ROOT}._retired"
RETIRED_KEYS_BUCKET = "agentbridge_idempotency"
RETIRED_EVENTS_STREAM = "agentbridge_events"
RETIRED_AUDIT_STREAM = "agentbridge_audit"

_UNSAFE = re.compile(rb"[^A-Za-z0-9_-]")
_REPLY = re.compile(r"_INBOX(?:\.[\x21-\x29\x2b-\x2d\x2f-\x3d\x3f-\x7e]+)+")  # tokens of ASCII without `*` and `>`


class ClientAddress(NamedTuple):
    """The address of a client: its tenant and its id."""

    tenant: str
    client_id: str


def command(tenant: str, client_id: str) -> str:
    """Subject of a client, served by the gateway that holds its session, for `call`, `cancel` and `probe`.

    Raises `InvalidRequest` for a malformed tenant or client id.
    """
    return f"{ROOT}.{check_token(tenant, '`tenant`')}.command.{check_token(client_id, '`clientId`')}"


def registry(tenant: str, op: str) -> str:
    """Subject on which a registry answers `list`, `get` and `find` for a tenant."""
    return f"{ROOT}.{tenant}.registry.{op}"


def parse_registry(subject: str) -> tuple[str, str]:
    """Return the tenant and the operation of a registry request. Raises `InvalidRequest` for any other subject."""
    match subject.split("."):
        case [root, tenant, "registry", op] if root == ROOT and is_token(tenant):
            return tenant, op
    raise InvalidRequest("not a registry subject")


def event(tenant: str, client_id: str, name: str) -> str:
    """Subject of a client's event. Raises `InvalidRequest` if the name is empty or too long."""
    return f"{ROOT}.{tenant}.event.{client_id}.{event_token(name)}"


def client_change(tenant: str, client_id: str, change: str) -> str:
    """Subject on which the registry announces that a client has connected, changed or gone."""
    return f"{ROOT}.{tenant}.client.{client_id}.{change}"


def events_of(tenant: str, client_id: str = "*") -> str:
    """Return the subscription for the events of a tenant, or of one of its clients."""
    return f"{ROOT}.{tenant}.event.{client_id}.*"


def client_changes_of(tenant: str, client_id: str = "*") -> str:
    """Return the subscription for the changes of a tenant's clients, or of one client."""
    return f"{ROOT}.{tenant}.client.{client_id}.*"


def news_of(tenant: str, client_id: str = "*") -> str:
    """Return the stream filter for events and changes of a tenant's clients, or of one. Never subscribe to it."""
    return f"{ROOT}.{tenant}.*.{client_id}.*"


def audit(tenant: str, client_id: str, outcome: str) -> str:
    """Subject of an audit record."""
    return f"{ROOT}.{tenant}.audit.{client_id}.{outcome}"


def store(kind: str, tenant: str) -> str:
    """Return the name of a tenant's stream. `kind` is `events`, `audit` or `keys`."""
    return f"{ROOT}_{kind}_{tenant}"


def idempotency_key(tenant: str, name: str) -> str:
    """Subject of the entry of an idempotency key."""
    return f"{ROOT}.{tenant}.key.{name}"


def gateway(gateway_id: str, op: str) -> str:
    """Subject of one gateway, for the registry's `ping` and `sync` and an administrator's `disconnect`."""
    return f"{ROOT}._gateway.{gateway_id}.{op}"


def event_token(name: str) -> str:
    """Return an event name as one subject token: every byte outside `[A-Za-z0-9_-]` percent-encoded, dots too.

    Raises `InvalidRequest` for a name that is empty, over 256 bytes of UTF-8, or not encodable.
    """
    try:
        plain = name.encode()
    except UnicodeEncodeError as exc:
        raise InvalidRequest("`event`: the name is not valid Unicode") from exc
    if not 1 <= len(plain) <= MAX_EVENT_NAME_BYTES:
        raise InvalidRequest(f"`event`: the name must be 1 to {MAX_EVENT_NAME_BYTES} bytes")
    return _UNSAFE.sub(lambda match: b"%%%02X" % match[0][0], plain).decode()


def is_safe_reply(subject: str) -> bool:
    """Tell whether a caller's reply subject may be published to.

    It must lie below `_INBOX.` and hold no wildcard: a gateway may publish events, so a chosen reply subject could
    forge one.
    """
    return len(subject) <= MAX_REPLY_CHARS and _REPLY.fullmatch(subject) is not None


def client_key(tenant: str, client_id: str) -> str:
    """Return the key of a client's record in the clients bucket."""
    return f"{tenant}.{client_id}"


def gateway_key(gateway_id: str) -> str:
    """Return the key of a gateway's applied report number in the clients bucket; no tenant begins with `_`."""
    return f"_gateway.{gateway_id}"


def agent_key(tenant: str, sub_hash: str) -> str:
    """Return the key for an agent that an administrator has disconnected. `sub_hash` is a hash of its `sub`."""
    return f"_agent.{tenant}.{sub_hash}"


def is_agent_key(key: str) -> bool:
    """Tell whether a key of the clients bucket belongs to a disconnected agent."""
    return key.startswith("_agent.")


def parse_gateway_key(key: str) -> str | None:
    """Return the gateway whose report number is stored under this key, or None for any other key."""
    ours, _, gateway_id = key.partition(".")
    return gateway_id if ours == "_gateway" and is_token(gateway_id) else None


def parse_key(key: str) -> ClientAddress | None:
    """Return the client whose record is stored under this key, or None for one of our own keys."""
    tenant, _, client_id = key.partition(".")
    return ClientAddress(tenant, client_id) if is_token(tenant) and is_token(client_id) else None
