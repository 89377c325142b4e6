"""Settings of a gateway."""

from protocol.records import Rate, second_worth
from protocol.runtime.settings import (
    Burst,
    Bytes,
    Count,
    KeepSeconds,
    Milliseconds,
    Origins,
    PerSecond,
    Port,
    Seconds,
    Settings,
    Switch,
    Text,
    require_loopback,
)


class GatewaySettings(Settings, frozen=True, kw_only=True):
    """Where a gateway listens, whom it lets in, and how long and how much it waits."""

    gateway_host: Text = "127.0.0.1"
    gateway_port: Port = 8001
    allowed_origins: Origins = ""
    command_timeout_ms: Milliseconds = 30_000
    max_command_timeout_ms: Milliseconds = 300_000
    ping_interval_seconds: Seconds = 25.0
    ping_timeout_seconds: Seconds = 8.0
    max_in_flight_per_client: Count = 64
    send_buffer_bytes: Bytes = 1024 * 1024
    idempotency_ttl_seconds: KeepSeconds = 86_400
    audit: Switch = "on"
    audit_parameters: Switch = "off"
    rate_limit_per_agent: PerSecond = 0.0
    rate_limit_burst: Burst = 0

    def check(self) -> None:
        """Raise `ConfigurationError` for values that are sound alone but not together."""
        super().check()
        require_loopback(self, self.gateway_host, "GATEWAY_HOST")

    @property
    def rate_per_agent(self) -> Rate | None:
        """How many commands an agent may send through this gateway, None for any number."""
        if not self.rate_limit_per_agent:
            return None
        usual = second_worth(self.rate_limit_per_agent)
        return Rate(usual.per_second, float(self.rate_limit_burst)) if self.rate_limit_burst else usual
