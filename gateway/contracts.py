"""What clients offer, read and compiled once for each content: thousands of clients of one application share it."""

import weakref
from collections.abc import Hashable, Iterator
from functools import partial
from typing import Any

import msgspec

from gateway.buckets import Buckets
from gateway.schemas import MAX_PATTERN_BYTES, Checker, Schemas, Spend
from protocol.errors import InvalidFrame, RateLimited, UnknownCapability
from protocol.records import EMPTY_CAPABILITIES, CapabilityList, Offer, Rate, fingerprint, parse_capabilities

MAX_LIST_NODES = 50_000  # of all schemas of one list, references followed: half a second to compile at the worst
LIST_BYTES_A_NODE = 128  # take as long to read as a node takes to compile: 6 microseconds
# Of new content, in nodes: at once 24 lists of 500 usual functions or two of the costliest, then one a second or one in
# ten; a principal takes 3 % of a processor at most. Content that another client has sent is free.
EFFORT = Rate(per_second=5_000, burst=100_000)
MAX_OWNERS = 10_000


class Contract:
    """A capability list with the checkers of its parameters."""

    __slots__ = ("__weakref__", "_checkers", "capabilities")

    def __init__(self, capabilities: CapabilityList, checkers: dict[tuple[str, str | None], Checker]) -> None:
        self.capabilities = capabilities
        self._checkers = checkers

    def offer(self, target: str, action: str | None) -> Offer:
        """Return what answers to `target`. Raises `UnknownCapability` where nothing does, or not to this action."""
        offer = self.capabilities.find(target)
        if offer is None:
            raise UnknownCapability(f"the client offers no {target!r}")
        if not offer.offers(action):
            raise UnknownCapability(f"{target!r} has no action {action!r}; it has {_names(offer)}")
        return offer

    def check(self, offer: Offer, action: str | None, parameters: msgspec.Raw) -> None:
        """Raise `InvalidParameters` where the offer's JSON Schema refuses the parameters."""
        checker = self._checkers.get((offer.target, None if offer.kind == "function" else action))
        if checker is not None:
            checker.check(parameters)


class Contracts:
    """All contracts in use, by the content of the list that the client sent."""

    def __init__(self) -> None:
        self._schemas = Schemas()
        self._known: weakref.WeakValueDictionary[bytes, Contract] = weakref.WeakValueDictionary()
        self._effort = Buckets(MAX_OWNERS)

    def read(self, items: list[msgspec.Raw], owner: Hashable, now: float) -> Contract:
        """Return the contract of a capability list; what another client sent before costs its `owner` nothing.

        Raises `InvalidFrame` naming the entry that is refused, `RateLimited` where the owner's clients have lately
        made this process read more than their share.
        """
        key = fingerprint(items)
        contract = self._known.get(key)
        if contract is None:
            contract = self._known[key] = self._read_new(items, owner, now)
        return contract

    def _read_new(self, items: list[msgspec.Raw], owner: Hashable, now: float) -> Contract:
        """Read and compile a list. What that takes is known afterwards, so an owner may go into debt by one list."""
        wait = self._effort.wait(owner, EFFORT, now)
        if wait:
            raise RateLimited.for_seconds(wait, "`capabilities`: too many new ones in a short time")
        size = sum(len(memoryview(item)) for item in items)
        self._effort.take(owner, EFFORT, now, size / LIST_BYTES_A_NODE)
        return self._compile(parse_capabilities(items), partial(self._effort.take, owner, EFFORT, now))

    def _compile(self, capabilities: CapabilityList, spend: Spend) -> Contract:
        checkers: dict[tuple[str, str | None], Checker] = {}
        nodes = pattern_bytes = 0
        for target, action, schema in _schemas_of(capabilities):
            checker = checkers[target, action] = self._schemas.checker(schema, _where(target, action), spend)
            nodes += checker.nodes
            pattern_bytes += checker.pattern_bytes
            if nodes > MAX_LIST_NODES or pattern_bytes > MAX_PATTERN_BYTES:
                raise InvalidFrame("`capabilities`: their JSON Schemas are too large together, or their patterns are")
        return Contract(capabilities, checkers)


def _schemas_of(capabilities: CapabilityList) -> Iterator[tuple[str, str | None, dict[str, Any] | bool]]:
    for target, offer in capabilities.offers.items():
        for action, schema in offer.schemas.items():
            if schema is not None:
                yield target, action, schema


def _where(target: str, action: str | None) -> str:
    return f"capabilities[{target}]" + (f".actions[{action}]" if action else "") + ".parameters"


def _names(offer: Offer) -> Any:
    names = sorted(name for name in offer.schemas if name)
    return ", ".join(names[:20]) or "none"


NO_CONTRACT = Contract(EMPTY_CAPABILITIES, {})
