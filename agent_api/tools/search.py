"""Searches among tools, or clients of a tool, that are too many to be listed."""

import asyncio
from itertools import islice
from typing import Any

from agent_api.tools.groups import ToolGroup
from agent_api.tools.views import Tool, ToolView, choice_of
from protocol.errors import UnknownCapability

MAX_FOUND = 20
MAX_LOOKED_AT = 50_000
LOOKS_A_TURN = 500


async def find_tools(view: ToolView, query: str) -> list[Tool]:
    """Return the tools with the most of the words in their names or descriptions, best first."""
    words = query.lower().split()[:16]
    scored: list[tuple[int, int, ToolGroup]] = []
    for place, group in enumerate(view.groups()):
        if place >= MAX_LOOKED_AT:
            break
        if place % LOOKS_A_TURN == LOOKS_A_TURN - 1:
            await asyncio.sleep(0)
        score = _score(group, words)
        if score:
            scored.append((-score, place, group))
    best = [group for _, _, group in sorted(scored, key=lambda each: each[:2])[:MAX_FOUND]]
    return [view.tool(group) for group in best if view.offers(group) and view.name_of(group) is not None]


async def find_clients(view: ToolView, name: str, query: str) -> dict[str, Any]:
    """Return the first clients that offer a tool and match a text by id, user, app or title.

    Raises `UnknownCapability` for a name that no tool has.
    """
    group = view.find(name)
    if group is None:
        raise UnknownCapability(f"there is no tool {name[:64]!r} for this token; list the tools again")
    wanted, total = query.lower(), 0
    found: list[dict[str, str]] = []
    for place, client in enumerate(list(islice(view.clients_of(group), MAX_LOOKED_AT))):
        if place % LOOKS_A_TURN == LOOKS_A_TURN - 1:
            await asyncio.sleep(0)
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
