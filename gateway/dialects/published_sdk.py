"""The wire form of the original project's SDK, which begins with `register_capabilities` on a native connection.

Results of a component's commands name the component, not the command. So the commands to one component are sent one
after the other: a second one waits for the result of the first, also if nobody waits for that result any more. An
`error` of the application names nothing at all: it belongs to the oldest command of a component that runs. All other
frames are the native ones.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from gateway.dialects.dialect import CapabilityChange, Clock, CommandQueue, MessageIds, Reply, Said
from gateway.dialects.json_frames import JsonFrames, identified, ids_of, printable, read_frame
from protocol import codec
from protocol.errors import InvalidFrame, Overloaded
from protocol.frames import (
    AgentIdentity,
    CancelFrame,
    CapabilityFrame,
    ClientFault,
    CommandFrame,
    ResponseFrame,
    ServerFrame,
    check_frame,
)
from protocol.ids import MAX_REQUEST_ID_CHARS
from protocol.messages import timestamp
from protocol.records import MAX_CAPABILITIES

MAX_WAITING_BYTES = 1024 * 1024  # of commands that wait for a component; one larger command may wait alone
UPDATE = "update_component"
INVALID_RESPONSE = "invalid_response"
_MARKS_OF_ZOD = (b'"_def"', b'"~standard"')
_BEGINNINGS = ("register_capabilities", "update_capabilities")
_ANY_OBJECT = msgspec.Raw(b'{"type":"object"}')
_UPDATE_ACTION = msgspec.Raw(b'{"description":"Set properties of the component","parameters":{"type":"object"}}')


class _Capabilities(msgspec.Struct):
    functions: list[msgspec.Raw] = []
    components: list[msgspec.Raw] = []


class _Result(msgspec.Struct, rename="camel"):
    correlation_id: str
    success: bool
    data: msgspec.Raw = msgspec.Raw(b"null")
    error: ClientFault | str | None = None


class _ComponentId(msgspec.Struct):
    id: str


class _SchemaOfZod(msgspec.Struct):
    """A schema of zod's in JSON, which loses its shape."""

    definition: Any = msgspec.field(name="_def", default=None)
    standard: Any = msgspec.field(name="~standard", default=None)


class _CallFunction(msgspec.Struct, frozen=True, tag="call_function", rename="camel", omit_defaults=True):
    id: str
    timestamp: str
    name: str
    parameters: msgspec.Raw
    timeout_ms: int
    agent: AgentIdentity
    action: str | None = None


class _CallAction(msgspec.Struct, frozen=True, tag="call_component_action", rename="camel"):
    """`id` is the component's, `request_id` the command's, which the SDK does not look at."""

    id: str
    timestamp: str
    action: str | None
    parameters: msgspec.Raw
    request_id: str
    timeout_ms: int
    agent: AgentIdentity


class _UpdateComponent(msgspec.Struct, frozen=True, tag="update_component", rename="camel"):
    id: str
    timestamp: str
    properties: msgspec.Raw
    request_id: str
    timeout_ms: int
    agent: AgentIdentity


class _ConnectionAck(msgspec.Struct, frozen=True, tag="connection_ack"):
    timestamp: str


_capabilities_decoder = msgspec.json.Decoder(_Capabilities)
_result_decoder = msgspec.json.Decoder(_Result)
_fault_decoder = msgspec.json.Decoder(ClientFault)
_component_decoder = msgspec.json.Decoder(_ComponentId)
_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_zod_decoder = msgspec.json.Decoder(_SchemaOfZod)


def begins_published_sdk(data: bytes) -> bool:
    """Tell whether a message, which is no native frame, is the first that the SDK sends."""
    return any(name.encode() in data for name in _BEGINNINGS) and identified(data).type in _BEGINNINGS


