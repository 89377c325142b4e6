"""JSON-RPC 2.0 on `/mcp`: one message in a body, without batches."""

from typing import Any

import msgspec

from protocol import codec
from protocol.errors import BridgeError, InvalidRequest

INVALID_REQUEST, PARSE_ERROR, INTERNAL_ERROR, INVALID_PARAMS = -32600, -32700, -32603, -32602
CANCELLED_REQUEST = -32800  # the library's code for it in the older era
MAX_ID_CHARS = 128

RpcId = int | str


class RpcMessage(msgspec.Struct, frozen=True):
    """A request, a notification (without `id`), or a client's response (without `method`)."""

    jsonrpc: str
    method: str | None = None
    id: RpcId | msgspec.UnsetType | None = msgspec.UNSET
    params: dict[str, Any] | None = None

    @property
    def is_request(self) -> bool:
        """Whether it needs an answer."""
        return self.method is not None and self.id is not msgspec.UNSET


class RpcAnswer(msgspec.Struct, frozen=True):
    """An answer to a request, with its HTTP status if it is not part of a stream."""

    body: bytes
    status: int = 200


_decoder = msgspec.json.Decoder(RpcMessage)


def is_id(value: object) -> bool:
    """Tell whether a value can be the id of a request."""
    if isinstance(value, str):
        return len(value) <= MAX_ID_CHARS
    return isinstance(value, int) and not isinstance(value, bool)


def read_message(data: bytes) -> RpcMessage:
    """Decode a body. Raises `InvalidRequest` if it is not one message of JSON-RPC 2.0, or is a batch."""
    message = codec.decode(_decoder, data)
    if message.jsonrpc != "2.0":
        raise InvalidRequest("`jsonrpc`: must be 2.0")
    if message.is_request and not isinstance(message.id, int | str):
        raise InvalidRequest("`id`: must be a number or a text")
    if isinstance(message.id, str) and len(message.id) > MAX_ID_CHARS:
        raise InvalidRequest(f"`id`: at most {MAX_ID_CHARS} characters")
    return message


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
