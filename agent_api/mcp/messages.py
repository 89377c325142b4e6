"""JSON-RPC 2.0 as it travels on `/mcp`: one message in a body, without batches.

The `arguments` of a tool call stay JSON. As Python objects, which the library holds until the call has its result, they
would take up to 44 times as much memory. The rest of a message is parsed. So it is bounded, and counts `PARSED_FACTOR`
times its bytes against the agent's share for as long as the request takes.
"""

from typing import Any

import msgspec

from protocol import codec
from protocol.errors import BridgeError, InvalidRequest, PayloadTooLarge

INVALID_REQUEST, PARSE_ERROR, INTERNAL_ERROR, INVALID_PARAMS = -32600, -32700, -32603, -32602
CANCELLED_REQUEST = -32800  # the library's code for it in the older era
MAX_ID_CHARS = 128
MAX_PARSED_BYTES = 64 * 1024
PARSED_FACTOR = 48  # `[[[[]]]]` grows most: a list has 2 bytes, and 88 in memory
CALL, ARGUMENTS = "tools/call", "arguments"

RpcId = int | str


class RpcMessage(msgspec.Struct, frozen=True):
    """A request, a notification (without `id`), or a client's response (without `method`).

    `arguments` are a tool call's. `parsed_bytes` is the size of `params` as they were sent.
    """

    method: str | None = None
    id: RpcId | msgspec.UnsetType | None = msgspec.UNSET
    params: dict[str, Any] | None = None
    arguments: msgspec.Raw = codec.EMPTY_OBJECT
    parsed_bytes: int = 0

    @property
    def is_request(self) -> bool:
        """Whether it needs an answer."""
        return self.method is not None and self.id is not msgspec.UNSET


class _Envelope(msgspec.Struct, frozen=True):
    jsonrpc: str
    method: str | None = None
    id: RpcId | msgspec.UnsetType | None = msgspec.UNSET
    params: dict[str, msgspec.Raw] | None = None
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class RpcAnswer(msgspec.Struct, frozen=True):
    """An answer to a request, with its HTTP status if it is not part of a stream."""

    body: bytes
    status: int = 200


_decoder = msgspec.json.Decoder(_Envelope)
_NULL = msgspec.Raw(b"null")


def is_id(value: object) -> bool:
    """Tell whether a value can be the id of a request."""
    if isinstance(value, str):
        return len(value) <= MAX_ID_CHARS
    return isinstance(value, int) and not isinstance(value, bool)


def read_message(data: bytes) -> RpcMessage:
    """Read a body.

    Raises `InvalidRequest` if it is not one message of JSON-RPC 2.0, or a batch, and `PayloadTooLarge` if it has more
    than `MAX_PARSED_BYTES` of params besides a tool call's arguments.
    """
    envelope = codec.decode(_decoder, data)
    _require_sound(envelope)
    params, arguments = envelope.params, codec.EMPTY_OBJECT
    if params is not None and envelope.method == CALL and codec.is_object(params.get(ARGUMENTS, _NULL)):
        arguments = params.pop(ARGUMENTS)
    size = sum(len(name) + len(memoryview(value)) for name, value in (params or {}).items())
    if size > MAX_PARSED_BYTES:
        sentence = f"`params`: {size} bytes besides a tool's arguments, but at most {MAX_PARSED_BYTES} are accepted"
        raise PayloadTooLarge(sentence)
    parsed = None if params is None else {name: codec.decode_value(value) for name, value in params.items()}
    return RpcMessage(envelope.method, envelope.id, parsed, arguments, size)


def _require_sound(envelope: _Envelope) -> None:
    """Raise `InvalidRequest` unless this is a request, a notification or a response, with an id that can be kept."""
    if envelope.jsonrpc != "2.0":
        raise InvalidRequest("`jsonrpc`: must be 2.0")
    has_id = envelope.id is not msgspec.UNSET
    is_response = has_id and not (envelope.result is envelope.error is msgspec.UNSET)
    if envelope.method is None and not is_response:
        raise InvalidRequest("the message is neither a request nor a notification (`method`), nor a response")
    if envelope.method is not None and has_id and not isinstance(envelope.id, int | str):
        raise InvalidRequest("`id`: must be a number or a text")
    if isinstance(envelope.id, str) and len(envelope.id) > MAX_ID_CHARS:
        raise InvalidRequest(f"`id`: at most {MAX_ID_CHARS} characters")


def fault_code(error: InvalidRequest) -> int:
    """Return the code for a body that cannot be read: -32700 if it is no JSON, -32600 if it is no message."""
    cause = error.__cause__
    return INVALID_REQUEST if cause is None or isinstance(cause, msgspec.ValidationError) else PARSE_ERROR


def result_message(ident: RpcId, result: Any, status: int = 200) -> RpcAnswer:
    """Return the answer to a request that succeeded."""
    return RpcAnswer(codec.encode({"jsonrpc": "2.0", "id": ident, "result": result}), status)


def error_message(ident: RpcId | None, code: int, message: str, data: Any = None, status: int = 200) -> RpcAnswer:
    """Return the answer to a request that failed."""
    error = {"code": code, "message": message} | ({} if data is None else {"data": data})
    return RpcAnswer(codec.encode({"jsonrpc": "2.0", "id": ident, "error": error}), status)


def fault_message(ident: RpcId | None, error: BridgeError, code: int = INTERNAL_ERROR, status: int = 200) -> RpcAnswer:
    """Return the answer for one of our errors. Its code is in `data`."""
    return error_message(ident, code, error.message, error.body(), status)


def notification(method: str, params: dict[str, Any] | None = None) -> bytes:
    """Return a notification."""
    return codec.encode({"jsonrpc": "2.0", "method": method} | ({} if params is None else {"params": params}))
