"""Suggests the known field that a misspelt name was meant to be.

Ignoring a misspelt field widens a request: a command with `client_id` would go to any client, and one with `arguments`
would run without parameters. So HTTP bodies and frames of agents' sockets may have no unknown field. NATS requests may
have no near miss of a known field, and capabilities none of a field that restricts or checks them.
"""

import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType, UnionType
from typing import Any

import msgspec

MAX_DISTANCE = 2
MAX_NAME_CHARS = 64
LETTERS_A_FAULT = 2  # fewer than half of the letters may be wrong
# Names in other protocols for our fields.
ALIASES: Mapping[str, str] = MappingProxyType(
    {"arguments": "parameters", "params": "parameters", "args": "parameters", "input": "parameters"}
)
_SUGGESTED = MappingProxyType(
    {**ALIASES, "name": "target", "function": "target", "tool": "target", "capability": "target", "method": "action"}
)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*?)`(?: - at `\$\.?([\w.]*)`)?", re.DOTALL)


def near_miss(
    name: str, fields: Iterable[str], aliases: Mapping[str, str] = ALIASES, letters_a_fault: int = LETTERS_A_FAULT
) -> str | None:
    """Return the field that a name nearly is: except for case and `_`, by an alias, or with up to two wrong letters.

    Fewer than one in `letters_a_fault` letters may be wrong. `aliases` are in `plain()` form, such as `timeoutms`.
    """
    return _nearest(name, fields, aliases, letters_a_fault)


def plain(name: str) -> str:
    """Return a name in lower case and without `_` and `-`, because these are often confused."""
    return name.replace("_", "").replace("-", "").lower()


def is_unknown_field(text: str) -> bool:
    """Tell whether a sentence of msgspec is about an unknown field."""
    return _UNKNOWN.fullmatch(text) is not None


def sentence_of(text: str, kind: Any, tag: Any = None) -> str:
    """Return our own sentence about an unknown field, instead of msgspec's.

    `kind` is the expected type. If it is a union of tagged structs, `tag` selects one of them.
    """
    found = _UNKNOWN.fullmatch(text)
    assert found is not None
    name, level = found[1], found[2] or ""
    levels = _levels_of(kind, tag if isinstance(tag, str) else None)
    shown = _path(level, name[:MAX_NAME_CHARS])
    meant = _meant(name, level, levels)
    if meant is not None:
        return f"`{shown}`: there is no such field; did you mean `{meant}`?"
    known = ", ".join(levels.get(level, ()))
    return f"`{shown}`: there is no such field" + (f"; known are {known}" if known else "")


def _meant(name: str, level: str, levels: Mapping[str, tuple[str, ...]]) -> str | None:
    """Return the intended field, from the same level if one fits, else from another level."""
    here = _nearest(name, levels.get(level, ()), _SUGGESTED)
    if here is not None:
        return _path(level, here)
    others = [(other, _nearest(name, fields, _SUGGESTED)) for other, fields in levels.items() if other != level]
    return next((_path(other, field) for other, field in others if field is not None), None)


def _path(level: str, name: str) -> str:
    return f"{level}.{name}" if level else name


def _nearest(
    name: str, fields: Iterable[str], aliases: Mapping[str, str], letters_a_fault: int = LETTERS_A_FAULT
) -> str | None:
    """Return the field with the nearest spelling, its own or an alias's; None if none is near."""
    if len(name) > MAX_NAME_CHARS:
        return None
    written, best, best_distance = plain(name), None, MAX_DISTANCE + 1
    for field in fields:
        for known in (plain(field), *(alias for alias, meant in aliases.items() if meant == field)):
            distance = _distance(written, known)
            if distance < best_distance and letters_a_fault * distance < max(len(written), len(known)):
                best, best_distance = field, distance
    return best


def _distance(one: str, other: str) -> int:
    """Return the optimal string alignment distance: Levenshtein's, but two swapped letters count as one fault.

    Above `maximum` the result may be any larger number.
    """
    if one == other:
        return 0
    # Each fault changes the set of letters by two at most. That alone excludes most names, and is quick to check.
    if abs(len(one) - len(other)) > MAX_DISTANCE or len(set(one) ^ set(other)) > 2 * MAX_DISTANCE:
        return MAX_DISTANCE + 1
    above: list[int] = []
    row = list(range(len(other) + 1))
    for number, letter in enumerate(one, 1):
        above_that, above, row = above, row, [number]
        for place, wanted in enumerate(other, 1):
            row.append(min(above[place] + 1, row[-1] + 1, above[place - 1] + (letter != wanted)))
            if number > 1 < place and letter == other[place - 2] and wanted == one[number - 2]:
                row[-1] = min(row[-1], above_that[place - 2] + 1)
        if min(row) > MAX_DISTANCE:
            return MAX_DISTANCE + 1
    return row[-1]


def _levels_of(kind: Any, tag: Any) -> dict[str, tuple[str, ...]]:
    """Return the field names of a struct (of a union: of the one with `tag`) and of its nested structs, by path."""
    structs = list(_structs_in(kind))
    if len(structs) > 1:
        structs = [each for each in structs if each.__struct_config__.tag == tag]
    return {path: names for struct in structs for path, names in _levels_below(struct, "").items()}


@lru_cache(maxsize=128)
def _levels_below(struct: type[msgspec.Struct], level: str) -> dict[str, tuple[str, ...]]:
    fields = msgspec.structs.fields(struct)
    levels = {level: tuple(field.encode_name for field in fields)}
    for field in fields:
        for inner in _structs_in(field.type):
            levels |= _levels_below(inner, _path(level, field.encode_name))
    return levels


def _structs_in(annotation: Any) -> Iterator[type[msgspec.Struct]]:
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        yield annotation
    elif typing.get_origin(annotation) in (typing.Union, UnionType):
        for each in typing.get_args(annotation):
            yield from _structs_in(each)
