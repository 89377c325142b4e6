"""Whole answers, head and body in one write, past the HTTP server's way for answers in pieces.

That way takes two calls, looks through every header with regular expressions and makes a timer for the silence after
the answer: a sixth of the agent API's time when measured. An endpoint finds this one as an extension of its ASGI scope.
"""

from typing import Protocol

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

EXTENSION = "agentbridge.whole_answer"
_HEAD = b"content-type: application/json\r\ncache-control: no-store\r\ncontent-length: %d\r\n\r\n"


class WriteWhole(Protocol):
    """Writes whole answers on one connection."""

    def __call__(self, scope: Scope, status: int, body: bytes) -> bool:
        """Answer a request in JSON, without headers of its own; return whether the connection could take that."""


def write_whole(cycle: RequestResponseCycle, scope: Scope, status: int, body: bytes) -> bool:
    """Write an answer in one piece if `cycle` belongs to the request and the connection is in its ordinary state."""
    if cycle.scope is not scope or cycle.disconnected or cycle.response_started:
        return False
    if not cycle.keep_alive or cycle.flow.write_paused:
        return False
    content = [STATUS_LINE[status]]
    for name, value in cycle.default_headers:
        content += (name, b": ", value, b"\r\n")
    cycle.response_started, cycle.waiting_for_100_continue = True, False
    cycle.transport.write(b"".join((*content, _HEAD % len(body), body)))
    cycle.response_complete = True
    cycle.message_event.set()
    cycle.on_response()
    return True


def offered(scope: Scope) -> WriteWhole | None:
    """Return the server's own object for a request's answer, if it offers one."""
    return scope.get("extensions", {}).get(EXTENSION)  # type: ignore[no-any-return]


def withdraw(scope: Scope) -> None:
    """Have a request answered in pieces, for somebody adds headers to them."""
    scope.pop("extensions", None)
