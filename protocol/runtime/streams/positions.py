"""Where a reader stands: `epoch-sequence`, the id of every message and what a reader resumes from."""

import re
from typing import NamedTuple

_FORM = re.compile(r"([0-9]{1,32})-(0|[1-9][0-9]{0,18})")
_NO_DIGIT = re.compile(r"[^0-9]")


class Position(NamedTuple):
    """All of a stream's messages up to `sequence`. Another `epoch` is another stream, whose sequences mean nothing."""

    epoch: str
    sequence: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.sequence}"


def parse_position(text: str) -> Position | None:
    """Return the position that a reader names, None where it is none of ours."""
    match = _FORM.fullmatch(text)
    return Position(match[1], int(match[2])) if match else None


def epoch_of(created: str) -> str:
    """Return the epoch of a stream: the digits of its creation time as the server spells it, which never changes."""
    return _NO_DIGIT.sub("", created)
