"""Command help that keeps the line breaks in lists of examples and variables."""

import inspect
from typing import Any

import click


class TeachingCommand(click.Command):
    """A command whose help does not rewrap a paragraph if its first line ends in a colon."""

    def __init__(self, name: str | None, **kwargs: Any) -> None:
        kwargs["help"] = keep_lists(kwargs.get("help") or "")
        super().__init__(name, **kwargs)


def keep_lists(text: str) -> str:
    """Put click's mark, a line with a backspace, before each paragraph that is a list, so that it is not rewrapped."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(f"\b\n{part}" if part.partition("\n")[0].endswith(":") else part for part in paragraphs)
