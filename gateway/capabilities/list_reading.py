"""Reads one capability list in steps: usable capabilities are kept, the others are left out and reported.

A capability is never offered without its schema. If the schema is unusable, the whole capability is left out.
"""

from collections.abc import Callable, Iterator

import msgspec

from gateway.capabilities.forms import name_of, normal_form
from gateway.capabilities.patterns import MAX_PATTERN_BYTES
from gateway.capabilities.schemas import Checker, Schemas
from protocol import codec
from protocol.errors import InvalidFrame
from protocol.records import CapabilityList, Offer, RefusedCapability, read_offer

MAX_LIST_NODES = 50_000  # of all schemas of one list, references followed: half a second to compile at the worst
STEP_NODES = 250  # a millisecond or two; a single schema is never split
LIST_BYTES_A_NODE = 128  # take as long to read as a node takes to compile: 6 microseconds
MAX_REFUSED_TOLD = 50
MAX_MESSAGE_CHARS = 400


class ListReading:
    """Reads one list, and reports the cost to `spend`, in nodes."""

    def __init__(self, schemas: Schemas, spend: Callable[[float], None]) -> None:
        self.checkers: dict[tuple[str, str | None], Checker] = {}
        self._schemas = schemas
        self._spend = spend
        self._kept: dict[str, msgspec.Raw] = {}
        self._offers: dict[str, Offer] = {}
        self._refused: list[RefusedCapability] = []
        self._more_refused = 0
        self._spent = self._compiled = self._nodes = self._pattern_bytes = 0.0

    def steps(self, items: list[msgspec.Raw]) -> Iterator[None]:
        """Read the list, and yield after every millisecond or two."""
        at_step = 0.0
        for index, item in enumerate(items):
            try:
                self._read(item, f"capabilities[{index}]")
            except InvalidFrame as exc:
                self._refuse(name_of(item) or f"capabilities[{index}]", exc.message)
            if self._spent - at_step > STEP_NODES:
                at_step = self._spent
                yield

    def capabilities(self, fingerprint: bytes) -> CapabilityList:
        """Return the list."""
        raw = msgspec.Raw(codec.encode(list(self._kept.values())))
        return CapabilityList(raw, self._offers, fingerprint, tuple(self._refused), self._more_refused)

    def _read(self, item: msgspec.Raw, where: str) -> None:
        self._take(len(memoryview(item)) / LIST_BYTES_A_NODE)
        try:
            raw = normal_form(item, self._take)
            offer = read_offer(raw)
        except InvalidFrame as exc:
            raise InvalidFrame(f"`{where}`: {exc.message}") from exc
        if offer.target in self._offers:
            raise InvalidFrame(f"`{where}`: the name or id {offer.target!r} is used twice; the first one stays")
        self.checkers |= self._checkers_of(offer)
        self._kept[offer.target], self._offers[offer.target] = raw, offer

    def _checkers_of(self, offer: Offer) -> dict[tuple[str, str | None], Checker]:
        """Compile the schemas of a capability. Raises `InvalidFrame` if the whole list's schemas are too large."""
        schemas = {action: schema for action, schema in offer.schemas.items() if schema is not None}
        found: dict[tuple[str, str | None], Checker] = {}
        for action, schema in schemas.items():
            where = _where(offer.target, action)
            if self._compiled > MAX_LIST_NODES:
                raise _too_large_together(where)
            found[offer.target, action] = self._schemas.checker(schema, where, self._take_compiled)
        nodes = self._nodes + sum(checker.nodes for checker in found.values())
        pattern_bytes = self._pattern_bytes + sum(checker.pattern_bytes for checker in found.values())
        if nodes > MAX_LIST_NODES or pattern_bytes > MAX_PATTERN_BYTES:
            raise _too_large_together(_where(offer.target, None))
        self._nodes, self._pattern_bytes = nodes, pattern_bytes
        return found

    def _refuse(self, name: str, message: str) -> None:
        if len(self._refused) < MAX_REFUSED_TOLD:
            self._refused.append(RefusedCapability(name, message[:MAX_MESSAGE_CHARS]))
        else:
            self._more_refused += 1

    def _take_compiled(self, nodes: float) -> None:
        self._compiled += nodes
        self._take(nodes)

    def _take(self, nodes: float) -> None:
        self._spent += nodes
        self._spend(nodes)


def _where(target: str, action: str | None) -> str:
    return f"capabilities[{target}]" + (f".actions[{action}]" if action else "") + ".parameters"


def _too_large_together(where: str) -> InvalidFrame:
    return InvalidFrame(f"`{where}`: the JSON Schemas up to here are too large together, or their patterns are")
