"""The registry's settings."""

from protocol.runtime.nats import login_keys
from protocol.runtime.settings import Memory, Port, Replicas, Settings, Switch, Text
from protocol.runtime.streams.stores import StoreKind


class RegistrySettings(Settings, frozen=True, kw_only=True):
    """The registry's own settings, besides those of every process."""

    replicas: Replicas = 1
    events_max_bytes: Memory = 512 * 1024 * 1024
    audit_max_bytes: Memory = 512 * 1024 * 1024
    keys_max_bytes: Memory = 512 * 1024 * 1024
    registry_host: Text = "127.0.0.1"
    registry_port: Port | None = None
    nats_account_seed: Text | None = None
    nats_xkey_seed: Text | None = None
    nats_system_password: Text | None = None
    audit: Switch = "on"

    @property
    def ceilings(self) -> dict[StoreKind, int]:
        """The largest size in bytes of a store of each kind."""
        return {"events": self.events_max_bytes, "audit": self.audit_max_bytes, "keys": self.keys_max_bytes}

    def check(self) -> None:
        """Raise `ConfigurationError` for values that are valid alone but not together, and for malformed seeds."""
        super().check()
        login_keys.pairs_of(self.nats_account_seed, self.nats_xkey_seed)
