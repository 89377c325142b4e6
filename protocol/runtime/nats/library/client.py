"""nats-py's client, corrected in four ways.

- nats-py closes for good after every error of the server, except a permission violation. But the server keeps the
  connection when it refuses a subscription too many, and a login that expired can be renewed with a fresh token
  (observed with nats-server 2.15). Both go on here.
- If a header comes twice, nats-py keeps only the last value. We keep both, so that a message with two tokens is
  refused instead of read by one of them.
- If a pong comes after its flush was given up, nats-py stops reading the connection, with a traceback. Two seconds
  later its pings notice. We pass over such a pong.
- nats-py's parser knows no message whose reply subject contains a vertical tab or a form feed, and ends the connection
  over it. The server passes such messages on. We read them.
"""

import re

import nats.errors
import nats.protocol.parser
from nats.aio.client import Client

from protocol.runtime.nats.library.subscriptions import HandOver, begin_credits_anew
from protocol.runtime.nats.library.transport import CuttingTransport

_LINE_BREAK = b"\r\n"
_TOO_MANY = "maximum subscriptions exceeded"
_EXPIRED = "authentication expired"
_WORD = rb"([^ \t\r\n]+)[ \t]+"
nats.protocol.parser.MSG_RE = re.compile(rb"\AMSG[ \t]+%b(\d+)[ \t]+(%b)?(\d+)\r\n" % (_WORD, _WORD))
nats.protocol.parser.HMSG_RE = re.compile(rb"\AHMSG[ \t]+%b(\d+)[ \t]+(%b)?(\d+)[ \t]+(\d+)\r\n" % (_WORD, _WORD))


class TooManySubscriptionsError(nats.errors.Error):
    """The server takes no more subscriptions of this connection. It does not say which one it has refused."""


class LastingClient(Client):
    """A client for `nats://` and `tls://` servers that survives a refused subscription and an expired login."""

    async def _process_err(self, err_msg: str) -> None:
        if _TOO_MANY in err_msg:
            await self._error_cb(TooManySubscriptionsError())
        elif _EXPIRED in err_msg.lower():
            # The token has expired: reconnect with a fresh one.
            await self._process_op_err(nats.errors.Error(f"nats: {err_msg}"))
        else:
            await super()._process_err(err_msg)

    async def _process_connect_init(self) -> None:
        await super()._process_connect_init()
        # The library repeats the subscriptions next; an attempt before may have failed there.
        begin_credits_anew(self)

    async def _process_pong(self) -> None:
        if not self._pongs or not self._pongs[0].done():
            await super()._process_pong()
            return
        del self._pongs[0]
        self._pings_outstanding = 0

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        try:
            await super()._process_msg(sid, subject, reply, data, headers)
        except (ValueError, IndexError) as exc:
            # Odd headers, or a reply that is not UTF-8: the reading must go on.
            queue = getattr(self._subs.get(sid), "_pending_queue", None)
            if isinstance(queue, HandOver) and queue.credit is not None:
                # Count an unreadable message, too, because the server has counted it.
                queue.count(queue.credit)
            await self._error_cb(exc)

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        return parse_headers(raw)


def parse_headers(raw: bytes) -> dict[str, str]:
    """Parse header lines (ADR-4). If a name comes twice, its values are joined by a line break."""
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
