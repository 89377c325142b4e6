"""Frames of agents that use the original project's SDK, by their `type`. Unknown fields are ignored.

A field whose name is almost right is refused, because a command with a misspelt `clientId` could reach other clients.
"""

from typing import Annotated, Any, ClassVar, TypeAlias

import msgspec

from protocol import codec
from protocol.codec import WholeNumber
from protocol.discovery import MAX_TAGS
from protocol.errors import InvalidFrame

UPDATE = "update_component"
MAX_ID_CHARS = 256  # as long as a component's id, because the SDK uses that as a command's id
# Other fields in messages of the SDK.
_BASE = frozenset({"type", "timestamp", "sessionId", "correlationId", "agentId", "meta", "data", "message", "details"})

_Id = Annotated[str, msgspec.Meta(max_length=MAX_ID_CHARS)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
_Tags = Annotated[list[str], msgspec.Meta(max_length=MAX_TAGS)]

# --- from the agent ---


class SdkFilters(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """The filters of a query."""

    function_tags: _Tags = []
    function_auth_level: str | None = None
    component_type: str | None = None
    component_tags: _Tags = []
    component_auth_level: str | None = None
    component_path: str | None = None


class SdkQuery(msgspec.Struct, frozen=True, tag="query_capabilities"):
    """Ask for capabilities. For the next page, `after` is the last client of the page before."""

    id: _Id | None = None
    filters: SdkFilters | None = None
    after: str = ""


class _SdkCommand(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """The common fields of commands. `timeoutMs` and `idempotencyKey` are ours; the SDK does not send them."""

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
        """None, because functions have no actions."""


class _SdkComponentCommand(_SdkCommand, frozen=True, kw_only=True):
    """A command to a component. `id` is the component's id; if there is a `componentId`, `id` is the command's."""

    component_id: _Id | None = None

    @property
    def target(self) -> str:
        """The component. Raises `InvalidFrame` if none is named."""
        target = self.id if self.component_id is None else self.component_id
        if target is None:
            raise InvalidFrame("`id`: the id of a component is expected")
        return target


class SdkCallAction(_SdkComponentCommand, frozen=True, tag="call_component_action", kw_only=True):
    """Call an action of a component."""

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
        """The action with which components take properties."""
        return UPDATE


class SdkSession(msgspec.Struct, frozen=True, tag="session"):
    """A sign of life, or with `disconnect` a farewell."""

    action: str = ""


class SdkAuth(msgspec.Struct, frozen=True, tag="auth"):
    """A fresh token. This frame is ours; the SDK does not send it."""

    token: str
    id: _Id | None = None


class SdkCancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Cancels the newest command with this id. This frame is ours; the SDK does not send it."""

    id: _Id


class SdkRegistration(msgspec.Struct, frozen=True, tag="register_capabilities"):
    """The first frame of an application, which should connect to a gateway instead."""


SdkCommand: TypeAlias = SdkCallFunction | SdkCallAction | SdkUpdate
SdkFrame: TypeAlias = SdkQuery | SdkCommand | SdkSession | SdkAuth | SdkCancel | SdkRegistration

# --- to the agent ---


class SdkFault(msgspec.Struct, frozen=True, omit_defaults=True):
    """The error of a command."""

    code: str
    message: str
    details: Any = None


class SdkResult(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """The result of a command."""

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
    """A frame was refused, or a command had no client."""

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
    """The answer to a query. If `after` is set, more capabilities follow behind that client."""

    id: str
    timestamp: str
    correlation_id: str | None = None
    functions: list[msgspec.Raw]
    components: list[msgspec.Raw]
    after: str | None = None


class SdkCapabilities(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """The capabilities of clients. If `after` is set, more follow behind that client."""

    functions: list[msgspec.Raw]
    components: list[msgspec.Raw]
    last_updated: str
    after: str | None = None


class SdkCapabilitiesUpdated(msgspec.Struct, frozen=True, tag="capabilities_updated"):
    """The present capabilities, sent after each change."""

    capabilities: SdkCapabilities
    timestamp: str


class _SdkIdentity(msgspec.Struct):
    id: Any = None


_decoder: msgspec.json.Decoder[SdkFrame] = msgspec.json.Decoder(SdkFrame)
_identity_decoder = msgspec.json.Decoder(_SdkIdentity)


def decode(data: bytes, *, text: bool) -> SdkFrame:
    """Decode an agent's frame. Raises `InvalidFrame` with a sentence that names the field."""
    if not text:
        raise InvalidFrame("binary frames are not understood: send JSON in text frames")
    frame = codec.decode(_decoder, data, InvalidFrame)
    if len(data) > codec.MAX_UNKNOWN_BYTES:
        codec.require_little_unknown(frame, data, InvalidFrame)
    codec.refuse_near_misses(data, _FIELDS[type(frame)], InvalidFrame)
    return frame


def identify(data: bytes) -> str | None:
    """Return the id of a refused frame, or None if it has no valid one."""
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
