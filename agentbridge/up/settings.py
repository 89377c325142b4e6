"""The settings of `up` and its children: the user's environment, and defaults for a developer's machine."""

import secrets
from collections.abc import Mapping

from agentbridge.deployment.data_folder import DATA_DIR
from protocol import origins
from protocol.runtime.settings import LingerSeconds, Origins, Port, Settings, Text, variable

DRAIN_SECONDS = 3
KEY_FIELDS = ("jwt_secret", "jwt_public_key_file", "jwt_jwks_url")


class UpSettings(Settings, frozen=True, kw_only=True):
    """The children's settings that `up` itself needs."""

    data_dir: Text = DATA_DIR
    gateway_host: Text = "127.0.0.1"
    gateway_port: Port = 8001
    api_host: Text = "127.0.0.1"
    api_port: Port = 8000
    allowed_origins: Origins = origins.LOOPBACK
    linger_seconds: LingerSeconds = 0.0
    nats_port: Port | None = None

    @property
    def ending_seconds(self) -> float:
        """How many seconds a child may take to end after the signal."""
        return self.linger_seconds + super().ending_seconds


def complete(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with the defaults of `up`: loopback origins, a short drain, random secrets."""
    given = {name: value for name, value in environment.items() if value.strip()}
    defaults = {variable("allowed_origins"): origins.LOOPBACK, variable("drain_seconds"): str(DRAIN_SECONDS)}
    if given.get(variable("auth")) != "off" and not any(variable(field) in given for field in KEY_FIELDS):
        defaults[variable("jwt_secret")] = secrets.token_urlsafe(48)
    elif variable("jwt_secret") not in given:
        defaults[variable("resume_secret")] = secrets.token_urlsafe(48)
    return defaults | given
