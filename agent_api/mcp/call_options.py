"""The options of a call, which are in `_meta` besides its arguments."""

from typing import Any

from agent_api.tools.calls import CallOptions, timeout_ms_of, wrong_timeout
from protocol.errors import InvalidRequest

TIMEOUT_MS, IDEMPOTENCY_KEY = "agentbridge/timeoutMs", "agentbridge/idempotencyKey"


def options_of(params: Any) -> CallOptions:
    """Return the options of a call. Raises `InvalidRequest` that names the field."""
    meta = params.get("_meta")
    if not isinstance(meta, dict):
        return CallOptions()
    timeout_ms, key = meta.get(TIMEOUT_MS), meta.get(IDEMPOTENCY_KEY)
    if key is not None and not isinstance(key, str):
        raise InvalidRequest(f"`_meta.{IDEMPOTENCY_KEY}`: must be a text")
    return CallOptions(None, None if timeout_ms is None else _timeout_ms(timeout_ms), key)


def _timeout_ms(value: Any) -> int:
    field = f"`_meta.{TIMEOUT_MS}`"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong_timeout(field)
    return timeout_ms_of(value, field)
