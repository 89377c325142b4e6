"""The size of a schema after each reference is replaced by its target, and the possible cost of a check.

References stay inside the schema, and its expanded size and depth are bounded. A reference may lead back to its own
place only below a property or an item, as trees are written. Then it is not replaced again.
"""

from typing import Any
from urllib.parse import unquote

from gateway.capabilities.keywords import DEFINITIONS, applies_here, schemas_within
from gateway.capabilities.patterns import MAX_PATTERN_BYTES, measured
from gateway.capabilities.translation import is_draft_4
from protocol.errors import InvalidFrame

MAX_NODES = 2000
MAX_DEPTH = 64
FLOAT_WEIGHT = 16  # comparing one with a candidate of an `enum` takes a microsecond
COSTLY = {"unevaluatedProperties": 16, "unevaluatedItems": 16, "uniqueItems": 8}  # they look at each value again
_UNEVALUATED = ("unevaluatedProperties", "unevaluatedItems")
_UNSUPPORTED = ("$dynamicRef", "$recursiveRef")
_RENAMING = ("$id", "$schema")
_COMPARED = ("enum", "const", "required", "type")

Targets = tuple[int, ...]


class Expansion:
    """Walks a schema and stops at the bounds.

    `weight` estimates the cost of a check for each value: the nodes, and the items of lists, such as an `enum`'s.
    `unique` marks `uniqueItems`: whole numbers beyond 2^53 share few hashes there, so each is compared with all others.
    `loops` counts the references that lead back. `reaching` has the nodes (by identity) from which a check may come
    to a pattern that backtracks.
    """

    def __init__(self, root: Any, where: str) -> None:
        self._root = root
        self._where = where
        self._renaming = (*_RENAMING, "id") if is_draft_4(root) else _RENAMING
        self._unevaluated = False
        self.nodes = 0
        self.program_bytes = 0
        self.pattern_bytes = 0
        self.weight = 0
        self.unique = False
        self.loops = 0
        self.reaching: set[int] = set()
        self.backtracks = False

    def walk(self) -> None:
        """Walk all of the schema. Raises `InvalidFrame` if it is refused."""
        root = (id(self._root),)
        self._visit(self._root, 0, root, root, follow=True)
        if self.loops and self._unevaluated:
            raise self._refusal(f"{' and '.join(_UNEVALUATED)} are not supported beside references that lead back")

    def resolve(self, reference: str) -> Any:
        """Return the target of a JSON Pointer within this schema (RFC 6901 section 6); other references are refused."""
        if not (reference == "#" or reference.startswith("#/")):
            raise self._refusal("a `$ref` must stay within the schema, as in #/$defs/name")
        node = self._root
        for part in unquote(reference).split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            try:
                node = node[int(key)] if isinstance(node, list) else node[key]
            except (KeyError, IndexError, ValueError, TypeError) as exc:
                raise self._refusal(f"the reference {reference[:80]!r} names nothing") from exc
        return node

    def _visit(self, node: Any, depth: int, above: Targets, here: Targets, *, follow: bool) -> bool:
        """Visit a schema; return whether a check may come to a pattern that backtracks.

        `above` are the targets of the references that led here, `here` those since the last step into a value. Within a
        definition no reference is followed, since a check comes there only by one that leads to it.
        """
        if depth > MAX_DEPTH:
            raise self._refusal(f"nested deeper than {MAX_DEPTH}")
        if not isinstance(node, dict):
            return False
        reaches = self._count(node)
        for name, value in node.items():
            if name == "$ref" and isinstance(value, str):
                reaches |= follow and self._follow(value, depth, above, here)
            elif name in DEFINITIONS:
                self._visit_definitions(name, value, depth)
            else:
                inside = here if applies_here(name) else ()
                for key, each in schemas_within(name, value):
                    self.weight += isinstance(key, int)
                    reaches |= self._visit(each, depth + (1 if key is None else 2), above, inside, follow=follow)
        if reaches:
            self.reaching.add(id(node))
        return reaches

    def _visit_definitions(self, name: str, value: Any, depth: int) -> None:
        """Visit the definitions. They count for the schema's size, but a check may never reach them."""
        weight, program_bytes = self.weight, self.program_bytes
        for _, each in schemas_within(name, value):
            self._visit(each, depth + 2, (), (), follow=False)
        self.weight, self.program_bytes = weight, program_bytes

    def _follow(self, reference: str, depth: int, above: Targets, here: Targets) -> bool:
        target = self.resolve(reference)
        if not isinstance(target, dict):
            return False
        if id(target) in here:
            raise self._refusal(f"the reference {reference[:80]!r} leads back to itself")
        if id(target) in above:
            self.loops += 1
            return True  # as far as is known by now
        return self._visit(target, depth + 1, (*above, id(target)), (*here, id(target)), follow=True)

    def _count(self, node: dict[str, Any]) -> bool:
        self._add_node()
        self._refuse_unsupported(node)
        self.weight += sum(cost for keyword, cost in COSTLY.items() if keyword in node)
        self.unique = self.unique or bool(node.get("uniqueItems"))
        self._unevaluated = self._unevaluated or any(keyword in node for keyword in _UNEVALUATED)
        for name, value in node.items():
            if name in _COMPARED or isinstance(value, float):
                self._weigh(value)
        return self._count_patterns(node)

    def _add_node(self) -> None:
        self.nodes += 1
        self.weight += 1
        if self.nodes > MAX_NODES:
            raise self._refusal(f"larger than {MAX_NODES} nodes with its references replaced")

    def _weigh(self, data: Any) -> None:
        """Count the constants that values are compared with."""
        if isinstance(data, float):
            self.weight += FLOAT_WEIGHT
        elif isinstance(data, list):
            self.weight += 1 if all(isinstance(item, str) for item in data) else len(data)  # names are looked up
            for item in data:
                self._weigh(item)
        elif isinstance(data, dict):
            self._add_node()
            for item in data.values():
                self._weigh(item)

    def _count_patterns(self, node: dict[str, Any]) -> bool:
        """Count a node's patterns; return whether one of them backtracks."""
        found = [measured(pattern) for pattern in patterns_of(node)]
        self.program_bytes += sum(pattern.program_bytes for pattern in found if not pattern.parts)
        self.pattern_bytes += sum(pattern.memory_bytes for pattern in found)
        if self.pattern_bytes > MAX_PATTERN_BYTES:
            raise self._refusal("all its patterns together are too large")
        backtracks = any(pattern.parts for pattern in found)
        self.backtracks = self.backtracks or backtracks
        return backtracks

    def _refuse_unsupported(self, node: dict[str, Any]) -> None:
        for keyword in _UNSUPPORTED:
            if keyword in node:
                raise self._refusal(f"{keyword} is not supported")
        if node is self._root:
            return
        # Inside a schema with a name of its own, references mean other places than those that this walk follows.
        for keyword in self._renaming:
            if isinstance(node.get(keyword), str):
                raise self._refusal(f"{keyword} is supported at the top only")

    def _refusal(self, why: str) -> InvalidFrame:
        return InvalidFrame(f"`{self._where}`: the JSON Schema is refused: {why}")


def patterns_of(node: dict[str, Any]) -> list[str]:
    """Return the patterns of a node: that of texts, and those of names."""
    named = node.get("patternProperties")
    found = (node.get("pattern"), *(named if isinstance(named, dict) else ()))
    return [pattern for pattern in found if isinstance(pattern, str)]
