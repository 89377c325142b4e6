"""The names of all environment variables of the product, so that a mistyped one can be told from another process's.

Each process reads its own settings, but all may have the same environment. The names below are those that the base
settings do not have. A test compares them with the settings of all processes.
"""

import difflib
from collections.abc import Iterable, Mapping

import msgspec

from protocol.runtime.settings import PREFIX, ServingSettings, variable

OTHER_SETTINGS = (
    *("gateway_host", "gateway_port", "api_host", "api_port", "max_connections_per_user", "max_sockets_per_agent"),
    *("max_in_flight_per_client", "rate_limit_per_agent", "rate_limit_burst", "linger_seconds", "replicas"),
    *("events_per_session", "events_per_tenant", "progress_per_session", "progress_per_tenant", "bytes_per_session"),
    *("bytes_per_tenant", "registrations_per_session", "registrations_per_tenant", "data_dir", "token", "nats_port"),
    *("registry_host", "registry_port", "nats_account_seed", "nats_xkey_seed", "nats_system_password"),
    *("resume_grace_seconds", "oauth_issuers", "oauth_resource"),
    *("events_max_bytes", "audit_max_bytes", "keys_max_bytes", "max_kept_outcome_bytes"),
)
OF_DEPLOYMENTS = ("publish", "image", "build_network")  # Docker Compose reads these
FAMILIES = (f"{PREFIX}NATS_PASSWORD_", f"{PREFIX}TEST_")


def known() -> frozenset[str]:
    """Return the variables that some part of the product reads."""
    base = (field.name for field in msgspec.structs.fields(ServingSettings))
    return frozenset(map(variable, (*base, *OTHER_SETTINGS, *OF_DEPLOYMENTS)))


def unknown(environment: Mapping[str, str]) -> list[str]:
    """Return a sentence for each variable with our prefix that nothing reads. It does not show the value."""
    names = known()
    return [_sentence(name, names) for name in sorted(environment) if _is_unknown(name, names)]


def without_unknown(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without unknown variables, so that children do not warn about them again."""
    names = known()
    return {name: value for name, value in environment.items() if not _is_unknown(name, names)}


def _is_unknown(name: str, names: frozenset[str]) -> bool:
    return name.startswith(PREFIX) and name not in names and not name.startswith(FAMILIES)


def _sentence(name: str, names: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.8)
    meant = f"; did you mean {nearest[0]}?" if nearest else ""
    return f"{name} is not a setting, and has no effect{meant}"
