"""Settings from the environment: read once per process and checked before anything starts.

Each setting is a field of a frozen struct. msgspec checks its type and bounds, and the error line for a wrong value
quotes its `description`. Only this module reads the environment.
"""

import os
import re
import resource
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from protocol import origins
from protocol.errors import ConfigurationError
from protocol.runtime.version import FAST_PATHS

PREFIX = "AGENTBRIDGE_"
MIN_SECRET_BYTES = 32
OWN_FILES, MIN_CONNECTIONS, MAX_FILES = 1000, 100, 1_000_000
S = TypeVar("S", bound="Settings")

Port = Annotated[int, msgspec.Meta(ge=0, le=65535, description="a port from 0 to 65535; 0 takes any free one")]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400, description="a number of seconds greater than 0")]
LingerSeconds = Annotated[float, msgspec.Meta(ge=0, le=60, description="a number of seconds from 0 to 60")]
KeepSeconds = Annotated[int, msgspec.Meta(ge=60, le=86_400, description="seconds, a whole number from 60 to 86400")]
Milliseconds = Annotated[int, msgspec.Meta(gt=0, le=86_400_000, description="milliseconds, a whole number above 0")]
Count = Annotated[int, msgspec.Meta(gt=0, le=1_000_000, description="a whole number above 0")]
PerSecond = Annotated[float, msgspec.Meta(ge=0, le=1_000_000, description="a number a second; 0 for no limit")]
BytesPerSecond = Annotated[
    int, msgspec.Meta(ge=0, le=1024 * 1024 * 1024, description="bytes a second, up to 1073741824; 0 for no limit")
]
Burst = Annotated[int, msgspec.Meta(ge=0, le=1_000_000, description="a whole number; 0 for a second's worth")]
Limit = Annotated[int, msgspec.Meta(ge=0, le=1_000_000, description="a whole number; 0 for as many as files allow")]
Bytes = Annotated[int, msgspec.Meta(ge=1024, le=64 * 1024 * 1024, description="bytes, from 1024 to 67108864")]
Memory = Annotated[
    int, msgspec.Meta(ge=1024 * 1024, le=1 << 40, description="bytes, a whole number of at least 1048576")
]
Replicas = Annotated[Literal[1, 3, 5], msgspec.Meta(description="1, 3 or 5 servers that keep each stream")]
Text = Annotated[str, msgspec.Meta(description="text")]
File = Annotated[str, msgspec.Meta(description="the path of a readable file")]
Urls = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(nats|tls)://[^,\s]+(\s*,\s*(nats|tls)://[^,\s]+)*$",
        description="nats://host:port or tls://host:port, several with commas between",
    ),
]
WebUrl = Annotated[str, msgspec.Meta(pattern=r"^https?://\S+$", description="an http(s) URL")]
WebUrls = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(https?://[^,\s]+(\s*,\s*https?://[^,\s]+)*)?$", description="http(s) URLs, with commas between"
    ),
]
Secret = Annotated[str, msgspec.Meta(min_length=MIN_SECRET_BYTES, description="a secret of at least 32 bytes")]
Secrets = Annotated[
    str, msgspec.Meta(min_length=MIN_SECRET_BYTES, description="secrets of at least 32 bytes, with commas between")
]
Origins = Annotated[
    str, msgspec.Meta(description="origins such as https://app.example.com, with commas between; * allows any")
]
Switch = Annotated[Literal["on", "off"], msgspec.Meta(description="on or off")]
FastPaths = Annotated[
    str,
    msgspec.Meta(
        pattern="^(on|off|NAME(,NAME)*)$".replace("NAME", f"({'|'.join(FAST_PATHS)})"),
        description=f"on, off, or those that are on, with commas between: {', '.join(FAST_PATHS)}",
    ),
]
AuthMode = Annotated[Literal["jwt", "off"], msgspec.Meta(description="jwt, or off (loopback only)")]
LogFormat = Annotated[Literal["console", "json"], msgspec.Meta(description="console or json")]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"], msgspec.Meta(description="debug, info, warning or error")
]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of every process: NATS, tokens, logs, draining, fast paths."""

    nats_url: Urls = "nats://127.0.0.1:4222"
    nats_user: Text | None = None
    nats_password: Text | None = None
    nats_creds: File | None = None
    nats_ca: File | None = None
    auth: AuthMode = "jwt"
    jwt_secret: Secret | None = None
    jwt_secrets_also: Secrets | None = None
    jwt_public_key_file: File | None = None
    jwt_jwks_url: WebUrl | None = None
    jwt_audience: Text = "agentbridge"
    jwt_issuer: Text | None = None
    max_message_bytes: Bytes = 960 * 1024
    drain_seconds: Seconds = 10.0
    log_format: LogFormat = "console"
    log_level: LogLevel = "info"
    fast_paths: FastPaths = "on"

    def check(self) -> None:
        """Raise `ConfigurationError` for values that are sound alone but not together."""
        self.check_files()
        keys = [key for key in (self.jwt_secret, self.jwt_public_key_file, self.jwt_jwks_url) if key]
        if self.auth == "jwt" and len(keys) != 1:
            raise ConfigurationError(
                f"one of {PREFIX}JWT_SECRET, {PREFIX}JWT_PUBLIC_KEY_FILE and {PREFIX}JWT_JWKS_URL must be set, so that "
                f"tokens can be verified (or {PREFIX}AUTH=off, on loopback, to do without)"
            )

        if self.jwt_secrets_also is not None:
            self._check_more_secrets()

    def _check_more_secrets(self) -> None:
        name = variable("jwt_secrets_also")
        if any(len(secret.encode()) < MIN_SECRET_BYTES for secret in self.more_secrets):
            raise ConfigurationError(
                f"{name} should be secrets of at least {MIN_SECRET_BYTES} bytes, with commas between"
            )
        if self.auth == "jwt" and not self.jwt_secret:
            raise ConfigurationError(
                f"{name} adds to {PREFIX}JWT_SECRET, which is not set: tokens have another kind of key"
            )

    def check_files(self) -> None:
        """Raise `ConfigurationError` for a file that cannot be read."""
        for field_name in ("nats_creds", "nats_ca", "jwt_public_key_file"):
            _require_readable(field_name, getattr(self, field_name))

    @property
    def more_secrets(self) -> list[str]:
        """Further secrets besides `jwt_secret` that may sign tokens, while one replaces another."""
        return split_list(self.jwt_secrets_also or "")

    @property
    def audiences(self) -> list[str]:
        """The accepted audiences of tokens. Our own tokens have the first one."""
        return split_list(self.jwt_audience)

    @property
    def ending_seconds(self) -> float:
        """How many seconds a process may take to end after the signal."""
        return self.drain_seconds

    @property
    def nats_servers(self) -> list[str]:
        """The servers of `nats_url`, each as its own URL."""
        return [url.strip() for url in self.nats_url.split(",")]


class ServingSettings(Settings, frozen=True, kw_only=True):
    """The settings of gateways and agent APIs: admission, time-outs, bounds."""

    allowed_origins: Origins = ""
    resume_secret: Secrets | None = None
    command_timeout_ms: Milliseconds = 30_000
    max_command_timeout_ms: Milliseconds = 300_000
    ping_interval_seconds: Seconds = 25.0
    ping_timeout_seconds: Seconds = 8.0
    send_buffer_bytes: Bytes = 1024 * 1024
    max_unread_bytes: Memory = 256 * 1024 * 1024
    max_connections: Limit = 0
    idempotency_ttl_seconds: KeepSeconds = 86_400
    audit: Switch = "on"
    audit_parameters: Switch = "off"

    @property
    def most_connections(self) -> int:
        """The most open connections: by default the limit of open files, less the process's own."""
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return self.max_connections or max(MIN_CONNECTIONS, min(files, MAX_FILES) - OWN_FILES)

    @property
    def resume_secrets(self) -> list[str]:
        """The secrets from which all processes of a kind make the keys of what any of them may get back.

        The first one signs, all verify. There are none if tokens have another kind of key and none are set.
        """
        own = split_list(self.resume_secret or "")
        return own or ([self.jwt_secret, *self.more_secrets] if self.jwt_secret else [])

    def check(self) -> None:
        """Raise `ConfigurationError` for values that are valid alone but not together, and for malformed origins."""
        super().check()
        origins.Origins(self.allowed_origins)
        if any(len(secret.encode()) < MIN_SECRET_BYTES for secret in split_list(self.resume_secret or "")):
            raise ConfigurationError(
                f"{variable('resume_secret')} should be secrets of at least {MIN_SECRET_BYTES} bytes, "
                "with commas between"
            )
        if self.command_timeout_ms > self.max_command_timeout_ms:
            raise ConfigurationError(
                f"{variable('command_timeout_ms')} is {self.command_timeout_ms}, but should be at most "
                f"{variable('max_command_timeout_ms')}, which is {self.max_command_timeout_ms}"
            )