class PublishedSdk(JsonFrames):
    """The dialect of one connection, which knows its components and the commands that they run."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._components: set[str] = set()
        self._own_updates: set[str] = set()  # components that have an action of this name themselves
        self._queues = _ComponentQueues()
        self._is_greeted = False

    @property
    def queue(self) -> CommandQueue:
        """The commands that wait for components."""
        return self._queues

    def decode(self, data: bytes, *, text: bool) -> Sequence[Said]:
        """Return the frames of a message, and the next command of a component that has answered."""
        if not text:
            raise InvalidFrame("binary frames are not understood: send JSON in text frames")
        match identified(data).type:
            case "register_capabilities":
                self._components.clear()
                self._own_updates.clear()
                return (*self._greeting(), CapabilityFrame(self._offers(data)))
            case "update_capabilities":
                return (*self._greeting(), CapabilityChange(self._offers(data)))
            case "function_result":
                result = codec.decode(_result_decoder, data, InvalidFrame)
                return (check_frame(_response(result.correlation_id, result)),)
            case "component_update_result" | "component_action_result":
                return self._component_result(data)
            case "error":
                return self._component_fault(data)
            case "session" | "capabilities_result":
                return ()
            case _:
                return (read_frame(data),)

    def identify(self, data: bytes) -> MessageIds:
        """Return the command that a refused result would have answered; a component's has ended already."""
        found = identified(data)
        if found.type == "function_result":
            answered = printable(found.correlation_id, MAX_REQUEST_ID_CHARS)
            return MessageIds(None, () if answered is None else (answered,))
        return ids_of(data)

    def encode(self, frame: ServerFrame) -> bytes | None:
        """Return a frame of the SDK's; None for a command that waits for its component, or waits no more."""
        match frame:
            case CommandFrame(target=target) if target in self._components:
                return self._queues.begin(target, frame.request_id, self._component_command(frame))
            case CommandFrame():
                return codec.encode(
                    _CallFunction(
                        frame.request_id,
                        timestamp(self._clock()),
                        frame.target,
                        frame.parameters,
                        frame.timeout_ms,
                        frame.agent,
                        frame.action,
                    )
                )
            case CancelFrame(request_id=wire_id) if not self._queues.cancel(wire_id):
                return None
            case _:
                return codec.encode(frame)

    def _greeting(self) -> Iterable[Reply]:
        if self._is_greeted:
            return ()
        self._is_greeted = True
        return (Reply(codec.encode(_ConnectionAck(timestamp(self._clock())))),)

    # --- capabilities ---

    def _offers(self, data: bytes) -> list[msgspec.Raw]:
        sent = codec.decode(_capabilities_decoder, data, InvalidFrame)
        if len(sent.functions) + len(sent.components) > MAX_CAPABILITIES:
            raise InvalidFrame(f"`functions`, `components`: at most {MAX_CAPABILITIES} are accepted")
        schema = _without_zod if any(mark in data for mark in _MARKS_OF_ZOD) else _unchanged
        functions = (_function(raw, schema) for raw in sent.functions)
        return [*functions, *(self._component(raw, schema) for raw in sent.components)]

    def _component(self, raw: msgspec.Raw, schema: "_Cleaning") -> msgspec.Raw:
        """Return a component as others offer it, and remember it: with schemas that say something, and its update."""
        fields = _fields_of(raw)
        if fields is None:
            return raw
        actions = _fields_of(fields.get("actions", codec.EMPTY_OBJECT)) or {}
        actions = {name: schema(action) for name, action in actions.items()}
        if "properties" in fields:
            if UPDATE not in actions:
                actions[UPDATE] = _UPDATE_ACTION
            if _is_zod(fields["properties"]):
                del fields["properties"]
        self._remember(raw, has_own_update=actions.get(UPDATE) not in (None, _UPDATE_ACTION))
        return _raw({**fields, "type": msgspec.Raw(b'"component"'), "actions": _raw(actions)})

    def _remember(self, raw: msgspec.Raw, *, has_own_update: bool) -> None:
        try:
            ident = codec.decode(_component_decoder, codec.raw_bytes(raw), InvalidFrame).id
        except InvalidFrame:
            return  # it will be left out
        if len(self._components) < MAX_CAPABILITIES:
            self._components.add(ident)
            if has_own_update:
                self._own_updates.add(ident)

    # --- commands to components ---

    def _component_command(self, frame: CommandFrame) -> bytes:
        at, ident = timestamp(self._clock()), frame.request_id
        if frame.action == UPDATE and frame.target not in self._own_updates:
            return codec.encode(
                _UpdateComponent(frame.target, at, frame.parameters, ident, frame.timeout_ms, frame.agent)
            )
        return codec.encode(
            _CallAction(frame.target, at, frame.action, frame.parameters, ident, frame.timeout_ms, frame.agent)
        )

    def _component_result(self, data: bytes) -> Sequence[Said]:
        """Return the answer of the command that a component runs. One that cannot be read fails that command."""
        component = identified(data).correlation_id
        if not isinstance(component, str) or not self._queues.is_running(component):
            return ()
        try:
            result = codec.decode(_result_decoder, data, InvalidFrame)
            check_frame(_response("-", result))
        except InvalidFrame as exc:
            sentence = f"the application's answer cannot be read: {exc.message}"
            result = _Result(component, False, error=ClientFault(sentence, INVALID_RESPONSE))
        return self._ended(component, result)

    def _component_fault(self, data: bytes) -> Sequence[Said]:
        component = self._queues.oldest
        if component is None:
            return ()
        try:
            fault = codec.decode(_fault_decoder, data, InvalidFrame)
        except InvalidFrame:
            fault = ClientFault()
        return self._ended(component, _Result(component, False, error=fault))

    def _ended(self, component: str, result: _Result) -> Sequence[Said]:
        wire_id, following = self._queues.end(component)
        answer = () if wire_id is None else (_response(wire_id, result),)
        return (*answer, *(() if following is None else (Reply(following),)))


