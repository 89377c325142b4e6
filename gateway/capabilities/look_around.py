"""Schemas with backtracking patterns: chooses the backtrack limit for each command's parameters.

It finds the texts that meet a pattern by walking the schema and the parameters together. So a long text that meets no
pattern costs nothing. The engine ends a match that backtracks too often, and then refuses the parameters, even inside
an alternative.
"""

from collections.abc import Iterator
from typing import Any

import jsonschema_rs

from gateway.capabilities.expansion import Expansion, patterns_of
from gateway.capabilities.keywords import checks_of
from gateway.capabilities.patterns import BACKTRACK_LIMITS, Pattern, backtracking_options, measured
from protocol.errors import InvalidParameters

MAX_NANOSECONDS = 20_000_000
MAX_STEPS = 20_000  # of the walk: some 20 ms

Match = tuple[Pattern, int]


class LookAround:
    """Chooses among validators of one schema by how often they backtrack; keeps the first and another."""

    def __init__(self, schema: Any, expansion: Expansion, compiled: jsonschema_rs.Validator) -> None:
        self._schema = schema
        self._resolve = expansion.resolve
        self._reaching = frozenset(expansion.reaching)
        self._first = compiled
        self._other, self._others_limit = compiled, BACKTRACK_LIMITS[0]

    def validator(self, parameters: Any) -> jsonschema_rs.Validator:
        """Return the validator for these parameters. Raises `InvalidParameters` if they may take too long with each."""
        matches = list(self._matches(parameters))
        for limit in BACKTRACK_LIMITS:
            if sum(pattern.nanoseconds(size, limit) for pattern, size in matches) <= MAX_NANOSECONDS:
                return self._with_limit(limit)
        raise InvalidParameters(
            "`parameters`: too large to be checked against the patterns of this capability's schema"
        )

    def _with_limit(self, limit: int) -> jsonschema_rs.Validator:
        if limit == BACKTRACK_LIMITS[0]:
            return self._first
        if limit != self._others_limit:
            options = backtracking_options(limit)
            self._other = jsonschema_rs.validator_for(self._schema, offline=True, pattern_options=options)
            self._others_limit = limit
        return self._other

    def _matches(self, parameters: Any) -> Iterator[Match]:
        """Yield each backtracking pattern with the size in bytes of a text that may meet it.

        It is yielded once for each possible match: below alternatives the engine matches again to describe the fault.
        """
        waiting, steps = [(self._schema, parameters, 1)], 0
        while waiting:
            node, value, times = waiting.pop()
            steps += 1
            if steps + len(waiting) > MAX_STEPS:
                raise InvalidParameters("`parameters`: too large to be checked against this capability's schema")
            for match in _matches_of(node, value):
                yield from [match] * times
            target = self._resolve(node["$ref"]) if isinstance(node.get("$ref"), str) else None
            if id(target) in self._reaching:
                waiting.append((target, value, times))
            for each, part in checks_of(node, value, self._reaching):
                waiting.append((each, part, times + 1 if part is value else times))


def _matches_of(node: dict[str, Any], value: Any) -> Iterator[Match]:
    texts = [value] if isinstance(value, str) else list(value) if isinstance(value, dict) else []
    for pattern in map(measured, patterns_of(node)):
        if pattern.parts:
            yield from ((pattern, len(text) if text.isascii() else 4 * len(text)) for text in texts)
