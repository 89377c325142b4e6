"""The dialect of agents that have the original project's SDK.

The SDK may use one id twice at a time, because it uses a component's id as the id of commands to it. So each frame gets
an id of ours on the way in. Its answer carries the agent's id as `correlationId`. A command without a client is
answered by an `error`, as in the SDK's own server. Every other outcome is a result.
"""

import itertools
from collections.abc import Callable

import msgspec

from agent_api.clients.overview import OverviewQuery
from agent_api.socket import sdk_frames
from agent_api.socket.frames import (
    AgentAuthFrame,
    AgentCancelFrame,
    AgentCommandFrame,
    AgentErrorFrame,
    AgentResponseFrame,
    AgentSaid,
    AskOverviewFrame,
    LeaveFrame,
    OverviewFrame,
    SignOfLifeFrame,
    ToldToAgent,
)
from agent_api.socket.sdk_frames import (
    SdkAuth,
    SdkCallAction,
    SdkCallFunction,
    SdkCancel,
    SdkCapabilities,
    SdkCapabilitiesResult,
    SdkCapabilitiesUpdated,
    SdkCommand,
    SdkError,
    SdkFault,
    SdkFilters,
    SdkQuery,
    SdkRegistration,
    SdkResult,
    SdkSession,
    SdkUpdate,
)
from protocol import codec
from protocol.discovery import Query
from protocol.errors import Code, ErrorBody, InvalidFrame
from protocol.frames import AckFrame, PongFrame
from protocol.ids import new_request_id
from protocol.messages import CommandFields, timestamp

MISSING_CLIENT_ID = "missing_client_id"
_FOLLOWED = "followed"
_NOBODY_TO_GO_TO = {
    Code.CLIENT_NOT_FOUND.value: Code.CLIENT_NOT_FOUND.value,
    Code.AMBIGUOUS_CLIENT.value: MISSING_CLIENT_ID,
}


class _AwaitedAnswer(msgspec.Struct, frozen=True):
    """A frame without an answer yet: the agent's id of it, and the type of its result."""

    id: str | None
    kind: str = ""


