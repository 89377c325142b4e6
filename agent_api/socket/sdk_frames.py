"""Frames of agents that have the original project's SDK; `type` decides. Fields that nobody here needs are ignored.

Fields that are nearly one of ours are refused, because a misspelt `clientId` would widen whom a command reaches.
"""

from typing import Annotated, Any, ClassVar, TypeAlias

import msgspec

from protocol import codec
from protocol.codec import WholeNumber
from protocol.discovery import MAX_TAGS
from protocol.errors import InvalidFrame

UPDATE = "update_component"
MAX_ID_CHARS = 256  # a component's id may be a command's
# What messages of the SDK may have besides.
_BASE = frozenset({"type", "timestamp", "sessionId", "correlationId", "agentId", "meta", "data", "message", "details"})

_Id = Annotated[str, msgspec.Meta(max_length=MAX_ID_CHARS)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
_Tags = Annotated[list[str], msgspec.Meta(max_length=MAX_TAGS)]

# --- from the agent ---


class SdkFilters(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Which capabilities are asked for."""

    function_tags: _Tags = []
    function_auth_level: str | None = None
    component_type: str | None = None
    component_tags: _Tags = []
    component_auth_level: str | None = None
    component_path: str | None = None


class SdkQuery(msgspec.Struct, frozen=True, tag="query_capabilities"):
    """Tell what clients offer; `after` goes on behind a client if not everything fitted into one answer."""

    id: _Id | None = None
    filters: SdkFilters | None = None
    after: str = ""


class _SdkCommand(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """The common part of commands; the SDK itself knows no `timeoutMs` and no `idempotencyKey`."""

    id: _Id | None = None
    client_id: str | None = None
    timeout_ms: WholeNumber | None = None
    idempotency_key: str | None = None


class SdkCallFunction(_SdkCommand, frozen=True, tag="call_function", kw_only=True):
    """Call a function."""

    answer: ClassVar = "function_result"
    name: _Name
    parameters: msgspec.Raw = codec.EMPTY_OBJECT

    @property
    def target(self) -> str:
        """The function."""
        return self.name

    @property
    def wanted_action(self) -> None:
        """None: a function has no actions."""


class _SdkComponentCommand(_SdkCommand, frozen=True, kw_only=True):
    """`id` is the component's; beside a `componentId` it is the command's own."""

    component_id: _Id | None = None

    @property
    def target(self) -> str:
        """The component. Raises `InvalidFrame` if none is named."""
        target = self.id if self.component_id is None else self.component_id
        if target is None:
            raise InvalidFrame("`id`: the id of a component is expected")
        return target


class SdkCallAction(_SdkComponentCommand, frozen=True, tag="call_component_action", kw_only=True):
    """Have a component do something."""

    answer: ClassVar = "component_action_result"
    action: _Name
    parameters: msgspec.Raw = codec.EMPTY_OBJECT

    @property
    def wanted_action(self) -> str:
        """The action."""
        return self.action


class SdkUpdate(_SdkComponentCommand, frozen=True, tag=UPDATE, kw_only=True):
    """Set properties of a component."""

    answer: ClassVar = "component_update_result"
    properties: msgspec.Raw = codec.EMPTY_OBJECT

    @property
    def parameters(self) -> msgspec.Raw:
        """The properties."""
        return self.properties

    @property
    def wanted_action(self) -> str:
        """The action that components with properties have."""
        return UPDATE


class SdkSession(msgspec.Struct, frozen=True, tag="session"):
    """A sign of life, or with `disconnect` a farewell."""

    action: str = ""


class SdkAuth(msgspec.Struct, frozen=True, tag="auth"):
    """A fresh token. The SDK knows none."""

    token: str
    id: _Id | None = None


class SdkCancel(msgspec.Struct, frozen=True, tag="cancel"):
    """The results of commands with this id are not wanted any more. The SDK knows none."""

    id: _Id


class SdkRegistration(msgspec.Struct, frozen=True, tag="register_capabilities"):
    """The first frame of an application, which has come to the wrong place."""


SdkCommand: TypeAlias = SdkCallFunction | SdkCallAction | SdkUpdate
SdkFrame: TypeAlias = SdkQuery | SdkCommand | SdkSession | SdkAuth | SdkCancel | SdkRegistration

# --- to the agent ---


class SdkFault(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a command has failed."""

    code: str
    message: str
    details: Any = None


class SdkResult(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """What came of a command."""

    type: str
    id: str
    timestamp: str
    correlation_id: str | None = None
    success: bool
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: SdkFault | None = None
    client_id: str | None = None
    request_id: str
    duration_ms: int


class SdkError(msgspec.Struct, frozen=True, tag="error", rename="camel", omit_defaults=True, kw_only=True):
    """A frame was refused, or a command had nobody to go to."""

    id: str
    timestamp: str
    correlation_id: str | None = None
    code: str
    message: str
    retryable: bool
    details: Any = None


class SdkCapabilitiesResult(
    msgspec.Struct, frozen=True, tag="capabilities_result", rename="camel", omit_defaults=True, kw_only=True
):
    """The answer to a query; there is more behind the client `after`."""

    id: str
    timestamp: str
    correlation_id: str | None = None
    functions: list[msgspec.Raw]
    components: list[msgspec.Raw]
    after: str | None = None


class SdkCapabilities(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """What clients offer; there is more behind the client `after`."""

    functions: list[msgspec.Raw]
    components: list[msgspec.Raw]
    last_updated: str
    after: str | None = None


class SdkCapabilitiesUpdated(msgspec.Struct, frozen=True, tag="capabilities_updated"):
    """What clients offer now."""

    capabilities: SdkCapabilities
    timestamp: str


class _SdkIdentity(msgspec.Struct):
    id: Any = None


_decoder: msgspec.json.Decoder[SdkFrame] = msgspec.json.Decoder(SdkFrame)
_identity_decoder = msgspec.json.Decoder(_SdkIdentity)


def decode(data: bytes, *, text: bool) -> SdkFrame:
    """Return what an agent's frame says. Raises `InvalidFrame` with a sentence that names the field."""
    if not text:
        raise InvalidFrame("binary frames are not understood: send JSON in text frames")
    frame = codec.decode(_decoder, data, InvalidFrame)
    if len(data) > codec.MAX_UNKNOWN_BYTES:
        codec.require_little_unknown(frame, data, InvalidFrame)
    codec.refuse_near_misses(data, _FIELDS[type(frame)], InvalidFrame)
    return frame


def identify(data: bytes) -> str | None:
    """Return the id of a refused frame; None if it has no good one."""
    try:
        ident = codec.decode(_identity_decoder, data, InvalidFrame).id
    except InvalidFrame:
        return None
    return ident if isinstance(ident, str) and len(ident) <= MAX_ID_CHARS else None


_FIELDS = {
    kind: _BASE | {field.encode_name for field in msgspec.structs.fields(kind)}
    for kind in (
        SdkQuery,
        SdkCallFunction,
        SdkCallAction,
        SdkUpdate,
        SdkSession,
        SdkAuth,
        SdkCancel,
        SdkRegistration,
    )
}
