"""What a gateway is told beyond what every process that serves is."""

from protocol.records import Rate, second_worth
from protocol.runtime.settings import Burst, Count, PerSecond, Port, ServingSettings, Text, require_loopback


class GatewaySettings(ServingSettings, frozen=True, kw_only=True):
    """Where a gateway listens, and how much it takes."""

    gateway_host: Text = "127.0.0.1"
    gateway_port: Port = 8001
    max_in_flight_per_client: Count = 64
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
