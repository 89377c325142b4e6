"""Messages that the library has read: their handler gets those that are not dropped, and all are counted."""

from typing import cast

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from protocol.runtime.nats.library.credit import Credit
from protocol.runtime.nats.library.subscriptions import HandOver


class _Credit:
    """Credit that is never used up."""

    received = 0
    renew_at = 1000


def message(subject: str, headers: dict[str, str] | None = None) -> Msg:
    return Msg(Client(), subject, "", b"{}", headers)


@pytest.mark.parametrize(
    ("headers", "block"),
    [
        (None, b"NATS/1.0\r\n\r\n"),
        ({"Authorization": "Bearer x", "a": "1"}, b"NATS/1.0\r\nAuthorization: Bearer x\r\na: 1\r\n\r\n"),
    ],
)
def test_dropped_message_is_counted_and_not_handled(headers: dict[str, str] | None, block: bytes) -> None:
    seen: list[tuple[bytes, bytes]] = []
    handled: list[str] = []

    def drops(subject: bytes, block: bytes) -> bool:
        seen.append((subject, block))
        return subject == b"flooded"

    queue = HandOver(lambda msg: handled.append(msg.subject), drops)
    credit = _Credit()
    queue.credit = cast("Credit", credit)
    for subject in ("flooded", "calm"):
        queue.put_nowait(message(subject, headers))
    assert seen == [(b"flooded", block), (b"calm", block)]
    assert (handled, credit.received) == (["calm"], 2)
