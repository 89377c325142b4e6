"""The output of commands: aligned tables for people, JSON for programs.

Names and values come from applications. Their control and bidirectional characters could recolour, rewrite or reorder a
terminal's text, so they are written as escapes. In JSON an escape is the same value.
"""

from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import click
import msgspec

from protocol.errors import BridgeError
from protocol.runtime.settings import split_list

GAP = "  "


def printable(text: str) -> str:
    """Return text with control and other unprintable characters shown as escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return rows in aligned columns below their headers."""
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *shown, strict=True)]
    head = click.style(_aligned(headers, widths), bold=True)
    return "\n".join([head, *(_aligned(row, widths) for row in shown)])


def one_line(value: Any) -> str:
    """Return a JSON value on one line, for programs."""
    return _escaped(msgspec.json.format(msgspec.json.encode(value), indent=-1).decode())


def readable(value: Any) -> str:
    """Return a JSON value spread over lines, for people."""
    spread = msgspec.json.format(msgspec.json.encode(value)).decode()
    return "\n".join(_escaped(line) for line in spread.split("\n"))


def sentence(error: BridgeError) -> str:
    """Return an error on one line: its code, its message, and its details, if any."""
    details = f" {one_line(error.details)}" if error.details else ""
    return printable(f"{error.code}: {error.message}{details}")


def _escaped(text: str) -> str:
    """Return JSON with its unprintable characters as escapes. They can only be inside strings."""
    return text if text.isprintable() else "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    """Return a character's JSON escape, which is one or two UTF-16 code units (RFC 8259 section 7)."""
    halves = char.encode("utf-16-be")
    return "".join(f"\\u{halves[at : at + 2].hex()}" for at in range(0, len(halves), 2))


def without_password(urls: str) -> str:
    """Return comma-separated URLs without user and password."""
    return ", ".join(_without_userinfo(url) for url in split_list(urls))


def _without_userinfo(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    return GAP.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
