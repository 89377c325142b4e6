"""What clients offer, read and compiled once for each content: thousands of clients of one application share it."""

import weakref
from typing import Any

import msgspec

from gateway.schemas import Checker, Schemas
from protocol.errors import UnknownCapability
from protocol.records import EMPTY_CAPABILITIES, CapabilityList, Offer, fingerprint, parse_capabilities


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
        checkers = {
            (target, action): self._schemas.checker(schema, _where(target, action))
            for target, offer in capabilities.offers.items()
            for action, schema in offer.schemas.items()
            if schema is not None
        }
        return Contract(capabilities, checkers)


def _where(target: str, action: str | None) -> str:
    return f"capabilities[{target}]" + (f".actions[{action}]" if action else "") + ".parameters"


def _names(offer: Offer) -> Any:
    names = sorted(name for name in offer.schemas if name)
    return ", ".join(names[:20]) or "none"


NO_CONTRACT = Contract(EMPTY_CAPABILITIES, {})
