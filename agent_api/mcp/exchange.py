"""Passes one request through the library's handlers, in the era of its client.

In both eras a request comes here as one complete message, so any replica can serve it. The library checks parameters
and shapes results for the client's revision. HTTP, cancelling and streams are ours.
"""

import logging
from collections.abc import Mapping
from typing import Any

import anyio
from mcp.server.connection import Connection
from mcp.server.lowlevel import Server
from mcp.server.runner import modern_error_data, serve_one
from mcp.shared.dispatcher import CallOptions
from mcp.shared.exceptions import NoBackChannelError
from mcp.shared.inbound import (
    ERROR_CODE_HTTP_STATUS,
    InboundLadderRejection,
    classify_inbound_request,
    find_duplicated_routing_header,
)
from mcp.shared.jsonrpc_dispatcher import progress_token_from_params
from mcp.shared.message import ServerMessageMetadata
from mcp.shared.transport_context import TransportContext
from mcp_types import DEFAULT_NEGOTIATED_VERSION, HEADER_MISMATCH
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS

from agent_api.mcp.answers import AnswerWriter
from agent_api.mcp.callers import McpCaller, McpHead
from agent_api.mcp.messages import (
    RpcAnswer,
    RpcId,
    RpcMessage,
    error_message,
    fault_message,
    notification,
    result_message,
)
from agent_api.tools.texts import safe_line
from protocol.errors import BridgeError, Unavailable
from protocol.messages import ProgressMessage

HTTP_UNAVAILABLE = 503
MAX_PROGRESS_CHARS = 1024
_TRANSPORT = TransportContext(kind="streamable-http", can_send_request=False)

log = logging.getLogger(__name__)


def is_modern(version: str | None) -> bool:
    """Tell whether a request is of the modern era (no handshake). Unknown revisions are, and are refused there."""
    return version is not None and version not in HANDSHAKE_PROTOCOL_VERSIONS


class Exchange:
    """One request, with its notifications. It has the interface of the library's dispatch context."""

    transport = _TRANSPORT
    can_send_request = False

    def __init__(self, caller: McpCaller, message: RpcMessage, writer: AnswerWriter) -> None:
        assert isinstance(message.id, int | str)
        self.caller = caller
        self.arguments = message.arguments  # of a tool call, as JSON; the library gets none
        self.unseen: dict[str, Any] = {}  # the fields of the result that the library does not see
        self.is_sent = False  # whether a command was sent, so that its outcome is recorded elsewhere
        self.request_id: RpcId = message.id
        self.message_metadata = ServerMessageMetadata(request_context=self)
        self.cancel_requested = anyio.Event()
        self._writer = writer
        self._token = progress_token_from_params(message.params)
        self._progress = float("-inf")

    def heard(self, client_id: str, message: ProgressMessage) -> None:
        """Pass on a command's progress if the client asked for it. The number only grows."""
        if self._token is None or message.progress <= self._progress:
            return
        self._progress = message.progress
        params: dict[str, Any] = {"progressToken": self._token, "progress": message.progress}
        if message.total is not None:
            params["total"] = message.total
        if message.message is not None:
            params["message"] = safe_line(message.message, MAX_PROGRESS_CHARS)
        self.notify_now(notification("notifications/progress", params))

    def notify_now(self, message: bytes) -> None:
        """Write a notification when the caller has read the earlier ones."""
        self._writer.notify(message)

    async def notify(self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None) -> None:
        """Write a notification of the library."""
        self.notify_now(notification(method, None if params is None else dict(params)))

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Do nothing. It is never called, because progress comes from applications, through `heard()`."""
        raise NotImplementedError

    async def send_raw_request(
        self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None
    ) -> dict[str, Any]:
        """Refuse, because the client's answer might reach another replica."""
        raise NoBackChannelError(method)


async def serve_request(server: Server[Any], exchange: Exchange, message: RpcMessage, head: McpHead) -> RpcAnswer:
    """Return the answer to a request. Any exception becomes an error answer."""
    modern = is_modern(head.version)
    connection = _modern_connection(message, head) if modern else _legacy_connection(head)
    if isinstance(connection, InboundLadderRejection):
        status = ERROR_CODE_HTTP_STATUS.get(connection.code, 200)
        return error_message(exchange.request_id, connection.code, connection.message, connection.data, status)
    try:
        assert message.method is not None
        result = await serve_one(
            server, exchange, message.method, message.params, connection=connection, lifespan_state=None
        )
    except BridgeError as exc:
        return fault_message(exchange.request_id, exc, status=HTTP_UNAVAILABLE if isinstance(exc, Unavailable) else 200)
    except Exception as exc:
        error = modern_error_data(exc)  # it logs an exception that nobody expected
        status = ERROR_CODE_HTTP_STATUS.get(error.code, 200) if modern else 200
        return error_message(exchange.request_id, error.code, error.message, error.data, status)
    return result_message(exchange.request_id, result | exchange.unseen)


def _modern_connection(message: RpcMessage, head: McpHead) -> Connection | InboundLadderRejection:
    """Return a request's client information, or the reason for a refusal."""
    twice = find_duplicated_routing_header((name, "") for name in head.names)
    if twice is not None:
        return InboundLadderRejection(HEADER_MISMATCH, f"{twice} header appears more than once")
    found = classify_inbound_request({"method": message.method, "params": message.params}, headers=head.headers)
    if isinstance(found, InboundLadderRejection):
        return found
    return Connection.from_envelope(found.protocol_version, found.client_info, found.client_capabilities)


def _legacy_connection(head: McpHead) -> Connection:
    return Connection.from_envelope(head.version or DEFAULT_NEGOTIATED_VERSION, None, None)
