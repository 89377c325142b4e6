"""Names of tools in the form that every model provider accepts: `[A-Za-z_][A-Za-z0-9_-]{0,63}`.

A tool prefers the unchanged name of its capability. A changed name ends with digits of the tool's digest, so that
`ui.show` and `ui_show` differ. So does the name of the younger of two tools with the same name.
"""

import re

MAX_CHARS = 64
SUFFIX_DIGITS = (4, 8, 16, 32)
FIND_TOOLS, CALL_TOOL, FIND_CLIENTS = "find_tools", "call_tool", "find_clients"
RESERVED = frozenset({FIND_TOOLS, CALL_TOOL, FIND_CLIENTS})
_ODD = re.compile(r"[^A-Za-z0-9_-]")
_GOOD = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_SUFFIXED = re.compile(r".*_([0-9a-f]{4}(?:[0-9a-f]{4}|[0-9a-f]{12}|[0-9a-f]{28})?)")


def plain_name(target: str, action: str | None) -> str | None:
    """Return the name of a tool without digits, or None if it can only have one with digits."""
    written = _written(target, action)
    return written if _GOOD.fullmatch(written) and written not in RESERVED else None


def digits_of(name: str) -> str | None:
    """Return the digits of the digest at the end of a name, or None if there are none."""
    found = _SUFFIXED.fullmatch(name)
    return found[1][: SUFFIX_DIGITS[0]] if found else None


def names_for(target: str, action: str | None, digest: str) -> tuple[str, ...]:
    """Return the possible names of a tool, best first. `digest` is its own, in hexadecimal."""
    written = _written(target, action)
    name = written if _GOOD.fullmatch(written) else _mapped(written)
    suffixed = tuple(f"{name[: MAX_CHARS - 1 - digits]}_{digest[:digits]}" for digits in SUFFIX_DIGITS)
    return suffixed if name != written or name in RESERVED else (name, *suffixed)


def _written(target: str, action: str | None) -> str:
    return target if action is None else f"{target}_{action}"


def _mapped(written: str) -> str:
    name = _ODD.sub("_", written[:MAX_CHARS])
    if not name or name[0].isdigit() or name[0] == "-":  # Gemini accepts neither
        name = f"_{name}"
    return name[:MAX_CHARS]
