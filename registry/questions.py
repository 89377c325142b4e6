"""Which questions of agents a registry answers, and in which order, so that nobody's questions stop its other work.

Messages without a good token are dropped above a rate, unread. Questions of known agents wait in turns, tenants first
and then their agents. How many may wait is shared in the same way. An agent that asks more is told so up to 200 times
a second, and its questions above that are dropped, too.
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
QUESTION_SECONDS = 0.0001  # of the loop, beside the answer itself
MAX_QUESTION_BYTES = 64 * 1024
LOG_SECONDS = 1.0
REGISTRY = "registry"  # stands for the client in the buckets of messages without a good token

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
        """Return the handler of an endpoint's questions: known agents' in turns, the others' by a rate."""
        return lambda msg: self._take(endpoint, msg)

    def _take(self, endpoint: Accepting, msg: Msg) -> None:
        token, standing = None, Standing.BAD
        with contextlib.suppress(Unauthenticated):  # it brings two
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
        """Take a known agent's question; raises `Overloaded` if it has its share of waiting ones already.

        An agent that goes on all the same is told so 200 times a second.
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
        """Tell whether to verify a question whose token is not known to be good; the others get no answer.

        Raises `Unauthenticated` for a bad one while few are refused.
        """
        if standing is not Standing.BAD:
            claim = self._verifier.claimed(token) if standing is Standing.NEW else None
            admitted = self._unverified.admits(standing, _asked(msg), self._clock(), claim)
        elif admitted := self._unverified.admits_refusal(_asked(msg), self._clock()):
            self._verifier.verify_now(token)  # which says why
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
        """Return the asking principal; None if the token is bad and too many are refused already.

        Raises `Unauthenticated` for a bad token otherwise.
        """
        try:
            return await self._verifier.verify(token_of(msg))
        except Unauthenticated:
            if self._unverified.admits_refusal(_asked(msg), self._clock()):
                raise
            return None

    async def answer(self, asker: Principal, msg: Msg, work: Callable[[], R]) -> R:
        """Return the result of `work` when its turn has come. Raises `PayloadTooLarge` above 64 KiB."""
        if len(msg.data) > MAX_QUESTION_BYTES:
            raise PayloadTooLarge(f"a question may have {MAX_QUESTION_BYTES} bytes")
        return await take_turn(self._turns, (asker.tenant, asker.sub), work)

    def counters(self) -> dict[str, int]:
        """Return how many questions were dropped since the start."""
        return {"messagesDropped": self._unverified.dropped + self._sieve.dropped + self._overloaded}

    def _on_sieved(self, subject: str, count: int) -> None:
        self._on_dropped(parse_registry(subject)[0], count)


def _asked(msg: Msg) -> ClientAddress:
    return ClientAddress(parse_registry(msg.subject)[0], REGISTRY)
