"""Sets aside the common streams of older versions, for events, audit and keys of all tenants, and removes them later.

No two streams may capture one subject. So the old streams get other subjects and keep their messages. Readers go on
there until none is left; then the stream is removed. Keys live for a day at most, but their bucket stays for two days,
because gateways of the old version may still write to it.
"""

import logging
import time
from typing import Any

from protocol import subjects
from protocol.runtime.streams.jetstream import StreamInfo
from registry.stores.configurations import KEYS_AGE_SECONDS, MIB
from registry.stores.writing import StreamWriter

RETIRED_AT_METADATA = "agentbridge.retired_at"
_LOGS = {
    subjects.RETIRED_EVENTS_STREAM: ([subjects.ALL_CLIENT_CHANGES, subjects.ALL_EVENTS], f"{subjects.RETIRED}.events"),
    subjects.RETIRED_AUDIT_STREAM: ([subjects.ALL_AUDIT], f"{subjects.RETIRED}.audit"),
}
_KEYS = f"KV_{subjects.RETIRED_KEYS_BUCKET}"

log = logging.getLogger(__name__)


class Retirement:
    """Sets the old streams aside, and removes them when they are not needed any more."""

    def __init__(self, writer: StreamWriter) -> None:
        self._writer = writer

    async def go_on(self) -> None:
        """Take the due steps. If a registry dies in between, the next one goes on."""
        for name, (captured, retired) in _LOGS.items():
            info = await self._writer.info(name)
            if info is not None:
                await self._set_aside(info, captured, retired)
        keys = await self._writer.info(_KEYS)
        if keys is not None:
            await self._let_age(keys)

    async def _set_aside(self, info: StreamInfo, captured: list[str], retired: str) -> None:
        name, present = info.config["name"], sorted(info.config.get("subjects") or [])
        if present == captured:
            await self._writer.update(_marked(info.config) | {"subjects": [retired], "max_bytes": _enough_for(info)})
            log.warning("set the stream %s aside, because each tenant has its own now", name)
        elif present == [retired] and not info.state.messages:
            # Its messages have aged out, so no reader can have a position in it.
            await self._writer.delete(name)
            log.info("removed the stream %s, because its messages are too old", name)

    async def _let_age(self, info: StreamInfo) -> None:
        retired_at = (info.config.get("metadata") or {}).get(RETIRED_AT_METADATA, "")
        if not retired_at.isdecimal():
            await self._writer.update(_marked(info.config))
        elif time.time() > int(retired_at) + KEYS_AGE_SECONDS:
            await self._writer.delete(_KEYS)
            log.info("removed the bucket %s, because its keys are too old", subjects.RETIRED_KEYS_BUCKET)


def _marked(config: dict[str, Any]) -> dict[str, Any]:
    return config | {"metadata": (config.get("metadata") or {}) | {RETIRED_AT_METADATA: str(int(time.time()))}}


def _enough_for(info: StreamInfo) -> int:
    """Return a size that keeps all messages and reserves little more, because nothing is added any more."""
    return info.state.bytes + MIB
