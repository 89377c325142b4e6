"""Patterns of JSON Schemas: their compiled size, and the longest time of a match.

Nearly all patterns run without backtracking, in at most their size times the length of the text. Patterns with
look-around or back-references need an engine that backtracks. Its limit is 10,000, 1,000 or 100 steps: the highest with
which all matches of a command take 20 milliseconds at most.
"""

from functools import lru_cache
from typing import NamedTuple

import jsonschema_rs

BACKTRACK_LIMITS = (10_000, 1_000, 100)
MAX_PATTERN_BYTES = 16 * 1024 * 1024  # of all patterns of one client's schemas, compiled: 75 bytes of JSON can be 1 MiB
LARGEST_PATTERN_BYTES = 1024 * 1024
TYPICAL_CACHE_BYTES = 16 * 1024
_PART_CACHE_BYTES = 8 * 1024
_SMALLEST_PATTERN_BYTES = 1024
_SEARCH_CACHE_BYTES = 128 * 1024
_STEP_NANOSECONDS = 140  # of the engine that backtracks
_BYTES_A_NANOSECOND = 16 * 1024  # of a compiled part: so much more takes a nanosecond more for each byte of text

Options = jsonschema_rs.RegexOptions | jsonschema_rs.FancyRegexOptions


class Pattern(NamedTuple):
    """A pattern's size. `parts`: into how many parts the backtracking engine splits it at most; 0 if unneeded."""

    part_bytes: int
    parts: int = 0

    @property
    def program_bytes(self) -> int:
        """The approximate compiled size in bytes."""
        return self.part_bytes * max(1, self.parts)

    @property
    def memory_bytes(self) -> int:
        """The approximate bytes with the caches of searches. A backtracking pattern is compiled for two limits."""
        if self.parts:
            return 2 * (self.program_bytes + _PART_CACHE_BYTES * self.parts)
        return self.program_bytes + TYPICAL_CACHE_BYTES

    def nanoseconds(self, text_bytes: int, backtrack_limit: int) -> float:
        """Return the longest time of a match. Measured: at each backtrack, each part may read the whole text again."""
        each_byte = 1 + self.part_bytes / _BYTES_A_NANOSECOND
        return (backtrack_limit + text_bytes) * (_STEP_NANOSECONDS + self.parts * text_bytes * each_byte)


@lru_cache(maxsize=4096)
def measured(pattern: str) -> Pattern:
    """Measure a pattern's size by doubling the limit until it compiles. If it never does, it counts as the largest."""
    for size in _sizes():
        if _compiles(pattern, linear_options(size)):
            return Pattern(size)
    if not _compiles(pattern, backtracking_options(BACKTRACK_LIMITS[0])):
        return Pattern(LARGEST_PATTERN_BYTES)
    size = next(size for size in _sizes() if _compiles(pattern, backtracking_options(BACKTRACK_LIMITS[0], size)))
    return Pattern(size, 1 + pattern.count("(") + pattern.count("|"))


def linear_options(size_bytes: int = LARGEST_PATTERN_BYTES) -> jsonschema_rs.RegexOptions:
    """Return the options of the engine that never backtracks."""
    return jsonschema_rs.RegexOptions(size_limit=size_bytes, dfa_size_limit=_SEARCH_CACHE_BYTES)


def backtracking_options(limit: int, size_bytes: int = LARGEST_PATTERN_BYTES) -> jsonschema_rs.FancyRegexOptions:
    """Return the options of the engine with a backtrack limit."""
    return jsonschema_rs.FancyRegexOptions(
        backtrack_limit=limit, size_limit=size_bytes, dfa_size_limit=_SEARCH_CACHE_BYTES
    )


def _sizes() -> list[int]:
    doublings = (LARGEST_PATTERN_BYTES // _SMALLEST_PATTERN_BYTES).bit_length()
    return [_SMALLEST_PATTERN_BYTES << doubling for doubling in range(doublings)]


def _compiles(pattern: str, options: Options) -> bool:
    try:
        jsonschema_rs.validator_for({"pattern": pattern}, pattern_options=options)
    except (jsonschema_rs.ValidationError, ValueError):
        return False
    return True
