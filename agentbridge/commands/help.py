"""Help that teaches: lists of examples and variables in a docstring are shown as they were written."""

import inspect
from typing import Any

import click


class TeachingCommand(click.Command):
    """A command whose help does not rewrap a paragraph if its first line ends in a colon."""

    def __init__(self, name: str | None, **kwargs: Any) -> None:
        kwargs["help"] = keep_lists(kwargs.get("help") or "")
        super().__init__(name, **kwargs)


def keep_lists(text: str) -> str:
    """Mark the paragraphs that are lists, as click wants them marked."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(f"\b\n{part}" if part.partition("\n")[0].endswith(":") else part for part in paragraphs)
