"""Passes progress to the listener of its command.

Progress and answers come on one subscription, under different tokens. So the gateway's order is kept: the listener gets
all progress before the answer, and none after it.
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


class _ProgressListener(NamedTuple):
    answer: asyncio.Future[Msg]
    on_progress: OnProgress


class ProgressListeners:
    """The listeners of one caller, whose subscription takes every subject one token below `inbox`."""

    def __init__(self, inbox: str) -> None:
        self._inbox = inbox
        self._numbers = itertools.count()
        self._listening: dict[str, _ProgressListener] = {}

    @contextlib.contextmanager
    def listening(self, answer: asyncio.Future[Msg], on_progress: OnProgress) -> Iterator[str]:
        """Give the subject for progress, and call `on_progress` for each message there until `answer` is done."""
        token = f"{PROGRESS_MARK}{next(self._numbers):x}"
        self._listening[token] = _ProgressListener(answer, on_progress)
        try:
            yield f"{self._inbox}.{token}"
        finally:
            del self._listening[token]

    def hear(self, token: str, data: bytes) -> None:
        """Pass on the progress that came under a token, if somebody still listens."""
        listener = self._listening.get(token)
        if listener is None or listener.answer.done():
            return
        try:
            message = decode_progress(data)
        except Internal as exc:
            log.warning("ignored a malformed progress message: %s", exc.message)
            return
        listener.on_progress(message)
