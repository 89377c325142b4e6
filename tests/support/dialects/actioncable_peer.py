"""The client's side of the ActionCable dialect, as its library writes it."""

from collections.abc import Sequence

import msgspec

from gateway.dialects.dialect import Dialect, Reply
from protocol.frames import ClientFrame, ConnectionLimits

IDENTIFIER = '{"channel":"AgentBridgeChannel"}'


def command(name: str, data: str | None = None, identifier: str = IDENTIFIER) -> bytes:
    fields = {"command": name, "identifier": identifier, "data": data}
    return msgspec.json.encode({field: value for field, value in fields.items() if value is not None})


def begin_actioncable(dialect: Dialect, client_id: str, limits: ConnectionLimits) -> Sequence[bytes]:
    """Open the session and subscribe; return all that is sent."""
    opening = list(dialect.opening(client_id, limits))
    replies = dialect.decode(command("subscribe"), text=True)
    return [*opening, *(reply.data for reply in replies if isinstance(reply, Reply))]


def write_actioncable(frame: ClientFrame) -> bytes:
    return command("message", msgspec.json.encode(frame).decode())


def write_unreadable_actioncable(request_id: str) -> bytes:
    return command("message", f'{{"type":"response","requestId":"{request_id}","status":"success","result":NaN}}')
