"""Finds the ids in a JSON message that cannot be decoded: its own, and that of the command it would have answered.

The caller of that command would wait until its deadline otherwise. Only the two ends of a message are looked at, so
that a large one costs no more than a small one; applications write `type` and `requestId` before the result or after.
"""

import re

LOOKED_AT_BYTES = 2048
# A text without an end is one token up to the end of the input: each of a thousand escaped quotes would be tried as its
# beginning otherwise, which took 50 ms. Brackets side by side are one token: one each took 1.7 ms for 2,048 of them.
_TOKEN = re.compile(rb'"((?:[^"\\]|\\.)*)(?:(")(\s*:)?|\\?\Z)|[\[{\]}][\[{\]},\s]*', re.DOTALL)
_FIELDS = ("type", "id", "requestId", "correlationId")
_TYPE = re.compile(rb"""["']type["']\s*:\s*["'](response|[a-z_]+_result)["']""")
_ANSWERED = re.compile(rb"""["'](requestId|correlationId)["']\s*:\s*["']([!-&(-~]+?)["']""")


def fields_of(data: bytes) -> dict[str, str]:
    """Return the type and the ids of a message as far as they are found; each a text without escapes."""
    found = _fields_of_head(data[:LOOKED_AT_BYTES])
    if not found or len(data) > LOOKED_AT_BYTES:  # without any, it may be a list, or written as Python writes a dict
        for name, value in _fields_of_tail(data[-LOOKED_AT_BYTES:]).items():
            found.setdefault(name, value)
    return found


def _fields_of_head(head: bytes) -> dict[str, str]:
    """Return the fields of the outermost object that are texts: those of a result within have names of their own."""
    found: dict[str, str] = {}
    depth, name = 0, ""
    for token in _TOKEN.finditer(head):
        text, is_whole, is_name = token[1], token[2] is not None, token[3] is not None
        if text is None:
            brackets = token[0]
            depth += brackets.count(b"[") + brackets.count(b"{") - brackets.count(b"]") - brackets.count(b"}")
            name = ""
        elif depth == 1 and is_whole:
            if not is_name and name in _FIELDS:
                found.setdefault(name, text.decode(errors="replace"))
            name = text.decode(errors="replace") if is_name else ""
    return found


def _fields_of_tail(tail: bytes) -> dict[str, str]:
    """Return the last ids of a command, and the type of an answer. A tail begins somewhere within, at any depth."""
    kind = _TYPE.search(tail)
    found = {} if kind is None else {"type": kind[1].decode()}
    for match in _ANSWERED.finditer(tail):
        found[match[1].decode()] = match[2].decode()
    return found
