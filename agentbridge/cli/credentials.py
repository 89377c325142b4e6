"""The credentials of a command: from flags, else the environment, else `run.json` of a running `agentbridge up`.

The three are merged into one environment, which is loaded and checked like that of any process.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import jwt
import msgspec

from agentbridge.cli import api_client
from agentbridge.cli.output import without_password
from agentbridge.deployment import data_folder
from agentbridge.deployment.data_folder import DATA_DIR, RunFile
from agentbridge.deployment.nats_config import LOGIN_SECONDS
from protocol.access import ADMIN, EVERY_PERMISSION
from protocol.errors import BridgeError, ConfigurationError, CredentialsRefused
from protocol.ids import is_token
from protocol.runtime.nats import agent_login
from protocol.runtime.nats.connection import Connection, connect
from protocol.runtime.settings import LogLevel, Settings, Text, load, variable
from protocol.runtime.tokens import ANYONE, DEFAULT_TENANT, mint

CONNECT_SECONDS = 3
UNANSWERED_SECONDS = (
    LOGIN_SECONDS - 0.2
)  # NATS waits so long for a registry; a refusal of one comes within milliseconds
OWN_TOKEN_SECONDS = 3600
OWN_SUBJECT = "command-line"
OWN_INBOX = "agentbridge"  # inbox prefix if the NATS user's name is unknown, as with a credentials file


class CommandSettings(Settings, frozen=True, kw_only=True):
    """The settings of a command. It needs no key, because it verifies no token."""

    data_dir: Text = DATA_DIR
    token: Text | None = None
    log_level: LogLevel = "warning"

    def check(self) -> None:
        """Raise `ConfigurationError` for a file that cannot be read."""
        self.check_files()


def resolve(flags: Mapping[str, str | None], environment: Mapping[str, str]) -> CommandSettings:
    """Return the settings of a command. `flags` have the names of fields. Raises `ConfigurationError` for a bad one."""
    given = {name: value for name, value in environment.items() if value.strip()}
    given |= {variable(field): value for field, value in flags.items() if value}
    folder = load(CommandSettings, given).data_dir
    running = data_folder.read(Path(folder))
    return load(CommandSettings, given if running is None else _from_running(running, given) | given)


def token_of(settings: CommandSettings) -> str | None:
    """Return the given token, else an admin token signed with the shared secret, else None."""
    if settings.token is not None or settings.jwt_secret is None:
        return settings.token
    return mint(
        settings.jwt_secret,
        OWN_SUBJECT,
        ADMIN,
        OWN_TOKEN_SECONDS,
        audience=settings.jwt_audience,
        issuer=settings.jwt_issuer,
        permissions=[EVERY_PERMISSION],
    )


def tenant_of(token: str | None) -> str:
    """Return the tenant in a token, unverified. Raises `ConfigurationError` if the token cannot be read."""
    if token is None:
        return DEFAULT_TENANT
    tenant = claims_of(token).get("tenant", DEFAULT_TENANT)
    if not isinstance(tenant, str) or not is_token(tenant):
        raise ConfigurationError("the token's tenant is not valid: ask for another token")
    return tenant


def user_of(token: str | None) -> str:
    """Return the name of the NATS user that a token logs in as. Without authentication it is the one agent's."""
    sub = ANYONE.sub if token is None else str(claims_of(token).get("sub", ""))
    return agent_login.user_name(tenant_of(token), sub)


def claims_of(token: str) -> dict[str, Any]:
    """Return a token's claims, unverified. Raises `ConfigurationError` if the text is not a token."""
    try:
        claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    except jwt.PyJWTError as exc:
        raise ConfigurationError(f"the token is not a JSON Web Token: correct --token or {variable('token')}") from exc
    return claims


def logs_in_by_token(settings: CommandSettings) -> bool:
    """Tell whether a command logs in to NATS by its token, because it has no NATS user in its settings."""
    return not _has_own_user(settings) and token_of(settings) is not None


