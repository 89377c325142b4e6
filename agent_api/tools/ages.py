"""Agrees with the other agent APIs on the age of a tool, if another tool wants its name.

The age of a tool is that of its oldest client, even after that has gone. A process that started later has not seen that
client, and would give the name to another tool. Then a call there could reach another application than at the replica
that listed the tool. So a process with two tools for one name asks the others, once for each such tool, and takes the
oldest answer.
"""

import asyncio
import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec
from nats.aio.msg import Msg

from agent_api.tools.news import ToolNews
from protocol import codec, subjects
from protocol.errors import BridgeError
from protocol.runtime.nats.connection import Connection

ANSWER_SECONDS = 0.15
MAX_ASKED = 256  # in one message
MAX_QUESTIONS = 40 * MAX_ASKED

log = logging.getLogger(__name__)
_Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
_Instant = Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")]


class AgesRequest(msgspec.Struct, frozen=True):
    """A question for the ages of a tenant's tools, by their digests."""

    tenant: str
    digests: Annotated[list[_Digest], msgspec.Meta(max_length=MAX_ASKED)]


_requests = msgspec.json.Decoder(AgesRequest)
_ages = msgspec.json.Decoder(dict[_Digest, _Instant])


class ToolAges:
    """Asks the other agent APIs, and answers them."""

    def __init__(self, connection: Connection, news: ToolNews) -> None:
        self._connection = connection
        self._news = news
        self._inbox = connection.new_inbox()
        self._asked: dict[str, dict[str, str]] = {}
        self._numbers = itertools.count()

    async def start(self) -> None:
        """Subscribe to questions and answers."""
        await self._connection.subscribe_directly(subjects.API_TOOL_AGES, self._answer)
        await self._connection.subscribe_directly(f"{self._inbox}.*", self._hear)

    async def ask(self, tenant: str, digests: Sequence[str]) -> Mapping[str, str]:
        """Return since when the others know these tools; nothing if none does. Raises `Unavailable` without NATS.

        At most `MAX_QUESTIONS` tools are asked for, in as many messages as they take.
        """
        reply = f"{self._inbox}.{next(self._numbers)}"
        self._asked[reply] = {}
        try:
            for first in range(0, min(len(digests), MAX_QUESTIONS), MAX_ASKED):
                request = codec.encode(AgesRequest(tenant, list(digests[first : first + MAX_ASKED])))
                await self._connection.publish(subjects.API_TOOL_AGES, request, reply=reply)
            await asyncio.sleep(ANSWER_SECONDS)
        finally:
            found = self._asked.pop(reply)
        return found

    def _answer(self, msg: Msg) -> None:
        try:
            request = codec.decode(_requests, msg.data)
        except BridgeError as exc:
            log.warning("a message on %s is not ours: %s", msg.subject, exc.message)
            return
        tenant = self._news.tenants.get(request.tenant)
        known = {} if tenant is None else tenant.tools.ages(request.digests)
        if known and subjects.is_safe_reply(msg.reply):
            self._connection.publish_now(msg.reply, codec.encode(known))

    def _hear(self, msg: Msg) -> None:
        """Keep the oldest of the answers. Our own is among them, and changes nothing."""
        found = self._asked.get(msg.subject)
        if found is not None:
            for digest, since in codec.decode(_ages, msg.data).items():
                found[digest] = min(since, found.get(digest, since))
