"""Cleans applications' texts for a model and its user: bounded, and without characters that only the model would see.

Control characters, and those that reverse the writing direction, could make a reader see another text than the model
does. Tags (U+E0000 to U+E007F) and variation selectors (U+E0100 to U+E01EF) can carry a whole hidden text.
"""

import unicodedata

MAX_DESCRIPTION_CHARS = 1024
MAX_TITLE_CHARS = 128
_JOINERS = "\u200c\u200d"  # allowed, because Persian and emoji need them
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})


def safe_text(text: object, max_chars: int = MAX_DESCRIPTION_CHARS) -> str:
    """Return a text without hidden characters. For any other value return ""."""
    if not isinstance(text, str):
        return ""
    kept = "".join(map(_seen, text[: 4 * max_chars])) if not text.isascii() or not text.isprintable() else text
    kept = kept.strip()
    return kept if len(kept) <= max_chars else f"{kept[: max_chars - 1]}…"


def safe_line(text: object, max_chars: int = MAX_TITLE_CHARS) -> str:
    """Return a text on one line, without hidden characters."""
    return " ".join(safe_text(text, max_chars).split())


def hides(value: object) -> bool:
    """Tell whether a text, or any text in a JSON value, has a hidden character."""
    if isinstance(value, str):
        return not value.isascii() and any(not _seen(char) for char in value)
    if isinstance(value, dict):
        return any(hides(name) or hides(each) for name, each in value.items())
    return isinstance(value, list) and any(map(hides, value))


def _seen(char: str) -> str:
    if char in "\n\t":
        return char
    if char in _JOINERS:
        return char
    return "" if unicodedata.category(char) in _HIDDEN or "\U000e0100" <= char <= "\U000e01ef" else char
