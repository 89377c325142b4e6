"""The configuration of each of our streams, with the names of JetStream's API."""

from typing import Any

from protocol import subjects
from protocol.runtime.streams.stores import StoreKind, TenantStore

MIB = 1024 * 1024
LEAST_BYTES = MIB
FIRST_BYTES: dict[StoreKind, int] = {"events": 8 * MIB, "audit": 4 * MIB, "keys": 4 * MIB}
STRANGERS_BYTES = 16 * MIB  # for refusals without a known tenant; the oldest go first
DUPLICATE_WINDOW_SECONDS = 120
EVENTS_AGE_SECONDS = 3 * 86_400
AUDIT_AGE_SECONDS = 30 * 86_400
KEYS_AGE_SECONDS = 2 * 86_400  # a key's entry has a shorter TTL of its own; this is for entries without one
SIZE_METADATA = "agentbridge.max_bytes"  # the size that we have set; an operator's `max_bytes` differs, and stays
RELIED_ON = ("num_replicas", "allow_msg_ttl", "allow_direct", "max_msgs_per_subject", "discard")
_NANOSECONDS = 1_000_000_000


def clients_bucket(replicas: int) -> dict[str, Any]:
    """Return the stream of the KV bucket of clients (ADR-8). Each of its messages may have its own TTL (ADR-43)."""
    return {
        **_common(f"KV_{subjects.CLIENTS_BUCKET}", [f"$KV.{subjects.CLIENTS_BUCKET}.>"], replicas),
        "max_msgs_per_subject": 1,
        "discard": "new",
        "allow_rollup_hdrs": True,
        "deny_delete": True,
        "allow_msg_ttl": True,
    }


def store(wanted: TenantStore, replicas: int) -> dict[str, Any]:
    """Return the stream of a tenant's store, with its first size."""
    common = _common(wanted.stream, wanted.captured, replicas)
    match wanted.kind:
        case "events":
            config = {**common, **_log(EVENTS_AGE_SECONDS)}
        case "audit":
            config = {**common, **_log(AUDIT_AGE_SECONDS)}
        case "keys":
            config = {**common, **_keys()}
    strangers = wanted.tenant == subjects.STRANGERS
    return sized(config, STRANGERS_BYTES if strangers else FIRST_BYTES[wanted.kind])


def sized(config: dict[str, Any], size: int) -> dict[str, Any]:
    """Return a configuration with another size, and with the metadata that we have set it."""
    return config | {"max_bytes": size, "metadata": (config.get("metadata") or {}) | {SIZE_METADATA: str(size)}}


def has_own_size(config: dict[str, Any]) -> bool:
    """Tell whether a stream has the size that we have set, not an operator's."""
    return (config.get("metadata") or {}).get(SIZE_METADATA) == str(config.get("max_bytes"))


def _log(age_seconds: int) -> dict[str, Any]:
    """Return a stream that keeps all messages until they are too old, or until it is full."""
    return {
        "max_msgs_per_subject": -1,
        "discard": "old",
        "max_age": age_seconds * _NANOSECONDS,
        "allow_msg_ttl": False,
    }


def _keys() -> dict[str, Any]:
    """Return a stream that keeps the last message of each subject. If it is full, it refuses new keys and drops none.

    It does not use `discard_new_per_subject`, because then an outcome could not replace its reservation.
    """
    return {
        "max_msgs_per_subject": 1,
        "discard": "new",
        "max_age": KEYS_AGE_SECONDS * _NANOSECONDS,
        "allow_msg_ttl": True,
    }


def _common(name: str, captured: list[str], replicas: int) -> dict[str, Any]:
    return {
        "name": name,
        "subjects": captured,
        "num_replicas": replicas,
        "retention": "limits",
        "storage": "file",
        "max_consumers": -1,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_msg_size": -1,
        "duplicate_window": DUPLICATE_WINDOW_SECONDS * _NANOSECONDS,
        "allow_direct": True,
    }
