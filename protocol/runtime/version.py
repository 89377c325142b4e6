"""The version of AgentBridge that runs here, as its processes tell it."""

from importlib import metadata

DISTRIBUTION = "agentbridge-nats"
NOT_INSTALLED = "0.0.0+not-installed"  # processes may run from a checkout beside their installed dependencies


def _installed() -> str:
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return NOT_INSTALLED


SERVICE_VERSION = _installed()