def variable(field_name: str) -> str:
    """Return the name of a field's environment variable."""
    return PREFIX + field_name.upper()


def load(kind: type[S], environment: Mapping[str, str] | None = None) -> S:
    """Read a process's settings. Raises `ConfigurationError` with one line that names the variable and the remedy."""
    environment = os.environ if environment is None else environment  # noqa: TID251  the one place that may
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        text = environment.get(variable(field.name), "").strip()
        if text:
            values[field.name] = _convert(field, text)
    settings = kind(**values)
    settings.check()
    return settings


def environment() -> dict[str, str]:
    """Return a copy of the environment, for children and for the command line's defaults."""
    return dict(os.environ)  # noqa: TID251  the one place that may


def wants_json() -> bool:
    """Tell whether log lines should be JSON, before the settings are checked."""
    return os.environ.get(variable("log_format"), "").strip() == "json"  # noqa: TID251  the one place that may


def describe(field: msgspec.structs.FieldInfo) -> str:
    """Return the phrase that describes a setting's valid values."""
    return _description(field.type) or "a value"


def require_loopback(settings: Settings, host: str, host_variable: str) -> None:
    """Raise `ConfigurationError` if authentication is off and `host` is not loopback."""
    if settings.auth == "off" and host not in ("127.0.0.1", "::1", "localhost"):
        raise ConfigurationError(
            f"{PREFIX}AUTH=off is for loopback only, but {PREFIX}{host_variable} is {host!r}: "
            "set 127.0.0.1 there, or give a key to verify tokens with"
        )


