"""The registry's settings."""

from protocol.runtime.settings import Replicas, Settings


class RegistrySettings(Settings, frozen=True, kw_only=True):
    """What the registry is told besides what every process is."""

    replicas: Replicas = 1
