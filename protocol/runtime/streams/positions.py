"""A position in a stream, `epoch-sequence`: the id of every message, from which a reader resumes."""

import re
from typing import NamedTuple

_FORM = re.compile(r"([0-9]{1,32})-(0|[1-9][0-9]{0,18})")
_NO_DIGIT = re.compile(r"[^0-9]")


class Position(NamedTuple):
    """All of a stream's messages up to `sequence`. Sequences of different epochs cannot be compared."""

    epoch: str
    sequence: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.sequence}"


def parse_position(text: str) -> Position | None:
    """Parse a position, or return None if the text is not one."""
    match = _FORM.fullmatch(text)
    return Position(match[1], int(match[2])) if match else None


def epoch_of(created: str) -> str:
    """Return the epoch of a stream: the digits of its creation time, which never changes."""
    return _NO_DIGIT.sub("", created)
