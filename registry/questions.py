"""Admits agents' questions to a registry, and orders them, so that nobody's questions stop its other work.

Messages without a good token are dropped unread above a rate. Questions of known agents are answered in turns: tenants
in turn, then their agents. The waiting room is shared in the same way. An agent that has used up its share gets up to
200 refusals a second; its questions above that are dropped.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from nats.aio.msg import Msg

from protocol.access import Principal
from protocol.errors import BridgeError, Overloaded, PayloadTooLarge, Unauthenticated
from protocol.runtime.connections.agent_turns import MESSAGE_BYTES, AgentTurns
from protocol.runtime.connections.turns import Share, Turns, take_turn
from protocol.runtime.log_throttle import LogThrottle
from protocol.runtime.nats.library.subscriptions import Drops
from protocol.runtime.nats.responder import Accepting
from protocol.runtime.sieve import Sieve
from protocol.runtime.tokens import Standing, Verifier, token_of
from protocol.runtime.unverified_messages import UnverifiedMessages
from protocol.subjects import ClientAddress, parse_registry

MAX_WAITING = 512  # small questions
QUESTION_SECONDS = 0.0001  # of the event loop, besides the answer itself
MAX_QUESTION_BYTES = 64 * 1024
LOG_SECONDS = 1.0
REGISTRY = "registry"  # in the place of the client, for the rates of messages without a good token

log = logging.getLogger(__name__)
R = TypeVar("R")


class Questions:
    """The questions of agents to one registry."""

    def __init__(self, verifier: Verifier, on_dropped: Callable[[str, int], None]) -> None:
        loop = asyncio.get_running_loop()
        self._verifier = verifier
        self._on_dropped = on_dropped
        self._clock = loop.time
        self._turns = Turns(loop.call_soon, time.perf_counter)
        self._agents = AgentTurns(self._turns, loop.call_soon, MAX_WAITING * MESSAGE_BYTES)
        self._unverified = UnverifiedMessages()
        self._overloaded = 0
        self._sieve = Sieve(verifier, loop.time, self._on_sieved)
        self._dropped_lines = LogThrottle(LOG_SECONDS, loop.time)

    @property
    def drops(self) -> Drops:
        """The filter that drops questions of a flood before they are decoded."""
        return self._sieve.drops

    def taking(self, endpoint: Accepting) -> Callable[[Msg], None]:
        """Return the handler for an endpoint's questions: those of known agents in turns, others up to a rate."""
        return lambda msg: self._take(endpoint, msg)

    def _take(self, endpoint: Accepting, msg: Msg) -> None:
        token, standing = None, Standing.BAD
        with contextlib.suppress(Unauthenticated):  # the message has two tokens
            token = token_of(msg)
            standing = self._verifier.standing(token)
        asker = self._verifier.known(token)
        try:
            if standing is Standing.GOOD and asker is not None:
                self._take_known(endpoint, msg, token, (asker.tenant, asker.sub))
            elif self._admits(msg, token, standing):
                endpoint.accept(msg)
        except BridgeError as exc:
            endpoint.refuse(msg, exc)

    def _take_known(self, endpoint: Accepting, msg: Msg, token: str | None, share: Share) -> None:
        """Take a known agent's question. Raises `Overloaded` if it has used up its share of waiting questions.

        Above 200 such refusals a second its questions are dropped.
        """
        if self._agents.at_once(share):
            endpoint.accept(msg)
            return

        def act() -> None:
            self._turns.charge(QUESTION_SECONDS)
            endpoint.accept(msg)

        try:
            self._agents.later(share, len(msg.data), act)
        except Overloaded:
            if self._agents.answers_refusal(share, self._clock()):
                raise
            self._overloaded += 1
            self._sieve.close(msg.subject, token)
            self._note_dropped(msg)

    def _admits(self, msg: Msg, token: str | None, standing: Standing) -> bool:
        """Tell whether to verify a question with an unknown token. If not, it gets no answer.

        Raises `Unauthenticated` for a bad token, up to a rate.
        """
        if standing is not Standing.BAD:
            claim = self._verifier.claimed(token) if standing is Standing.NEW else None
            admitted = self._unverified.admits(standing, _asked(msg), self._clock(), claim)
        elif admitted := self._unverified.admits_refusal(_asked(msg), self._clock()):
            self._verifier.verify_now(token)  # raises the reason
        else:
            self._sieve.close(msg.subject)
        if not admitted:
            self._note_dropped(msg)
        return admitted

    def _note_dropped(self, msg: Msg) -> None:
        self._on_dropped(_asked(msg).tenant, 1)
        if count := self._dropped_lines.due():
            log.warning("dropped %d questions of too many, the last on %s", count, msg.subject)

    async def asker(self, msg: Msg) -> Principal | None:
        """Return the asking principal. Raises `Unauthenticated` for a bad token, or above a rate returns None."""
        try:
            return await self._verifier.verify(token_of(msg))
        except Unauthenticated:
            if self._unverified.admits_refusal(_asked(msg), self._clock()):
                raise
            return None

    async def answer(self, asker: Principal, msg: Msg, work: Callable[[], R]) -> R:
        """Call `work` in the agent's turn, and return its result. Raises `PayloadTooLarge` above 64 KiB."""
        if len(msg.data) > MAX_QUESTION_BYTES:
            raise PayloadTooLarge(f"a question may have {MAX_QUESTION_BYTES} bytes")
        return await take_turn(self._turns, (asker.tenant, asker.sub), work)

    def counters(self) -> dict[str, int]:
        """Return the counters of `/metrics`: dropped questions since the start, and the used part of the queue."""
        return {
            "messagesDropped": self._unverified.dropped + self._sieve.dropped + self._overloaded,
            "sharesUsedPercent:questions": self._agents.used_percent,
        }

    def _on_sieved(self, subject: str, count: int) -> None:
        self._on_dropped(parse_registry(subject)[0], count)


def _asked(msg: Msg) -> ClientAddress:
    return ClientAddress(parse_registry(msg.subject)[0], REGISTRY)
