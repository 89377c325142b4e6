"""What endless answers have in common: a reader that stalls is noticed, and its token ends them."""

import asyncio
import logging
import time

from starlette.types import Send

from protocol.access import Principal
from protocol.errors import BridgeError, Internal, Unauthenticated

log = logging.getLogger(__name__)


async def write(send: Send, data: bytes, *, more: bool = True) -> None:
    """Write, and wait where the other side does not read.

    The turn's end is waited for because only then what was written in it reaches the socket, and shows whether it is
    taken; a reader with much to catch up on would otherwise have all of it buffered.
    """
    await send({"type": "http.response.body", "body": data, "more_body": more})
    await asyncio.sleep(0)


def valid_seconds(principal: Principal) -> float:
    """Return for how long the token is still valid; raise `Unauthenticated` where it has expired."""
    seconds = principal.expires_at - time.time()
    if seconds <= 0:
        raise Unauthenticated("the token has expired; get a fresh one and resume from the last id")
    return seconds


def told(error: Exception, what: str) -> BridgeError:
    """Return what a reader of `what` is told of an error; what is not one of ours goes to the log instead."""
    if isinstance(error, BridgeError):
        return error
    log.error("a reader of %s failed", what, exc_info=error)
    return Internal(f"reading {what} failed; the log of the process says why")
