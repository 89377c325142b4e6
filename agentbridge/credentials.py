"""Where a command gets its credentials: flags, then the environment, then `run.json` of an `up` that runs.

All three become one environment, which is loaded and checked like that of any process.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import jwt
import msgspec

from agentbridge import data_folder
from agentbridge.data_folder import DATA_DIR, RunFile
from agentbridge.nats_config import CONSOLE
from agentbridge.output import without_password
from protocol.access import ADMIN, EVERY_PERMISSION
from protocol.errors import ConfigurationError, CredentialsRefused
from protocol.ids import is_token
from protocol.runtime.auth import DEFAULT_TENANT, mint
from protocol.runtime.nats import Connection, connect
from protocol.runtime.settings import LogLevel, Settings, Text, load, variable

CONNECT_SECONDS = 3
OWN_TOKEN_SECONDS = 3600
OWN_SUBJECT = "command-line"


class CommandSettings(Settings, frozen=True, kw_only=True):
    """What a command is told. Commands verify no token, so they need no key."""

    data_dir: Text = DATA_DIR
    token: Text | None = None
    log_level: LogLevel = "warning"

    def check(self) -> None:
        """Raise `ConfigurationError` for a file that cannot be read."""
        self.check_files()


def resolve(flags: Mapping[str, str | None], environment: Mapping[str, str]) -> CommandSettings:
    """Return the settings of a command; `flags` are named like the fields. Raises `ConfigurationError`."""
    given = {name: value for name, value in environment.items() if value.strip()}
    given |= {variable(field): value for field, value in flags.items() if value}
    folder = load(CommandSettings, given).data_dir
    running = data_folder.read(Path(folder))
    return load(CommandSettings, given if running is None else _from_running(running, given) | given)


def token_of(settings: CommandSettings) -> str | None:
    """Return the token to call with: the given one, or one of our own where the shared secret is known."""
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
    """Return the tenant that a token speaks for; it is verified by whoever it is sent to."""
    if token is None:
        return DEFAULT_TENANT
    try:
        tenant = jwt.decode(token, options={"verify_signature": False}).get("tenant", DEFAULT_TENANT)
    except jwt.PyJWTError as exc:
        raise ConfigurationError(f"the token is no JSON Web Token: mend --token or {variable('token')}") from exc
    if not isinstance(tenant, str) or not is_token(tenant):
        raise ConfigurationError("the token's tenant cannot be one: ask for another token")
    return tenant


@contextlib.asynccontextmanager
async def connected(settings: CommandSettings) -> AsyncIterator[Connection]:
    """Connect to NATS within seconds, and leave it at once: what a command asked for is there, or is given up.

    Raises `ConfigurationError` saying what to do where nobody answers.
    """
    user = settings.nats_user if settings.nats_user and is_token(settings.nats_user) else CONSOLE
    async with contextlib.AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                connection = await stack.enter_async_context(connect(settings, "agentbridge", user, drain=False))
        except TimeoutError as exc:
            raise ConfigurationError(
                f"no NATS server answers at {without_password(settings.nats_url)}: start `agentbridge up`, or say "
                f"where it is by --nats-url or {variable('nats_url')}"
            ) from exc
        except CredentialsRefused as exc:
            raise ConfigurationError(f"{exc}{_where_up_runs(settings.data_dir)}") from exc
        yield connection


def _where_up_runs(folder: str) -> str:
    """Return what to do where the credentials of a running `up` were looked for in a folder without one."""
    if data_folder.read(Path(folder)) is not None:
        return ""
    return (
        f"; those of a running `agentbridge up` are not in {folder}: go to the folder where it was started, or name "
        f"its data by --data-dir or {variable('data_dir')}"
    )


def _from_running(running: RunFile, given: Mapping[str, str]) -> dict[str, str]:
    """Return what the running `up` adds: never its password to another server, or to another user's name."""
    fields = ["jwt_secret", "jwt_audience", "jwt_issuer"]
    if variable("nats_url") not in given:
        fields += ["nats_url"]
        own_user = not any(variable(field) in given for field in ("nats_user", "nats_password", "nats_creds"))
        fields += ["nats_user", "nats_password"] if own_user else []
    found = msgspec.structs.asdict(running)
    return {variable(field): found[field] for field in fields if found[field] is not None}
