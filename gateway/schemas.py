"""JSON Schemas of parameters: refused at registration where they could hurt, compiled once for each content.

Both sides are strangers: an application's schema must not read files, recurse without end or blow up when it is
expanded, and an agent's parameters must not make a harmless schema expensive. So references stay inside the schema,
its expanded size and depth are bounded, patterns run without backtracking, and a check whose cost could be felt by
others is refused before it is made. Only the first fault is looked for: collecting all took 82 s on a crafted body.
"""

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Protocol
from urllib.parse import unquote

import jsonschema_rs
import msgspec

from protocol import codec
from protocol.errors import InvalidFrame, InvalidParameters

MAX_NODES = 2000
MAX_DEPTH = 64
MAX_COMPILED = 4096
MAX_PATTERN_BYTES = 16 * 1024 * 1024  # of all patterns of one client's schemas, compiled: 75 bytes of JSON can be 1 MiB
MAX_COMPILED_PATTERN_BYTES = 64 * 1024 * 1024
PATTERN_BYTES_A_NODE = 2048  # take as long to compile as a node does: 6 microseconds
MAX_CHECKS = 2_000_000  # values times the schema's weight: some 300 ms at the very worst
MAX_SCAN = 3_000_000_000  # bytes of parameters times bytes of compiled patterns: 0.2 s for the worst of patterns
MAX_UNIQUE_LONG_NUMBERS = 500
MAX_MESSAGE_CHARS = 300
FLOAT_WEIGHT = 16  # comparing one with a candidate of an `enum` takes a microsecond
COSTLY = {"unevaluatedProperties": 16, "unevaluatedItems": 16, "uniqueItems": 8}  # they look at each value again
_UNSUPPORTED = ("$dynamicRef", "$recursiveRef")
_RENAMING = ("$id", "$schema")
_DRAFT_4 = "draft-04"
_LONG_NUMBER = re.compile(rb"[0-9]{16}")
_SMALLEST_PATTERN_BYTES, _LARGEST_PATTERN_BYTES = 1024, 1024 * 1024
_SEARCH_CACHE_BYTES = 128 * 1024
_TYPICAL_CACHE_BYTES = 16 * 1024

Spend = Callable[[int], None]


class _Compiled(Protocol):
    def validate(self, instance: Any) -> None: ...


class Checker:
    """A compiled schema, with what is needed to foresee the cost of a check."""

    def __init__(self, compiled: _Compiled, size: "_Expansion") -> None:
        self.nodes = size.nodes
        self.pattern_bytes = size.pattern_bytes
        self._compiled = compiled
        self._weight = size.weight
        self._program_bytes = size.program_bytes
        self._unique = size.unique

    def check(self, parameters: msgspec.Raw) -> None:
        """Raise `InvalidParameters` with the path of the first fault."""
        data = codec.raw_bytes(parameters)
        self._refuse_costly(data)
        try:
            self._compiled.validate(codec.decode_value(data, InvalidParameters))
        except jsonschema_rs.ValidationError as exc:
            path = _pointer(exc.instance_path)[:MAX_MESSAGE_CHARS]
            sentence = f"`parameters{path}`: {exc.message[:MAX_MESSAGE_CHARS]}"
            raise InvalidParameters(sentence, details={"path": path}) from exc
        except ValueError as exc:  # what Python holds and JSON cannot, such as half a surrogate pair
            raise InvalidParameters("`parameters`: not valid Unicode or too deep") from exc

    def _refuse_costly(self, data: bytes) -> None:
        values = 1 + data.count(b",") + data.count(b"[") + data.count(b"{")
        if (
            values * self._weight > MAX_CHECKS
            or len(data) * self._program_bytes > MAX_SCAN
            or (self._unique and values > MAX_UNIQUE_LONG_NUMBERS and _LONG_NUMBER.search(data))
        ):
            raise InvalidParameters("`parameters`: too large to be checked against this capability's schema")


class Schemas:
    """Compiled schemas by content, the least recently used forgotten first."""

    def __init__(self) -> None:
        self._compiled: OrderedDict[bytes, Checker] = OrderedDict()
        self._pattern_bytes = 0

    def checker(self, schema: dict[str, Any] | bool, where: str, spend: Spend = lambda nodes: None) -> Checker:
        """Return the checker of a schema, telling `spend` what it cost to make, in nodes, where it is a new one.

        Raises `InvalidFrame` naming `where` for a schema that is refused.
        """
        key = hashlib.sha256(codec.encode(schema)).digest()
        checker = self._compiled.get(key)
        if checker is None:
            checker = self._compiled[key] = compile_schema(schema, where, spend)
            self._pattern_bytes += checker.pattern_bytes
            self._forget_oldest()
        else:
            self._compiled.move_to_end(key)
        return checker

    def _forget_oldest(self) -> None:
        while len(self._compiled) > MAX_COMPILED or self._pattern_bytes > MAX_COMPILED_PATTERN_BYTES:
            _, forgotten = self._compiled.popitem(last=False)
            self._pattern_bytes -= forgotten.pattern_bytes


