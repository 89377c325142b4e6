"""Records in the clients bucket, and the capabilities that clients offer.

A capability stays the JSON that the client sent, with its unknown fields. The parts that we need are read once into an
`Offer`. Loose forms are accepted: a bare string is a function, a missing `type` is guessed from `name` or `id`, and a
component's `actions` may be a list of names, a list of objects with a `name`, or a mapping. Other forms of applications
are translated into these when a client registers.
"""

import hashlib
from typing import Annotated, Any, Literal

import msgspec

from protocol import codec
from protocol.errors import InvalidFrame

ACTIVE, DETACHED = "active", "detached"
MAX_CAPABILITIES = 500
MAX_METADATA_BYTES = 16 * 1024
MAX_NAME_CHARS = 256
MAX_PER_SECOND = 1_000_000
MAX_LIMIT_SECONDS = 86_400
PUBLIC = "public"  # the `authLevel` of a capability that names none

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME_CHARS)]
_Permissions = Annotated[list[Annotated[str, msgspec.Meta(min_length=1, max_length=128)]], msgspec.Meta(max_length=64)]
_Schema = dict[str, Any] | bool
_PerSecond = Annotated[float, msgspec.Meta(ge=0.00001, le=MAX_PER_SECOND)]


class Action(msgspec.Struct, frozen=True):
    """One action of a component; `parameters` is a JSON Schema."""

    description: str | None = None
    parameters: _Schema | None = None


class _NamedAction(Action, frozen=True, kw_only=True):
    name: _Name


class Rate(msgspec.Struct, frozen=True):
    """A rate limit: `per_second` on average, `burst` at once."""

    per_second: float
    burst: float


class _Limit(msgspec.Struct, frozen=True, rename="camel"):
    limit: Annotated[float, msgspec.Meta(ge=1, le=MAX_PER_SECOND)]  # a float, because some languages write 30 as 30.0
    per_seconds: Annotated[float, msgspec.Meta(ge=0.001, le=MAX_LIMIT_SECONDS)] = 1.0


class _Function(msgspec.Struct, frozen=True, tag="function", rename="camel"):
    name: _Name
    description: str | None = None
    parameters: _Schema | None = None
    result: _Schema | None = None
    permissions: _Permissions = []
    auth_level: Any = None
    tags: Any = None
    path: Any = None
    rate_limit: _PerSecond | _Limit | None = None
    annotations: dict[str, Any] | None = None


class _Component(msgspec.Struct, frozen=True, tag="component", rename="camel"):
    id: _Name
    component_type: str | None = None
    actions: list[_NamedAction | _Name] | dict[_Name, Action | None] = []
    permissions: _Permissions = []
    rate_limit: _PerSecond | _Limit | None = None
    description: str | None = None
    auth_level: Any = None
    tags: Any = None
    path: Any = None


class Labels(msgspec.Struct, frozen=True):
    """The labels by which agents can search for a capability. They decide nothing else."""

    tags: frozenset[str] = frozenset()
    component_type: str | None = None
    auth_level: str = PUBLIC
    path: str | None = None


_NO_LABELS = Labels()


class Offer(msgspec.Struct, frozen=True):
    """The parts of a capability that a call needs: target, schemas of the parameters, permissions, rate limit.

    A function has one schema for all actions; a component has one for each action. None accepts everything.
    """

    target: str
    kind: Literal["function", "component"]
    permissions: frozenset[str]
    schemas: dict[str | None, _Schema | None]
    rate: Rate | None = None
    labels: Labels = _NO_LABELS

    def offers(self, action: str | None) -> bool:
        """Tell whether the action exists. A function's action is passed on without a check."""
        return self.kind == "function" or action in self.schemas

    def schema(self, action: str | None) -> _Schema | None:
        """Return the JSON Schema of the parameters, or None if it accepts everything."""
        return self.schemas[None] if self.kind == "function" else self.schemas[action]


class RefusedCapability(msgspec.Struct, frozen=True):
    """A capability that was left out of a client's list, and the reason."""

    name: str
    message: str


class CapabilityList(msgspec.Struct, frozen=True, weakref=True):
    """A client's complete list: the JSON for others, the offers, and a hash of the content.

    `refused` lists the first capabilities that were left out; `more_refused` counts the rest.
    """

    raw: msgspec.Raw
    offers: dict[str, Offer]
    fingerprint: bytes
    refused: tuple[RefusedCapability, ...] = ()
    more_refused: int = 0

    def find(self, target: str) -> Offer | None:
        """Return the offer of a target, or None."""
        return self.offers.get(target)


