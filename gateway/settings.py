"""The gateway's own settings, beside those of every serving process."""

from gateway.limits.client_rates import ClientRates, FrameLimits, FrameRate
from protocol.records import Rate, second_worth
from protocol.runtime.settings import (
    Burst,
    Bytes,
    BytesPerSecond,
    Count,
    PerSecond,
    Port,
    Seconds,
    ServingSettings,
    Text,
    require_loopback,
)


class GatewaySettings(ServingSettings, frozen=True, kw_only=True):
    """The address of the gateway, and its bounds."""

    gateway_host: Text = "127.0.0.1"
    gateway_port: Port = 8001
    max_in_flight_per_client: Count = 64
    max_kept_outcome_bytes: Bytes = 32 * 1024
    max_connections_per_user: Count = 1000
    resume_grace_seconds: Seconds = 30.0
    rate_limit_per_agent: PerSecond = 0.0
    rate_limit_burst: Burst = 0
    events_per_session: PerSecond = 5_000.0
    events_per_tenant: PerSecond = 50_000.0
    progress_per_session: PerSecond = 2_000.0
    progress_per_tenant: PerSecond = 20_000.0
    registrations_per_session: PerSecond = 200.0
    registrations_per_tenant: PerSecond = 5_000.0
    bytes_per_session: BytesPerSecond = 4 * 1024 * 1024
    bytes_per_tenant: BytesPerSecond = 64 * 1024 * 1024

    def check(self) -> None:
        """Raise `ConfigurationError` for values that are sound alone but not together."""
        super().check()
        require_loopback(self, self.gateway_host, "GATEWAY_HOST")

    @property
    def rate_per_agent(self) -> Rate | None:
        """The rate of an agent's commands through this gateway, or None for no limit."""
        if not self.rate_limit_per_agent:
            return None
        usual = second_worth(self.rate_limit_per_agent)
        return Rate(usual.per_second, float(self.rate_limit_burst)) if self.rate_limit_burst else usual

    def client_rates(self) -> ClientRates:
        """Return the rate limits of client frames, all unused."""
        return ClientRates(
            self._limits(self.events_per_session, self.events_per_tenant),
            self._limits(self.progress_per_session, self.progress_per_tenant),
            self._limits(self.registrations_per_session, self.registrations_per_tenant),
        )

    def _limits(self, per_session: float, per_tenant: float) -> FrameLimits:
        session = FrameRate(per_session, self.bytes_per_session)
        return FrameLimits(session, FrameRate(per_tenant, self.bytes_per_tenant))
