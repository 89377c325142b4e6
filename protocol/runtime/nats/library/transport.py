"""The TCP connection of the NATS client, which is aborted instead of closed.

When pings go unanswered, nats-py closes the connection and waits for that before it tries the next server. Over TLS a
close waits for the other side, 30 seconds for a frozen one. An abort does not wait. It loses nothing, because we flush
before every graceful close.
"""

import socket
from typing import Any
from urllib.parse import ParseResult

from nats.aio.client import Client
from nats.aio.transport import TcpTransport


class CuttingTransport(TcpTransport):
    """A transport whose `close()` does not wait for the other side."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the library's has no annotations

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        """Connect. First abort the last attempt's connection, which the library forgets if the server sent nothing."""
        self.close()
        await super().connect(uri, buffer_size, connect_timeout)

    def __bool__(self) -> bool:
        """Return True, so that the library does not replace this transport by one of its own."""
        return True

    def writelines(self, payload: list[bytes]) -> None:
        """Write. Raises `ConnectionResetError` if the connection is lost.

        uvloop alone would raise `RuntimeError`, which nobody takes for a lost connection.
        """
        if self._io_writer is not None and self._io_writer.transport.is_closing():
            raise ConnectionResetError("the connection to NATS is lost")
        super().writelines(payload)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Abort the connection."""
        if self._io_writer is not None:
            self._io_writer.transport.abort()


def abandon(client: Client) -> None:
    """Abort a client's socket, if its own `close()` hangs or would report the connection as closed for good."""
    transport = client._transport  # noqa: SLF001  the library offers no way to its socket
    if transport:
        transport.close()


def give_up_after(client: Client, timeout_ms: int) -> None:
    """Let the kernel break the connection if data stays unacknowledged for `timeout_ms`. Linux only."""
    writer = getattr(client._transport, "_io_writer", None)  # noqa: SLF001
    sock = writer.get_extra_info("socket") if writer is not None else None
    if sock is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)


def peer_address(client: Client) -> str | None:
    """Return the server's IP address, or None if the connection has just broken."""
    transport: Any = client._transport  # noqa: SLF001
    peer = transport._io_writer.get_extra_info("peername")  # noqa: SLF001
    return str(peer[0]).partition("%")[0] if peer else None  # a link-local IPv6 address carries its zone


def knows_its_users(client: Client) -> bool:
    """Tell whether the server authenticates connections, by users of any kind or by certificates."""
    info = client._server_info  # noqa: SLF001  there is no public attribute
    return bool(info.get("auth_required") or info.get("tls_verify"))
