"""The TCP connection under the NATS client, cut where the library would say goodbye to a server that cannot hear it.

When pings go unanswered the library closes the connection and waits until that is done before it tries the next
server. Over TLS a graceful close waits for the other side, thirty seconds for one that is frozen. What must arrive has
been flushed before any close that is meant to be graceful, so nothing is lost by cutting.
"""

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

    def close(self) -> None:
        """Cut the connection."""
        if self._io_writer is not None:
            self._io_writer.transport.abort()


def new_client() -> Client:
    """Return a client that uses this transport; for `nats://` and `tls://` servers."""
    client = Client()
    client._transport = CuttingTransport()  # noqa: SLF001  the library offers no way to choose it
    return client
