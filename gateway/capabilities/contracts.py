"""Capability lists, compiled once for each content, because thousands of clients run the same application."""

import weakref
from collections.abc import Generator
from functools import partial
from typing import Any

import msgspec

from gateway.capabilities.list_reading import ListReading
from gateway.capabilities.schemas import Checker, Schemas
from protocol import codec
from protocol.errors import InvalidFrame, InvalidParameters, RateLimited, Unavailable, UnknownCapability
from protocol.records import EMPTY_CAPABILITIES, MAX_CAPABILITIES, CapabilityList, Offer, Rate, fingerprint
from protocol.runtime.token_buckets import TokenBuckets
from protocol.shares import Holder, Shares

# Of new content, in nodes: at once 24 lists of 500 usual functions or two of the costliest, then one a second or one in
# ten; a principal takes 3 % of a processor at most. Content that another client has sent is free.
EFFORT = Rate(per_second=5_000, burst=100_000)
MAX_OWNERS = 10_000
MAX_BYTES = 64 * 1024 * 1024  # of different lists; a list of many clients counts once


class Contract:
    """A capability list with the checkers of its parameters."""

    __slots__ = ("__weakref__", "_checkers", "capabilities")

    def __init__(self, capabilities: CapabilityList, checkers: dict[tuple[str, str | None], Checker]) -> None:
        self.capabilities = capabilities
        self._checkers = checkers

    def offer(self, target: str, action: str | None) -> Offer:
        """Return the offer for `target`. Raises `UnknownCapability` if there is none, or none for this action."""
        offer = self.capabilities.find(target)
        if offer is None:
            raise UnknownCapability(f"the client offers no {target!r}")
        if not offer.offers(action):
            raise UnknownCapability(f"{target!r} has no action {action!r}; it has {_names(offer)}")
        return offer

    def is_quick(self, target: str, action: str | None, parameters: msgspec.Raw) -> bool:
        """Tell whether the parameters of a command can be checked in less than half a millisecond."""
        offer = self.capabilities.find(target)
        if offer is None:
            return True
        checker = self._checkers.get((target, None if offer.kind == "function" else action))
        return checker is None or checker.is_quick(parameters)

    def check(self, offer: Offer, action: str | None, parameters: msgspec.Raw) -> None:
        """Raise `InvalidParameters` if the offer's JSON Schema refuses the parameters, or a number is out of range."""
        checker = self._checkers.get((offer.target, None if offer.kind == "function" else action))
        if checker is not None:
            checker.check(parameters)
        else:
            codec.require_usual_numbers(parameters, "`parameters`", InvalidParameters)


class UnreadContract(Contract):
    """A list that was moved here with its session, and has to wait until there is room or time to read it.

    Agents see it as it was. Commands are refused until it is read, because nothing may run unchecked.
    """

    __slots__ = ()

    def __init__(self, raw: msgspec.Raw) -> None:
        super().__init__(CapabilityList(raw, {}, b""), {})

    def offer(self, target: str, action: str | None) -> Offer:
        """Raise `Unavailable`."""
        raise Unavailable("the client has moved to another gateway, which has not read its capabilities yet; try again")


class Contracts:
    """All contracts in use, by the content of the list that the client sent."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._shares = Shares(max_bytes, "`capabilities`: too many different lists are registered; send shorter ones")
        self._schemas = Schemas()
        self._known: weakref.WeakValueDictionary[bytes, Contract] = weakref.WeakValueDictionary()
        self._under_way: set[bytes] = set()
        self._effort = TokenBuckets(MAX_OWNERS)

    def read(self, items: list[msgspec.Raw], owner: Holder, now: float) -> Contract:
        """Return the contract of a capability list, in one go. Raises as `steps()` does."""
        steps = self.steps(items, owner, now)
        while True:
            try:
                next(steps)
            except StopIteration as done:
                contract: Contract = done.value
                return contract

    def steps(self, items: list[msgspec.Raw], owner: Holder, now: float) -> Generator[None, None, Contract]:
        """Read a capability list in steps of some milliseconds, and return its contract.

        A list that another client has sent before costs its `owner` nothing and takes no step. If the same list is
        being read for another client, wait for that, because thousands of clients of one application may come at once.
        An unusable capability is left out and listed in `refused`.

        Raises `InvalidFrame` for too many capabilities, `RateLimited` if the owner's clients have made this process
        read more than their rate allows, and `Overloaded` if the lists of the owner or the tenant have used up their
        share of the bytes.
        """
        key = fingerprint(items)
        while key in self._under_way:
            yield
        contract = self._known.get(key)
        if contract is None:
            self._under_way.add(key)
            try:
                contract = self._known[key] = yield from self._read_new(items, owner, now)
            finally:  # a reading that is given up ends by GeneratorExit
                self._under_way.discard(key)
        return contract

    def _read_new(self, items: list[msgspec.Raw], owner: Holder, now: float) -> Generator[None, None, Contract]:
        """Read and compile a list. Its cost is known only afterwards, so an owner may go into debt by one list."""
        wait = self._effort.wait(owner, EFFORT, now)
        if wait:
            raise RateLimited.for_seconds(wait, "`capabilities`: too many new ones in a short time")
        if len(items) > MAX_CAPABILITIES:
            raise InvalidFrame(f"`capabilities`: at most {MAX_CAPABILITIES} are accepted, these are {len(items)}")
        piece = self._shares.ask(owner, sum(len(memoryview(item)) for item in items))
        try:
            reading = ListReading(self._schemas, partial(self._effort.take, owner, EFFORT, now))
            yield from reading.steps(items)
            contract = Contract(reading.capabilities(fingerprint(items)), reading.checkers)
        except BaseException:  # a reading that is given up ends by GeneratorExit
            piece.release()
            raise
        weakref.finalize(contract, piece.release).atexit = False
        return contract


def _names(offer: Offer) -> Any:
    names = sorted(name for name in offer.schemas if name)
    return ", ".join(names[:20]) or "none"


NO_CONTRACT = Contract(EMPTY_CAPABILITIES, {})
