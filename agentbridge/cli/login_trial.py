"""Tries an agent's login to NATS: by its token, which the server has a registry check."""

import re
import time

import msgspec

from agentbridge.cli.credentials import CommandSettings, connected, token_of
from protocol.errors import BridgeError, ConfigurationError


class LoginTrial(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The duration of the login, connecting included, or the reason of its refusal."""

    milliseconds: float | None = None
    refusal: str | None = None


async def try_login(settings: CommandSettings) -> LoginTrial | None:
    """Log in and disconnect. Return None if there is no token."""
    agent = msgspec.structs.replace(
        settings, nats_url=_without_user(settings.nats_url), nats_user=None, nats_password=None, nats_creds=None
    )
    if token_of(agent) is None:
        return None
    started = time.perf_counter()
    try:
        async with connected(agent):
            return LoginTrial(milliseconds=round((time.perf_counter() - started) * 1000, 3))
    except (BridgeError, ConfigurationError) as exc:
        return LoginTrial(refusal=str(exc))


def _without_user(urls: str) -> str:
    return re.sub(r"//[^/,\s]*@", "//", urls)