def split_list(text: str) -> list[str]:
    """Return the parts of a comma-separated setting, without blanks."""
    return [part for part in re.split(r"\s*,\s*", text.strip()) if part]


def _convert(field: msgspec.structs.FieldInfo, text: str) -> Any:
    try:
        return msgspec.convert(text, field.type, strict=False)
    except msgspec.ValidationError as exc:
        told = "" if _is_secret(field.name) else f"is {_without_credentials(text)!r}, but "
        raise ConfigurationError(f"{variable(field.name)} {told}should be {describe(field)}") from exc


def _is_secret(name: str) -> bool:
    return any(word in name for word in ("secret", "password", "seed"))


def _without_credentials(text: str) -> str:
    """Return a value for an error line, without user and password in URLs."""
    return re.sub(r"[^/,\s]*@", "…@", text)


def _description(annotation: Any) -> str:
    for meta in getattr(annotation, "__metadata__", ()):
        if isinstance(meta, msgspec.Meta) and meta.description:
            return meta.description
    return next(filter(None, map(_description, typing.get_args(annotation))), "")


def _require_readable(field_name: str, path: str | None) -> None:
    if path is not None:
        try:
            Path(path).open("rb").close()
        except OSError as exc:
            raise ConfigurationError(
                f"{variable(field_name)} is {path!r}, which cannot be read: {exc.strerror}"
            ) from exc
