"""What the agent API is told beyond what every process is."""

from protocol.errors import ConfigurationError
from protocol.origins import Origins as AllowedOrigins
from protocol.runtime.settings import (
    Bytes,
    Count,
    KeepSeconds,
    Milliseconds,
    Origins,
    Port,
    Seconds,
    Settings,
    Switch,
    Text,
    require_loopback,
    variable,
)


class ApiSettings(Settings, frozen=True, kw_only=True):
    """Where to listen, which web origins may call, how long a command may take."""

    api_host: Text = "127.0.0.1"
    api_port: Port = 8000
    allowed_origins: Origins = ""
    command_timeout_ms: Milliseconds = 30_000
    max_command_timeout_ms: Milliseconds = 300_000
    ping_interval_seconds: Seconds = 25.0
    ping_timeout_seconds: Seconds = 8.0
    send_buffer_bytes: Bytes = 1024 * 1024
    max_sockets_per_agent: Count = 100
    idempotency_ttl_seconds: KeepSeconds = 86_400
    audit: Switch = "on"
    audit_parameters: Switch = "off"

    def check(self) -> None:
        """Raise `ConfigurationError` for values that are sound alone but not together."""
        super().check()
        require_loopback(self, self.api_host, "API_HOST")
        AllowedOrigins(self.allowed_origins)
        if self.command_timeout_ms > self.max_command_timeout_ms:
            raise ConfigurationError(
                f"{variable('command_timeout_ms')} is {self.command_timeout_ms}, but should be at most "
                f"{variable('max_command_timeout_ms')}, which is {self.max_command_timeout_ms}"
            )
