"""The client's side of the original SDK's form: results in its own frames, all else in the native ones."""

from collections.abc import Sequence

import msgspec

from gateway.dialects.dialect import Dialect, Reply
from gateway.dialects.published_sdk import PublishedSdk
from protocol.frames import ClientFrame, ConnectionLimits, ResponseFrame, fault_of

REGISTERED = {"type": "register_capabilities", "id": "m1", "functions": [{"name": "add"}], "components": []}


def make_published_sdk() -> PublishedSdk:
    """Return the dialect of a client, whose clock stands still."""
    return PublishedSdk(lambda: 0.0)


def begin_published_sdk(dialect: Dialect, client_id: str, limits: ConnectionLimits) -> Sequence[bytes]:
    """Open the session and register; return all that is sent."""
    opening = list(dialect.opening(client_id, limits))
    replies = dialect.decode(msgspec.json.encode(REGISTERED), text=True)
    return [*opening, *(reply.data for reply in replies if isinstance(reply, Reply))]


def write_published_sdk(frame: ClientFrame) -> bytes:
    if not isinstance(frame, ResponseFrame):
        return msgspec.json.encode(frame)
    result = {"type": "function_result", "id": "m2", "correlationId": frame.request_id}
    if frame.status == "success":
        return msgspec.json.encode({**result, "success": True, "data": frame.result})
    return msgspec.json.encode({**result, "success": False, "error": fault_of(frame).message})


def write_unreadable_published_sdk(request_id: str) -> bytes:
    return b'{"type":"function_result","correlationId":"%b","success":true,"data":NaN}' % request_id.encode()
