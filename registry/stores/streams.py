"""The streams that do not belong to a tenant: makes or checks them at the start, after each reconnect, and every 10 s.

NATS may come back with an empty store, so once is not enough. An operator's limits of age and size are left alone.
Settings that we rely on are corrected.
"""

import asyncio
import contextlib
import logging
from typing import Any

from protocol import subjects
from protocol.errors import ConfigurationError, Internal, Unavailable
from protocol.runtime.log_throttle import LogThrottle
from protocol.runtime.nats.connection import Connection
from protocol.runtime.store_faults import JETSTREAM
from protocol.runtime.streams.jetstream import JetStreamError
from protocol.runtime.streams.stores import audit_of
from registry.stores.configurations import LEAST_BYTES, RELIED_ON, clients_bucket, store
from registry.stores.retirement import Retirement
from registry.stores.writing import ROOM_CURE, StreamWriter

NOT_READY_SECONDS = 5.0  # how long JetStream may take to start before it counts as a fault
CHECK_SECONDS = 10.0
RETRY_SECONDS = 0.25
WAITING_LOG_SECONDS = 5.0
RECONNECT_SECONDS = 60.0
_REQUESTS = (  # request subjects; a stream that captured them would answer first, with its PubAck
    subjects.ALL_COMMANDS,
    subjects.ALL_REGISTRY_REQUESTS,
    f"{subjects.ROOT}._gateway.*.*",
    f"{subjects.ROOT}._registry.*",
    f"{subjects.ROOT}._registry.peer.*",
)
_STORED = (subjects.ALL_EVENTS, subjects.ALL_CLIENT_CHANGES, subjects.ALL_AUDIT, subjects.ALL_KEYS)

log = logging.getLogger(__name__)


class Streams:
    """Keeps the bucket of clients and the stream for refusals without a tenant in place, and retires old streams."""

    def __init__(self, connection: Connection, replicas: int) -> None:
        self._connection = connection
        self._writer = StreamWriter(connection)
        self._retirement = Retirement(self._writer)
        self._bucket = clients_bucket(replicas)
        self._refusals = store(audit_of(subjects.STRANGERS), replicas)
        self._has_looked_for_foreign = False
        self._check_now = asyncio.Event()
        self._waiting_lines = LogThrottle(WAITING_LOG_SECONDS, asyncio.get_running_loop().time)
        connection.on_reconnect(self._check_now.set)

    async def ensure(self) -> None:
        """Make or check all streams. Waits while JetStream is not ready.

        Raises `ConfigurationError` if a foreign stream captures requests, one of ours has other subjects, the server
        cannot keep as many replicas as the settings ask for, or it has no room for a stream.
        """
        while True:
            try:
                await self._ensure_once()
            except (Unavailable, Internal, JetStreamError) as exc:
                self._log_waiting(str(exc))
                if self._connection.unbroken_seconds() > NOT_READY_SECONDS:
                    self._connection.stores.not_ready(str(exc))
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return self._connection.stores.took(JETSTREAM)

    async def run(self) -> None:
        """Check for ever: after each reconnect, and every ten seconds.

        A fault that would prevent the start is only logged as an error now, because ending the process would not help.
        """
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHECK_SECONDS):
                    await self._check_now.wait()
            self._check_now.clear()
            try:
                await self.ensure()
            except ConfigurationError as exc:
                log.error("%s", exc)

    async def _ensure_once(self) -> None:
        await self._connection.wait_connected(RECONNECT_SECONDS)
        await self._refuse_strays()
        await self._retirement.go_on()
        if not self._has_looked_for_foreign:
            await self._refuse_foreign()
        for config in (self._bucket, self._refusals):
            await self._ensure_stream(config)

    async def _refuse_strays(self) -> None:
        for subject in _REQUESTS:
            names = await self._writer.capturing(subject)
            if names:
                raise ConfigurationError(
                    f"the stream {names[0]} captures {subject}, where requests are answered: its acknowledgements "
                    "would be taken for answers; delete it, or give it other subjects"
                )

    async def _refuse_foreign(self) -> None:
        """Raise `ConfigurationError` if a foreign stream captures a subject of tenants' stores, which then fail."""
        for subject in _STORED:
            names = await self._writer.capturing(subject)
            foreign = [name for name in names if not name.startswith(f"{subjects.ROOT}_")]
            if foreign:
                raise ConfigurationError(
                    f"the stream {foreign[0]} captures {subject}, which each tenant's own stream keeps: delete it"
                )
        self._has_looked_for_foreign = True

    async def _ensure_stream(self, config: dict[str, Any]) -> None:
        found = await self._writer.info(config["name"])
        if found is None:
            await self._create(config)
        elif sorted(found.config.get("subjects") or []) != sorted(config["subjects"]):
            raise ConfigurationError(
                f"the stream {config['name']} has other subjects than this product's: delete or rename it"
            )
        else:
            await mend(self._writer, found.config, config)

    async def _create(self, config: dict[str, Any]) -> None:
        """Raise `ConfigurationError` if NATS has no room for 1 MiB."""
        if config["max_bytes"] < 0:
            await self._writer.create_unlimited(config)
        elif not await self._writer.create(config):
            raise ConfigurationError(
                f"NATS has no room for the stream {config['name']}, which needs {config['max_bytes']} bytes, "
                f"{LEAST_BYTES} at least: {ROOM_CURE}"
            )
        log.info("made the stream %s", config["name"])

    def _log_waiting(self, why: str) -> None:
        if self._waiting_lines.due():
            log.info("waiting for JetStream: %s", why)


async def mend(writer: StreamWriter, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Correct the settings that we rely on."""
    wrong = {key: wanted[key] for key in RELIED_ON if wanted[key] != found.get(key)}
    if wrong:
        await writer.update(found | wrong)
        log.info("changed the stream %s: %s", wanted["name"], wrong)