class _ComponentQueues:
    """The commands of each component: the one that runs, and those that wait for it."""

    def __init__(self) -> None:
        self._running: dict[str, str | None] = {}  # the oldest first; None if it is cancelled
        self._waiting: dict[str, deque[tuple[str, bytes]]] = {}
        self.waiting_bytes = 0

    def require_room(self, size: int) -> None:
        """Raise `Overloaded` if a command of so many bytes may not wait."""
        if self.waiting_bytes and self.waiting_bytes + size > MAX_WAITING_BYTES:
            raise Overloaded("too many commands wait for components of this client; try again in a moment")

    @property
    def oldest(self) -> str | None:
        """The component that has run its command for longest."""
        return next(iter(self._running), None)

    def is_running(self, component: str) -> bool:
        """Tell whether a component has a command."""
        return component in self._running

    def begin(self, component: str, wire_id: str, data: bytes) -> bytes | None:
        """Return a command to send now; None if it waits."""
        if component not in self._running:
            self._running[component] = wire_id
            return data
        self._waiting.setdefault(component, deque()).append((wire_id, data))
        self.waiting_bytes += len(data)
        return None

    def end(self, component: str) -> tuple[str | None, bytes | None]:
        """Return the command that has ended, None if it was cancelled; and the next one to send, if one waits."""
        ended, line = self._running.pop(component), self._waiting.get(component)
        if not line:
            return ended, None
        self._running[component], data = line.popleft()
        self._forget(component, data)
        return ended, data

    def cancel(self, wire_id: str) -> bool:
        """Note that nobody waits for a command any more; return whether the application has it."""
        for component, running in self._running.items():
            if running == wire_id:
                self._running[component] = None
                return True
        for component, line in self._waiting.items():
            for entry in line:
                if entry[0] == wire_id:
                    line.remove(entry)
                    self._forget(component, entry[1])
                    return False
        return True

    def _forget(self, component: str, data: bytes) -> None:
        self.waiting_bytes -= len(data)
        if not self._waiting[component]:
            del self._waiting[component]


def _response(wire_id: str, result: _Result) -> ResponseFrame:
    status = "success" if result.success else "error"
    return ResponseFrame(wire_id, status, result.data, None if result.success else result.error)


_Cleaning = Callable[[msgspec.Raw], msgspec.Raw]


def _function(raw: msgspec.Raw, schema: _Cleaning) -> msgspec.Raw:
    """Return a function as others offer it, with a schema that says something."""
    fields = _fields_of(schema(raw))
    return raw if fields is None else _raw({**fields, "type": msgspec.Raw(b'"function"')})


def _unchanged(raw: msgspec.Raw) -> msgspec.Raw:
    """Return a function or an action of a message without any of zod's: most have none, and lists may be long."""
    return raw


def _without_zod(raw: msgspec.Raw) -> msgspec.Raw:
    """Return a function or action with a schema for any object, if its own was a zod schema and lost its fields."""
    fields = _fields_of(raw)
    if fields is None or not _is_zod(fields.get("parameters", _ANY_OBJECT)):
        return raw
    return _raw({**fields, "parameters": _ANY_OBJECT})


def _is_zod(raw: msgspec.Raw) -> bool:
    try:
        left = codec.decode(_zod_decoder, codec.raw_bytes(raw), InvalidFrame)
    except InvalidFrame:
        return False
    return left.definition is not None or left.standard is not None


def _fields_of(raw: msgspec.Raw) -> dict[str, msgspec.Raw] | None:
    """Return the fields of an object; None for anything else."""
    try:
        return codec.decode(_fields_decoder, codec.raw_bytes(raw), InvalidFrame)
    except InvalidFrame:
        return None


def _raw(fields: dict[str, msgspec.Raw]) -> msgspec.Raw:
    return msgspec.Raw(codec.encode(fields))
