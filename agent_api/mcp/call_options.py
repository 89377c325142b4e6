"""The options of a call, which are in `_meta` besides its arguments."""

from typing import Any

from agent_api.tools.calls import CallOptions
from protocol.codec import whole
from protocol.errors import InvalidRequest

TIMEOUT_MS, IDEMPOTENCY_KEY = "agentbridge/timeoutMs", "agentbridge/idempotencyKey"


def options_of(params: Any) -> CallOptions:
    """Return the options of a call. Raises `InvalidRequest` that names the field."""
    meta = params.get("_meta")
    if not isinstance(meta, dict):
        return CallOptions()
    timeout_ms, key = meta.get(TIMEOUT_MS), meta.get(IDEMPOTENCY_KEY)
    if timeout_ms is not None and (isinstance(timeout_ms, bool) or not isinstance(timeout_ms, int | float)):
        raise InvalidRequest(f"`_meta.{TIMEOUT_MS}`: must be a number of milliseconds")
    if key is not None and not isinstance(key, str):
        raise InvalidRequest(f"`_meta.{IDEMPOTENCY_KEY}`: must be a text")
    return CallOptions(None, None if timeout_ms is None else whole(timeout_ms, f"`_meta.{TIMEOUT_MS}`"), key)
