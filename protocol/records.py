"""Records in the clients bucket, and the capabilities that clients offer.

A capability travels as the JSON that the client sent, unknown fields included; what this product needs of it is read
once into an `Offer`. Loose forms are accepted: a bare string is a function, a missing `type` is guessed from `name` or
`id`, a component's `actions` may be a list of names, a list of objects with a `name`, or a mapping.
"""

import hashlib
from typing import Annotated, Any, Literal

import msgspec

from protocol import codec
from protocol.errors import InvalidFrame

MAX_CAPABILITIES = 500
MAX_METADATA_BYTES = 16 * 1024
MAX_NAME_CHARS = 256
MAX_PER_SECOND = 1_000_000
MAX_LIMIT_SECONDS = 86_400

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
    """So many a second, on average, and so many at once."""

    per_second: float
    burst: float


class _Limit(msgspec.Struct, frozen=True, rename="camel"):
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_PER_SECOND)]
    per_seconds: Annotated[float, msgspec.Meta(ge=0.001, le=MAX_LIMIT_SECONDS)] = 1.0


class _Function(msgspec.Struct, frozen=True, tag="function", rename="camel"):
    name: _Name
    description: str | None = None
    parameters: _Schema | None = None
    result: _Schema | None = None
    permissions: _Permissions = []
    auth_level: Any = None
    rate_limit: _PerSecond | _Limit | None = None
    annotations: dict[str, Any] | None = None


class _Component(msgspec.Struct, frozen=True, tag="component", rename="camel"):
    id: _Name
    component_type: str | None = None
    actions: list[_NamedAction | _Name] | dict[_Name, Action | None] = []
    permissions: _Permissions = []
    rate_limit: _PerSecond | _Limit | None = None
    description: str | None = None


class Offer(msgspec.Struct, frozen=True):
    """What is needed of a capability to call it: its target, the schema of its parameters, who may use it how often.

    A function has one schema, whatever the action; a component has one for each action. None: anything goes.
    """

    target: str
    kind: Literal["function", "component"]
    permissions: frozenset[str]
    schemas: dict[str | None, _Schema | None]
    rate: Rate | None = None

    def offers(self, action: str | None) -> bool:
        """Tell whether the action may be called; a function's action is passed on, never checked."""
        return self.kind == "function" or action in self.schemas

    def schema(self, action: str | None) -> _Schema | None:
        """Return the JSON Schema of the parameters, None where anything goes."""
        return self.schemas[None] if self.kind == "function" else self.schemas[action]


class CapabilityList(msgspec.Struct, frozen=True, weakref=True):
    """A client's whole list: the JSON that others see, what is needed to call it, and a name for its content."""

    raw: msgspec.Raw
    offers: dict[str, Offer]
    fingerprint: bytes

    def find(self, target: str) -> Offer | None:
        """Return the offer of a target, or None."""
        return self.offers.get(target)


class ClientRecord(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A client as the registry keeps it and agents see it; all of it is told, also where it is what most have.

    `principal` is the `sub` of the application's token, `revision` the session's own counter of changes,
    `connected_at` RFC 3339 in UTC.
    """

    client_id: str
    tenant: str
    gateway_id: str
    principal: str
    app: dict[str, str] = {}
    metadata: dict[str, Any] = {}
    capabilities: msgspec.Raw
    revision: int
    connected_at: str
    state: Literal["active", "detached"] = "active"

    @property
    def user(self) -> str:
        """The `sub` of the user whose session it is, as filters and limits name it."""
        return self.principal

    @property
    def app_name(self) -> str:
        """What the application calls itself, or nothing."""
        return self.app.get("name", "")


_capability_decoder = msgspec.json.Decoder(_Function | _Component)
_list_decoder = msgspec.json.Decoder(list[msgspec.Raw])
EMPTY_CAPABILITIES = CapabilityList(msgspec.Raw(b"[]"), {}, hashlib.sha256().digest())


def fingerprint(items: list[msgspec.Raw]) -> bytes:
    """Return a name for the content of a capability list; equal lists have equal names."""
    return hashlib.sha256(b",".join(codec.raw_bytes(item) for item in items)).digest()


def parse_capabilities(items: list[msgspec.Raw]) -> CapabilityList:
    """Read what a client offers. Raises `InvalidFrame` naming the entry for the first that cannot be accepted."""
    if len(items) > MAX_CAPABILITIES:
        raise InvalidFrame(f"`capabilities`: at most {MAX_CAPABILITIES} are accepted, these are {len(items)}")
    normal = [_normal_form(item, f"capabilities[{index}]") for index, item in enumerate(items)]
    offers: dict[str, Offer] = {}
    for index, raw in enumerate(normal):
        offer = _read_offer(raw, f"capabilities[{index}]")
        if offer.target in offers:
            raise InvalidFrame(f"`capabilities[{index}]`: the name or id {offer.target!r} is used twice")
        offers[offer.target] = offer
    return CapabilityList(msgspec.Raw(codec.encode(normal)), offers, fingerprint(items))


def read_capabilities(raw: msgspec.Raw) -> CapabilityList:
    """Read the list of a record, which was checked when its client registered."""
    return parse_capabilities(codec.decode(_list_decoder, codec.raw_bytes(raw), InvalidFrame))


def _normal_form(item: msgspec.Raw, where: str) -> msgspec.Raw:
    """Return a capability with its `type` spelled out; what already has one is passed on to the byte."""
    value = codec.decode_value(item, InvalidFrame)
    codec.require_shallow(value, f"`{where}`", InvalidFrame)
    if isinstance(value, str):
        value = {"type": "function", "name": value}
    elif not isinstance(value, dict):
        raise InvalidFrame(f"`{where}`: expected an object or a name")
    elif "type" in value:
        return item
    elif "name" in value or "id" in value:
        value = {"type": "function" if "name" in value else "component", **value}
    return msgspec.Raw(codec.encode(value))


def _read_offer(raw: msgspec.Raw, where: str) -> Offer:
    try:
        capability = codec.decode(_capability_decoder, codec.raw_bytes(raw), InvalidFrame)
    except InvalidFrame as exc:
        raise InvalidFrame(f"`{where}`: {exc.message}") from exc
    permissions = frozenset(capability.permissions)
    rate = _rate(capability.rate_limit)
    if isinstance(capability, _Component):
        return Offer(capability.id, "component", permissions, _action_schemas(capability), rate)
    return Offer(capability.name, "function", permissions, {None: capability.parameters}, rate)


def _rate(given: float | _Limit | None) -> Rate | None:
    """Return a `rateLimit` as a rate: a bare number is per second, and a second's worth may come at once."""
    if isinstance(given, _Limit):
        return Rate(given.limit / given.per_seconds, float(given.limit))
    return None if given is None else second_worth(given)


def second_worth(per_second: float) -> Rate:
    """Return the rate that lets a second's worth come at once, or one."""
    return Rate(per_second, max(1.0, per_second))


def _action_schemas(component: _Component) -> dict[str | None, _Schema | None]:
    if isinstance(component.actions, dict):
        return {name: action.parameters if action else None for name, action in component.actions.items()}
    return {
        action if isinstance(action, str) else action.name: None if isinstance(action, str) else action.parameters
        for action in component.actions
    }
