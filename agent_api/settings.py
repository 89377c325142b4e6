"""The agent API's own settings, besides those of every serving process."""

from protocol.runtime.settings import (
    Count,
    LingerSeconds,
    Port,
    ServingSettings,
    Text,
    WebUrl,
    WebUrls,
    require_loopback,
)


class ApiSettings(ServingSettings, frozen=True, kw_only=True):
    """The address to listen on, and the number of WebSockets that an agent may have."""

    api_host: Text = "127.0.0.1"
    api_port: Port = 8000
    max_sockets_per_agent: Count = 100
    linger_seconds: LingerSeconds = 0.0
    oauth_issuers: WebUrls = ""
    oauth_resource: WebUrl | None = None

    @property
    def ending_seconds(self) -> float:
        """How many seconds it may take to end after the signal, lingering included."""
        return self.linger_seconds + super().ending_seconds

    def check(self) -> None:
        """Raise `ConfigurationError` for values that are valid alone but not together."""
        super().check()
        require_loopback(self, self.api_host, "API_HOST")