class ClientRecord(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A client in the clients bucket and in answers to agents. Default values are written, too.

    - `user`: the `sub` of the application's token. `principal` is the same in older processes.
    - `revision`: the session's own counter of changes.
    - `connected_at`, `focused_at`: RFC 3339 in UTC, by the gateway's clock. At `focused_at` the application last
      reported that its user sees it.
    - `refused`: the capabilities that could not be registered.
    - `state`: `detached` if the client has lost its connection and is expected back.
    """

    client_id: str
    tenant: str
    gateway_id: str
    principal: str
    user: str = ""
    app: dict[str, str] = {}
    metadata: dict[str, Any] = {}
    capabilities: msgspec.Raw
    revision: int
    connected_at: str
    focused_at: str | None = None
    state: Literal["active", "detached"] = "active"
    refused: tuple[RefusedCapability, ...] = ()

    def __post_init__(self) -> None:
        if not self.user:
            msgspec.structs.force_setattr(self, "user", self.principal)

    @property
    def is_visible(self) -> bool:
        """Whether the user sees the application, according to `visible` in its metadata."""
        return tells_visible(self.metadata)

    @property
    def is_detached(self) -> bool:
        """Whether the client has lost its connection and is expected back."""
        return self.state == DETACHED

    @property
    def app_name(self) -> str:
        """The application's own name, or None."""
        return self.app.get("name", "")

    def reduced(self) -> "ClientRecord":
        """Return the record without capabilities and metadata, because the whole one exceeds NATS's `max_payload`."""
        app = {"name": self.app_name} if self.app_name else {}
        refused = (RefusedCapability("*", "the record with all capabilities is larger than NATS takes"),)
        return msgspec.structs.replace(
            self, app=app, metadata={}, capabilities=msgspec.Raw(b"[]"), focused_at=None, refused=refused
        )


_capability_decoder = msgspec.json.Decoder(_Function | _Component)
_list_decoder = msgspec.json.Decoder(list[msgspec.Raw])
EMPTY_CAPABILITIES = CapabilityList(msgspec.Raw(b"[]"), {}, hashlib.sha256().digest())


def tells_visible(metadata: dict[str, Any]) -> bool:
    """Tell whether an application with this metadata is visible to its user."""
    return metadata.get("visible") is True


def fingerprint(items: list[msgspec.Raw]) -> bytes:
    """Return a hash of a capability list. Equal lists have equal hashes."""
    return hashlib.sha256(b",".join(codec.raw_bytes(item) for item in items)).digest()


def read_capabilities(raw: msgspec.Raw) -> CapabilityList:
    """Decode the capability list of a record, which was checked when its client registered.

    A capability that we cannot decode comes from a newer version. It stays in the list, but cannot be found by name.
    """
    items = codec.decode(_list_decoder, codec.raw_bytes(raw), InvalidFrame)
    normal: list[msgspec.Raw] = []
    offers: dict[str, Offer] = {}
    for item in items:
        try:
            value = codec.decode_value(item, InvalidFrame)
            spelled_out = with_type(value)
            normal.append(item if spelled_out is value else msgspec.Raw(codec.encode(spelled_out)))
            offer = read_offer(normal[-1])
        except InvalidFrame:
            continue  # the gateway has reported its refusals to the client
        offers.setdefault(offer.target, offer)
    return CapabilityList(msgspec.Raw(codec.encode(normal)), offers, fingerprint(items))


def with_type(value: Any) -> dict[str, Any]:
    """Return a capability with its `type`; the same object if it has one already. Raises `InvalidFrame`."""
    if isinstance(value, str):
        return {"type": "function", "name": value}
    if not isinstance(value, dict):
        raise InvalidFrame("expected an object or a name")
    if "type" not in value and ("name" in value or "id" in value):
        return {"type": "function" if "name" in value else "component", **value}
    return value


def read_offer(raw: msgspec.Raw) -> Offer:
    """Decode a capability that has a `type`. Raises `InvalidFrame` that names the field."""
    capability = codec.decode(_capability_decoder, codec.raw_bytes(raw), InvalidFrame)
    permissions = frozenset(capability.permissions)
    rate = _rate(capability.rate_limit)
    if isinstance(capability, _Component):
        schemas = _action_schemas(capability)
        return Offer(capability.id, "component", permissions, schemas, rate, _labels(capability))
    return Offer(capability.name, "function", permissions, {None: capability.parameters}, rate, _labels(capability))


def _labels(capability: _Function | _Component) -> Labels:
    """Return the valid labels. An invalid one stays in the capability's JSON, but no search finds it."""
    labels = Labels(
        frozenset(filter(_is_text, capability.tags if isinstance(capability.tags, list) else ())),
        capability.component_type if isinstance(capability, _Component) else None,
        capability.auth_level if _is_text(capability.auth_level) else PUBLIC,
        capability.path if _is_text(capability.path) else None,
    )
    return _NO_LABELS if labels == _NO_LABELS else labels


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _rate(given: float | _Limit | None) -> Rate | None:
    """Return a `rateLimit` as a rate. A bare number is per second, with a burst of one second's worth."""
    if isinstance(given, _Limit):
        return Rate(given.limit / given.per_seconds, given.limit)
    return None if given is None else second_worth(given)


def second_worth(per_second: float) -> Rate:
    """Return a rate with a burst of one second's worth, at least 1."""
    return Rate(per_second, max(1.0, per_second))


def _action_schemas(component: _Component) -> dict[str | None, _Schema | None]:
    if isinstance(component.actions, dict):
        return {name: action.parameters if action else None for name, action in component.actions.items()}
    return {
        action if isinstance(action, str) else action.name: None if isinstance(action, str) else action.parameters
        for action in component.actions
    }