class SdkAgent:
    """The dialect of one connection. It keeps the id of each frame until the answer."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._numbers = itertools.count(1)
        self._awaited: dict[str, _AwaitedAnswer] = {}

    def opening(self) -> tuple[AgentSaid]:
        """Return the frame that asks for all capabilities, now and after each change."""
        return (AskOverviewFrame(_FOLLOWED, follow=True),)

    def decode(self, data: bytes, *, text: bool) -> AgentSaid:
        """Decode a message. Raises `InvalidFrame` with a sentence that names the field."""
        match sdk_frames.decode(data, text=text):
            case SdkQuery() as query:
                wanted = _wanted(query.filters or SdkFilters(), query.after)
                return AskOverviewFrame(self._await(query.id), wanted)
            case SdkCallFunction() | SdkCallAction() | SdkUpdate() as command:
                return self._command(command)
            case SdkSession(action=action):
                return LeaveFrame() if action == "disconnect" else SignOfLifeFrame()
            case SdkAuth(token=token, id=ident):
                return AgentAuthFrame(token, self._await(ident))
            case SdkCancel(id=ident):
                return self._cancel(ident)
            case SdkRegistration():
                raise InvalidFrame("agents connect here; an application connects to the gateway")

    def identify(self, data: bytes) -> str | None:
        """Return our id for a refused message, or None if the message has no id."""
        ident = sdk_frames.identify(data)
        return None if ident is None else self._await(ident)

    def encode(self, frame: ToldToAgent) -> bytes | None:
        """Encode a frame. Return None if the SDK has no such message."""
        match frame:
            case AgentResponseFrame():
                return codec.encode(self._result(frame))
            case AgentErrorFrame(code=code, message=message, id=ident, details=details):
                return codec.encode(self._error(ident, ErrorBody(code, message, frame.retryable, details)))
            case OverviewFrame():
                return self._capabilities(frame)
            case AckFrame(id=ident):
                told = self._answered(ident).id
                return None if told is None else codec.encode(AckFrame(told))
            case PongFrame():
                return codec.encode(frame)
            case _:
                return None

    # --- from the agent ---

    def _await(self, ident: str | None, kind: str = "") -> str:
        ours = str(next(self._numbers))
        self._awaited[ours] = _AwaitedAnswer(ident, kind)
        return ours

    def _command(self, frame: SdkCommand) -> AgentCommandFrame:
        fields = CommandFields(
            target=frame.target,
            action=frame.wanted_action,
            parameters=frame.parameters,
            timeout_ms=frame.timeout_ms,
            idempotency_key=frame.idempotency_key,
        )
        ident = self._await(frame.id, frame.answer)
        return AgentCommandFrame(command=fields, client_id=frame.client_id, id=ident, progress=False)

    def _cancel(self, ident: str) -> AgentSaid:
        """Cancel the newest command with this id. Do nothing if it has its result."""
        mine = (ours for ours, awaited in reversed(self._awaited.items()) if awaited.id == ident and awaited.kind)
        ours = next(mine, None)
        return SignOfLifeFrame() if ours is None else AgentCancelFrame(ours)

    # --- to the agent ---

    def _answered(self, ours: str | None) -> _AwaitedAnswer:
        return self._awaited.pop(ours or "", _AwaitedAnswer(None))

    def _now(self) -> str:
        return timestamp(self._clock())

    def _result(self, frame: AgentResponseFrame) -> SdkResult | SdkError:
        error = frame.error
        if error is not None and error.code in _NOBODY_TO_GO_TO:
            return self._error(frame.id, msgspec.structs.replace(error, code=_NOBODY_TO_GO_TO[error.code]))
        awaited = self._answered(frame.id)
        return SdkResult(
            type=awaited.kind,
            id=new_request_id(),
            timestamp=self._now(),
            correlation_id=awaited.id,
            success=error is None,
            data=frame.result,
            error=None if error is None else _fault(error),
            client_id=frame.client_id,
            request_id=frame.request_id,
            duration_ms=frame.duration_ms,
        )

    def _error(self, ours: str | None, error: ErrorBody) -> SdkError:
        return SdkError(
            id=new_request_id(),
            timestamp=self._now(),
            correlation_id=self._answered(ours).id,
            code=error.code,
            message=error.message,
            retryable=error.retryable,
            details=error.details,
        )

    def _capabilities(self, frame: OverviewFrame) -> bytes:
        now = self._now()
        functions, components, after = frame.functions, frame.components, frame.after
        if frame.id == _FOLLOWED:
            told = SdkCapabilities(functions=functions, components=components, last_updated=now, after=after)
            return codec.encode(SdkCapabilitiesUpdated(told, now))
        ident = self._answered(frame.id).id
        return codec.encode(
            SdkCapabilitiesResult(
                id=ident or new_request_id(),
                timestamp=now,
                correlation_id=ident,
                functions=functions,
                components=components,
                after=after,
            )
        )


def _wanted(filters: SdkFilters, after: str) -> OverviewQuery:
    functions = Query(tags=tuple(filters.function_tags), auth_level=filters.function_auth_level)
    components = Query(
        tags=tuple(filters.component_tags),
        component_type=filters.component_type,
        auth_level=filters.component_auth_level,
        path=filters.component_path,
    )
    return OverviewQuery(functions, components, after)


def _fault(error: ErrorBody) -> SdkFault:
    """Return an error for the SDK. An application's error keeps the application's own code."""
    own = error.details.get("code") if isinstance(error.details, dict) else None
    is_own = error.code == Code.COMMAND_FAILED and isinstance(own, str)
    return SdkFault(own if is_own and own is not None else error.code, error.message, error.details)
