"""The library's client, which goes on where the library would close for good, and loses no header.

The server refuses one subscription too many alone and keeps the connection, and a login ends with its token (tried with
nats-server 2.15). The library takes every error but a lacking permission for the end, and closes the connection for
good. Of a header that comes twice it keeps the last value alone, so that nobody could see that a message brings two
tokens.
"""

import nats.errors
from nats.aio.client import Client

from protocol.runtime.nats.library.transport import CuttingTransport

_LINE_BREAK = b"\r\n"
_TOO_MANY = "maximum subscriptions exceeded"
_EXPIRED = "authentication expired"


class TooManySubscriptionsError(nats.errors.Error):
    """The server took no more subscriptions of this connection; it does not say which one it has refused."""


class LastingClient(Client):
    """A client for `nats://` and `tls://` servers, which tells its error callback of a subscription too many."""

    async def _process_err(self, err_msg: str) -> None:
        if _TOO_MANY in err_msg:
            await self._error_cb(TooManySubscriptionsError())
        elif _EXPIRED in err_msg.lower():  # a fresh token leads in again
            await self._process_op_err(nats.errors.Error(f"nats: {err_msg}"))
        else:
            await super()._process_err(err_msg)

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        return parse_headers(raw)


def parse_headers(raw: bytes) -> dict[str, str]:
    """Parse lines of headers (ADR-4). The values of a name that comes twice stand in one text, a line each."""
    found: dict[str, str] = Client._parse_header_lines(raw)  # noqa: SLF001
    lines = raw.split(_LINE_BREAK)
    if len(found) + 2 >= len(lines):  # the block ends with an empty line, which makes two empty pieces
        return found
    all_values: dict[str, str] = {}
    for line in lines:
        for name, value in Client._parse_header_lines(line).items():  # noqa: SLF001
            all_values[name] = f"{all_values[name]}\n{value}" if name in all_values else value
    return all_values


def new_client() -> Client:
    """Return a client that is not connected yet."""
    client = LastingClient()
    client._transport = CuttingTransport()  # noqa: SLF001  the library offers no way to choose it
    return client
