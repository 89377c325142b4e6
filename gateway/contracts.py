"""What clients offer, read and compiled once for each content: thousands of clients of one application share it."""

import weakref
from collections.abc import Iterator
from typing import Any

import msgspec

from gateway.schemas import MAX_PATTERN_BYTES, Checker, Schemas
from protocol.errors import InvalidFrame, UnknownCapability
from protocol.records import EMPTY_CAPABILITIES, CapabilityList, Offer, fingerprint, parse_capabilities

MAX_LIST_NODES = 50_000  # of all schemas of one list, references followed: half a second to compile at the worst


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

    def read(self, items: list[msgspec.Raw]) -> Contract:
        """Return the contract of a capability list. Raises `InvalidFrame` naming the entry that is refused."""
        key = fingerprint(items)
        contract = self._known.get(key)
        if contract is None:
            contract = self._compile(parse_capabilities(items))
            self._known[key] = contract
        return contract

    def _compile(self, capabilities: CapabilityList) -> Contract:
        checkers: dict[tuple[str, str | None], Checker] = {}
        nodes = pattern_bytes = 0
        for target, action, schema in _schemas_of(capabilities):
            checker = checkers[target, action] = self._schemas.checker(schema, _where(target, action))
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
