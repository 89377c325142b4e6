"""Options of several commands: the NATS server, the token, and `--json`."""

import functools
import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from agentbridge.cli.credentials import resolve
from protocol.runtime import logs
from protocol.runtime.settings import environment, variable

R = TypeVar("R")
TO_NATS = ("nats_url", "nats_user", "nats_password", "data_dir")
TO_CALL = ("token", *TO_NATS)
_HELP = {
    "nats_url": "NATS server, nats://host:port.",
    "nats_user": "NATS user.",
    "nats_password": "NATS password.",
    "token": "Token to call with.",
    "data_dir": "Folder of a running `agentbridge up`, which supplies missing options.",
}

_DURATION = re.compile(r"(\d{1,9})([smhd]?)")
_UNIT_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def duration(text: str, option: str | None = None) -> int:
    """Parse `90s`, `15m`, `12h` or `7d` into seconds.

    Raises `click.BadParameter`. Pass `option` to name it in the error if click does not call this itself.
    """
    found = _DURATION.fullmatch(text)
    if found is None or int(found[1]) == 0:
        raise click.BadParameter(f"{text!r} is not a duration: write 90s, 15m, 12h or 7d", param_hint=option)
    return int(found[1]) * _UNIT_SECONDS[found[2]]


def needs_settings(*fields: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Pass a command its settings as the first argument: flags for `fields`, the environment, a running `up`."""

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        def with_settings(*args: Any, **kwargs: Any) -> R:
            settings = resolve({field: kwargs.pop(field) for field in fields}, environment())
            logs.configure("agentbridge", settings.log_format, settings.log_level)
            return function(settings, *args, **kwargs)

        command: Callable[..., R] = functools.update_wrapper(with_settings, function)
        for field in reversed(fields):
            command = _option(field)(command)
        return command

    return decorate


def _option(field: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    flag = "--" + field.replace("_", "-")
    return click.option(flag, field, help=f"{_HELP[field]}  [environment: {variable(field)}]")
