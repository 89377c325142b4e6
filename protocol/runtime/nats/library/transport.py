"""The TCP connection under the NATS client, cut where the library would say goodbye to a server that cannot hear it.

When pings go unanswered the library closes the connection and waits until that is done before it tries the next
server. Over TLS a graceful close waits for the other side, thirty seconds for one that is frozen. What must arrive has
been flushed before any close that is meant to be graceful, so nothing is lost by cutting.
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
        """Connect, and first cut a connection whose server took it and then said nothing: the library forgets those."""
        self.close()
        await super().connect(uri, buffer_size, connect_timeout)

    def __bool__(self) -> bool:
        """Tell the library that it has a transport, so that it does not make one of its own."""
        return True

    def writelines(self, payload: list[bytes]) -> None:
        """Write; raise `ConnectionResetError` if the connection is lost, in the words of every event loop.

        uvloop says `RuntimeError`, which the library's `close()` hands on and nobody takes for a loss.
        """
        if self._io_writer is not None and self._io_writer.transport.is_closing():
            raise ConnectionResetError("the connection to NATS is lost")
        super().writelines(payload)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Cut the connection."""
        if self._io_writer is not None:
            self._io_writer.transport.abort()


def abandon(client: Client) -> None:
    """Close the socket of a client whose own `close()` does not end, or would call that the end of everything."""
    transport = client._transport  # noqa: SLF001  the library offers no way to its socket
    if transport:
        transport.close()


def give_up_after(client: Client, timeout_ms: int) -> None:
    """Have the kernel give up on unacknowledged data after so many milliseconds, if it can (Linux)."""
    writer = getattr(client._transport, "_io_writer", None)  # noqa: SLF001
    sock = writer.get_extra_info("socket") if writer is not None else None
    if sock is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)


def peer_address(client: Client) -> str | None:
    """Return the IP address that the connection leads to, whatever name found it; None if it has just broken."""
    transport: Any = client._transport  # noqa: SLF001
    peer = transport._io_writer.get_extra_info("peername")  # noqa: SLF001
    return str(peer[0]).partition("%")[0] if peer else None  # a link-local IPv6 address carries its zone


def knows_its_users(client: Client) -> bool:
    """Tell whether the server asks who connects: by users of any kind, or by certificates alone."""
    info = client._server_info  # noqa: SLF001  the library tells nothing of it
    return bool(info.get("auth_required") or info.get("tls_verify"))