def compile_schema(schema: dict[str, Any] | bool, where: str, spend: Spend = lambda nodes: None) -> Checker:
    """Compile a schema, telling `spend` the effort in nodes, also where it is in vain.

    Raises `InvalidFrame` where it is no schema, reaches outside, recurses or is too large.
    """
    size = _Expansion(schema, where)
    try:
        size.visit(schema, 0, ())
        patterns = _pattern_options(_LARGEST_PATTERN_BYTES)
        compiled = jsonschema_rs.validator_for(schema, offline=True, pattern_options=patterns)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as exc:
        raise InvalidFrame(f"`{where}`: not a JSON Schema that can be used: {_first_line(exc)}") from exc
    finally:
        spend(size.nodes + size.pattern_bytes // PATTERN_BYTES_A_NODE)
    return Checker(compiled, size)


class _Expansion:
    """Walks a schema as if each reference were replaced by what it names, and stops at the bounds.

    `weight` foresees what a check costs for each value: the nodes, and the items of lists, which may be an `enum`'s.
    `unique` tells of `uniqueItems`: whole numbers beyond 2^53 share few hashes there, each is compared with all others.
    """

    def __init__(self, root: Any, where: str) -> None:
        self._root = root
        self._where = where
        self._renaming = (*_RENAMING, "id") if _is_draft_4(root) else _RENAMING
        self.nodes = 0
        self.program_bytes = 0
        self.pattern_bytes = 0
        self.weight = 0
        self.unique = False

    def visit(self, node: Any, depth: int, references: tuple[str, ...]) -> None:
        if depth > MAX_DEPTH:
            raise self._refusal(f"nested deeper than {MAX_DEPTH}")
        if isinstance(node, list):
            self.weight += 1 if all(isinstance(item, str) for item in node) else len(node)  # names are looked up
            for item in node:
                self.visit(item, depth + 1, references)
        elif isinstance(node, dict):
            self._count(node)
            for name, value in node.items():
                if name == "$ref" and isinstance(value, str):
                    self._follow(value, depth, references)
                else:
                    self.visit(value, depth + 1, references)
        elif isinstance(node, float):
            self.weight += FLOAT_WEIGHT

    def _count(self, node: dict[str, Any]) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise self._refusal(f"larger than {MAX_NODES} nodes when its references are followed")
        self._count_patterns(node)
        self.weight += 1 + sum(cost for keyword, cost in COSTLY.items() if keyword in node)
        self.unique = self.unique or bool(node.get("uniqueItems"))
        self._refuse_unsupported(node)

    def _count_patterns(self, node: dict[str, Any]) -> None:
        named = node.get("patternProperties")
        for pattern in (node.get("pattern"), *(named if isinstance(named, dict) else ())):
            if isinstance(pattern, str):
                program = _program_bytes(pattern)
                self.program_bytes += program
                self.pattern_bytes += program + _TYPICAL_CACHE_BYTES
        if self.pattern_bytes > MAX_PATTERN_BYTES:
            raise self._refusal("its patterns are too large together")

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

    def _follow(self, reference: str, depth: int, references: tuple[str, ...]) -> None:
        if reference in references:
            raise self._refusal(f"the reference {reference[:80]!r} leads back to itself")
        self.visit(self._resolve(reference), depth + 1, (*references, reference))

    def _resolve(self, reference: str) -> Any:
        """Return what a JSON Pointer within this schema names (RFC 6901 section 6); other references are refused."""
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

    def _refusal(self, why: str) -> InvalidFrame:
        return InvalidFrame(f"`{self._where}`: the JSON Schema is refused: {why}")


@lru_cache(maxsize=4096)
def _program_bytes(pattern: str) -> int:
    """Return about how large a pattern is when compiled; one that cannot be compiled counts as the largest.

    A regular expression never takes more than its size times the length of the text (there is no backtracking), but
    it may take that much: `[01]*1[01]{500}x` takes 2 seconds for 900 KB.
    """
    size = _SMALLEST_PATTERN_BYTES
    while size < _LARGEST_PATTERN_BYTES and not _fits(pattern, size):
        size *= 2
    return size


def _fits(pattern: str, size_bytes: int) -> bool:
    try:
        jsonschema_rs.validator_for({"pattern": pattern}, pattern_options=_pattern_options(size_bytes))
    except (jsonschema_rs.ValidationError, ValueError):
        return False
    return True


def _pattern_options(size_bytes: int) -> jsonschema_rs.RegexOptions:
    return jsonschema_rs.RegexOptions(size_limit=size_bytes, dfa_size_limit=_SEARCH_CACHE_BYTES)


def _is_draft_4(schema: Any) -> bool:
    return isinstance(schema, dict) and _DRAFT_4 in str(schema.get("$schema"))


def _pointer(path: Sequence[str | int]) -> str:
    """Return where in the parameters a fault is, as a JSON Pointer (RFC 6901): empty for the whole."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:MAX_MESSAGE_CHARS]