def _has_own_user(settings: CommandSettings) -> bool:
    return "@" in settings.nats_url or any((settings.nats_user, settings.nats_password, settings.nats_creds))


@contextlib.asynccontextmanager
async def connected(settings: CommandSettings) -> AsyncIterator[Connection]:
    """Connect to NATS within three seconds. The exit does not drain, so a command never hangs at its end.

    Raises `ConfigurationError` with the mend if no server answers or it refuses the credentials.
    """
    started = time.monotonic()
    async with contextlib.AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                connection = await stack.enter_async_context(_connection(settings))
        except TimeoutError as exc:
            raise ConfigurationError(
                f"no NATS server answers at {without_password(settings.nats_url)}: start `agentbridge up`, or say "
                f"where it is by --nats-url or {variable('nats_url')}"
            ) from exc
        except CredentialsRefused as exc:
            if logs_in_by_token(settings):
                raise await _why_refused(settings, str(exc), time.monotonic() - started) from exc
            raise ConfigurationError(f"{exc}{_where_up_runs(settings.data_dir)}") from exc
        yield connection


def _connection(settings: CommandSettings) -> contextlib.AbstractAsyncContextManager[Connection]:
    """Connect as the NATS user in the settings, else as the agent of the token."""
    token = token_of(settings)
    if _has_own_user(settings):
        user = settings.nats_user if settings.nats_user and is_token(settings.nats_user) else OWN_INBOX
        return connect(settings, "agentbridge", user, drain=False)
    if token is None:  # authentication is off, and all callers are one agent
        return connect(settings, "agentbridge", user_of(None), drain=False)
    return connect(settings, "agentbridge", user_of(token), drain=False, token=lambda: _good_token(settings))


def _good_token(settings: CommandSettings) -> str:
    """Return a token for a login; one of our own is signed anew. Raises `ConfigurationError` if it has expired."""
    token = token_of(settings)
    assert token is not None
    expires_at = claims_of(token).get("exp")
    if isinstance(expires_at, int | float) and expires_at <= time.time():
        raise ConfigurationError(f"the token has expired: give another one by --token or {variable('token')}")
    return token


async def _why_refused(settings: CommandSettings, refusal: str, seconds: float) -> BridgeError | ConfigurationError:
    """Return why a token was refused. NATS does not say, so ask the agent API of a running `up`."""
    running = data_folder.read(Path(settings.data_dir))
    if running is not None and running.nats_url == settings.nats_url:
        reason = await api_client.refusal_of(running.api_url, token_of(settings))
        if reason is not None:
            return reason
    if seconds >= UNANSWERED_SECONDS:
        return ConfigurationError(
            f"NATS at {without_password(settings.nats_url)} lets no agent in, because no registry has answered its "
            "question about the token: start one by `agentbridge registry`, or all by `agentbridge up`"
        )
    return ConfigurationError(
        f"{refusal}, or no registry runs that could tell: a registry's log says why, and so does an agent API if you "
        "send it the token"
    )


def _where_up_runs(folder: str) -> str:
    """Return a hint for the error if no `up` runs in `folder`, else ""."""
    if data_folder.read(Path(folder)) is not None:
        return ""
    return (
        f"; those of a running `agentbridge up` are not in {folder}: go to the folder where it was started, or name "
        f"its data by --data-dir or {variable('data_dir')}"
    )


def _from_running(running: RunFile, given: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the running `up` adds to the given ones.

    Its NATS password goes to no other server and with no other user's name. It has a NATS user only if it was started
    with an existing NATS server that needs one; there agents may be unable to log in by token.
    """
    fields = ["jwt_secret", "jwt_audience", "jwt_issuer"]
    if variable("nats_url") not in given:
        fields += ["nats_url"]
        own_user = any(variable(field) in given for field in ("nats_user", "nats_password", "nats_creds"))
        fields += [] if own_user or variable("token") in given else ["nats_user", "nats_password"]
    found = msgspec.structs.asdict(running)
    return {variable(field): found[field] for field in fields if found[field] is not None}
