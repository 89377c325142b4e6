"""Searches among tools, or clients of a tool, that are too many to be listed."""

import heapq
from collections.abc import Generator
from itertools import islice
from typing import Any

from agent_api.tools.groups import ToolGroup
from agent_api.tools.views import Tool, ToolView, choice_of
from protocol.errors import UnknownCapability

MAX_FOUND = 20
MAX_LOOKED_AT = 50_000
MAX_WORDS = 16


def find_tools(view: ToolView, query: str) -> Generator[None, None, list[Tool]]:
    """Return the tools that have most of the words in their names or descriptions, the best first; in steps.

    Other requests may change the tools meanwhile: a tool that comes or goes at that moment may be missing.
    """
    words = query.lower().split()[:MAX_WORDS]
    best: list[tuple[int, int, ToolGroup]] = []  # a heap; the worst of them is the first
    for place, group in enumerate(islice(view.candidates(), MAX_LOOKED_AT)):
        yield
        score = _score(group, words)
        if score and view.offers(group):
            found = (score, -place, group)
            if len(best) < MAX_FOUND:
                heapq.heappush(best, found)
            else:
                heapq.heappushpop(best, found)
    groups = dict.fromkeys(group for _, _, group in sorted(best, reverse=True))
    return [view.tool(group) for group in groups if view.offers(group) and view.name_of(group) is not None]


def find_clients(view: ToolView, name: str, query: str) -> Generator[None, None, dict[str, Any]]:
    """Return the first clients that offer a tool and match a text by id, user, app or title; in steps.

    Raises `UnknownCapability` for a name that no tool has.
    """
    group = view.find(name)
    if group is None:
        raise UnknownCapability(f"there is no tool {name[:64]!r} for this token; list the tools again")
    wanted, total = query.lower(), 0
    found: list[dict[str, str]] = []
    for client in list(islice(view.clients_of(group), MAX_LOOKED_AT)):
        yield
        choice = choice_of(client)
        if any(wanted in text.lower() for text in choice.values()):
            total += 1
            if len(found) < MAX_FOUND:
                found.append(choice)
    return {"clients": found, "total": total}


def _score(group: ToolGroup, words: list[str]) -> int:
    definition = group.definition
    name = f"{definition.target} {definition.action or ''} {definition.title}".lower()
    description = definition.description.lower()
    return sum(3 * (word in name) + (word in description) for word in words)
