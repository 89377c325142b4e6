"""Patterns of JSON Schemas: how large they are when compiled, and how long a match of one may take.

Nearly all run without backtracking, in a time that is at most their size times the length of the text. Those that look
around or refer back need an engine that backtracks. It may do so 10,000 times, 1,000 or 100: as often as all
the texts that meet such a pattern, and their lengths, leave room for in 20 milliseconds.
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
    """A pattern's size; `parts` is into how many the engine that backtracks cuts it, at most, 0 if it is not needed."""

    part_bytes: int
    parts: int = 0

    @property
    def program_bytes(self) -> int:
        """About how large it is when compiled."""
        return self.part_bytes * max(1, self.parts)

    @property
    def memory_bytes(self) -> int:
        """The approximate memory with the caches of searches. A backtracking pattern is kept for two limits."""
        if self.parts:
            return 2 * (self.program_bytes + _PART_CACHE_BYTES * self.parts)
        return self.program_bytes + TYPICAL_CACHE_BYTES

    def nanoseconds(self, text_bytes: int, backtrack_limit: int) -> float:
        """How long a match may take. Measured: from each step of the engine on, each part may read all of the text."""
        each_byte = 1 + self.part_bytes / _BYTES_A_NANOSECOND
        return (backtrack_limit + text_bytes) * (_STEP_NANOSECONDS + self.parts * text_bytes * each_byte)


@lru_cache(maxsize=4096)
def measured(pattern: str) -> Pattern:
    """Return a pattern's size, doubling the limit until it fits; one that cannot be compiled counts as the largest."""
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
    """Return the options of the engine that may backtrack so often."""
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
