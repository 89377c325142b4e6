"""Who listens for the progress of which command.

Progress comes on the caller's one subscription for replies, under a token that tells it from a reply. So the order in
which the gateway spoke is kept: all that came before the answer is heard before it, and nothing after it.
"""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

from nats.aio.msg import Msg

from protocol.errors import Internal
from protocol.messages import ProgressMessage, decode_progress

PROGRESS_MARK = "p"  # no token of a reply, which is a hexadecimal number, begins with it

log = logging.getLogger(__name__)
OnProgress = Callable[[ProgressMessage], None]


class _Listener(NamedTuple):
    answer: asyncio.Future[Msg]
    on_progress: OnProgress


class Listeners:
    """The listeners of one caller, whose subscription takes every subject one token below `inbox`."""

    def __init__(self, inbox: str) -> None:
        self._inbox = inbox
        self._numbers = itertools.count()
        self._listening: dict[str, _Listener] = {}

    @contextlib.contextmanager
    def listening(self, answer: asyncio.Future[Msg], on_progress: OnProgress) -> Iterator[str]:
        """Give the subject for progress, and call `on_progress` with what comes there until `answer` is done."""
        token = f"{PROGRESS_MARK}{next(self._numbers):x}"
        self._listening[token] = _Listener(answer, on_progress)
        try:
            yield f"{self._inbox}.{token}"
        finally:
            del self._listening[token]

    def hear(self, token: str, data: bytes) -> None:
        """Pass on what came under a token, unless nobody listens any more."""
        listener = self._listening.get(token)
        if listener is None or listener.answer.done():
            return
        try:
            message = decode_progress(data)
        except Internal as exc:
            log.warning("ignored what is no progress of a command: %s", exc.message)
            return
        listener.on_progress(message)
