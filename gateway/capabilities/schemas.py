"""JSON Schemas of parameters: refused at registration if they could do harm, compiled once for each content.

Neither side is trusted. An application's schema must not read files, recurse without end or explode when it is
expanded. An agent's parameters must not make a harmless schema expensive. So references stay inside the schema, its
expanded size and depth are bounded, patterns backtrack little or not at all, and a check is refused beforehand if its
cost would delay others. Only the first fault is searched for, because collecting all took 82 s on a crafted body.
"""

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jsonschema_rs
import msgspec

from gateway.capabilities.expansion import Expansion
from gateway.capabilities.keywords import Schema
from gateway.capabilities.look_around import LookAround
from gateway.capabilities.patterns import BACKTRACK_LIMITS, backtracking_options, linear_options
from gateway.capabilities.translation import as_json_schema
from protocol import codec
from protocol.errors import InvalidFrame, InvalidParameters

MAX_COMPILED = 4096
MAX_COMPILED_PATTERN_BYTES = 64 * 1024 * 1024
PATTERN_BYTES_A_NODE = 2048  # take as long to compile as a node does: 6 microseconds
MAX_CHECKS = 500_000  # values times the schema's weight: 20 ms for usual ones, 75 ms at the very worst
MAX_SCAN = 3_000_000_000  # bytes of parameters times bytes of compiled patterns: 0.2 s for the worst of patterns
MAX_QUICK_CHECKS, MAX_QUICK_SCAN, MAX_QUICK_BYTES = 3_000, 7_500_000, 200  # half a millisecond each, at the worst
MAX_FAULT_BYTES = 5_000_000  # that the engine copies to describe a fault below references that lead back: 20 ms
MAX_UNIQUE_LONG_NUMBERS = 500
MAX_MESSAGE_CHARS = 300
_LONG_NUMBER = re.compile(rb"[0-9]{16}")
_TOO_COSTLY = (
    jsonschema_rs.ValidationErrorKind.BacktrackLimitExceeded,
    jsonschema_rs.ValidationErrorKind.RegexEngineFailure,
)

Spend = Callable[[int], None]


class _Compiled(Protocol):
    def validate(self, instance: Any) -> None: ...

    def is_valid(self, instance: Any) -> bool: ...


class Checker:
    """A compiled schema, with the figures that estimate the cost of a check."""

    def __init__(self, compiled: _Compiled, size: Expansion, look_around: LookAround | None = None) -> None:
        self.nodes = size.nodes
        self.pattern_bytes = size.pattern_bytes
        self._compiled = compiled
        self._look_around = look_around
        self._weight = size.weight
        self._program_bytes = size.program_bytes
        self._unique = size.unique
        self._loops = size.loops

    def is_quick(self, parameters: msgspec.Raw) -> bool:
        """Tell whether a check takes less than half a millisecond at the worst, by the size of the parameters alone."""
        size = len(memoryview(parameters))
        return (
            size * self._weight <= MAX_QUICK_CHECKS  # each byte may be a value
            and size * self._program_bytes <= MAX_QUICK_SCAN
            and (self._look_around is None or size <= MAX_QUICK_BYTES)
        )

    def check(self, parameters: msgspec.Raw) -> None:
        """Raise `InvalidParameters` with the path of the first fault."""
        data = codec.raw_bytes(parameters)
        self._refuse_costly(data)
        value = codec.decode_value(data, InvalidParameters)
        compiled = self._compiled if self._look_around is None else self._look_around.validator(value)
        try:
            if self._loops:
                self._check_tree(compiled, value, len(data))
            else:
                compiled.validate(value)
        except jsonschema_rs.ValidationError as exc:
            raise _fault(exc) from exc
        except ValueError as exc:  # a value that JSON cannot express, such as half a surrogate pair
            raise InvalidParameters("`parameters`: not valid Unicode or too deep") from exc

    def _check_tree(self, compiled: _Compiled, value: Any, size: int) -> None:
        """Check against a recursive schema.

        For yes or no, the engine checks each value once against each target. To describe the fault it tries all
        alternatives again on each level: 19 s for 16 levels with two alternatives.
        """
        if compiled.is_valid(value):
            return
        levels = _depth(value)
        alternatives = levels if self._loops == 1 else (2 * self._loops) ** min(levels, 64)
        if alternatives * size > MAX_FAULT_BYTES:
            sentence = "`parameters`: refused by the schema; they are nested too deeply for it to say at which place"
            raise InvalidParameters(sentence, details={"path": ""})
        compiled.validate(value)

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

    def __init__(self, max_compiled: int = MAX_COMPILED, max_pattern_bytes: int = MAX_COMPILED_PATTERN_BYTES) -> None:
        self._max_compiled = max_compiled
        self._max_pattern_bytes = max_pattern_bytes
        self._compiled: OrderedDict[bytes, Checker] = OrderedDict()
        self._pattern_bytes = 0

    def checker(self, schema: Schema, where: str, spend: Spend = lambda nodes: None) -> Checker:
        """Return the checker of a schema. For a new one, report the cost to `spend`, in nodes.

        Raises `InvalidFrame` that names `where` if the schema is refused.
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
        while len(self._compiled) > self._max_compiled or self._pattern_bytes > self._max_pattern_bytes:
            _, forgotten = self._compiled.popitem(last=False)
            self._pattern_bytes -= forgotten.pattern_bytes


def compile_schema(schema: Schema, where: str, spend: Spend = lambda nodes: None) -> Checker:
    """Compile a schema, and report the cost to `spend`, in nodes, even if the schema is refused.

    Raises `InvalidFrame` if it is not a schema, refers outside itself, recurses in place or is too large.
    """
    schema = as_json_schema(schema)
    size = Expansion(schema, where)
    try:
        size.walk()
        options = backtracking_options(BACKTRACK_LIMITS[0]) if size.backtracks else linear_options()
        compiled = jsonschema_rs.validator_for(schema, offline=True, pattern_options=options)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as exc:
        raise InvalidFrame(f"`{where}`: not a JSON Schema that can be used: {_first_line(exc)}") from exc
    finally:
        spend(size.nodes + size.pattern_bytes // PATTERN_BYTES_A_NODE)
    return Checker(compiled, size, LookAround(schema, size, compiled) if size.backtracks else None)


def _fault(error: jsonschema_rs.ValidationError) -> InvalidParameters:
    path = _pointer(error.instance_path)[:MAX_MESSAGE_CHARS]
    why = "takes too long to match against its pattern" if isinstance(error.kind, _TOO_COSTLY) else error.message
    return InvalidParameters(f"`parameters{path}`: {why[:MAX_MESSAGE_CHARS]}", details={"path": path})


def _depth(value: Any) -> int:
    """Return the nesting depth of a value."""
    levels, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        levels += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return levels


def _pointer(path: Sequence[str | int]) -> str:
    """Return the path of a fault in the parameters as a JSON Pointer (RFC 6901); empty for the whole."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:MAX_MESSAGE_CHARS]
