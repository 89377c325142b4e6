"""The buckets and streams of this product: made, or found and checked, at start and whenever NATS returns.

A NATS may come back with an empty store, so this is repeated after each reconnect and now and then in between. What an
operator has tuned (limits of age and size) is left alone; what the product relies on is mended where it differs.
"""

import asyncio
import contextlib
import logging
from typing import Any

import msgspec

from protocol import subjects
from protocol.errors import ConfigurationError, Internal, Unavailable
from protocol.runtime import jetstream
from protocol.runtime.jetstream import JetStreamError
from protocol.runtime.nats import Connection
from protocol.runtime.settings import PREFIX

DUPLICATE_WINDOW_SECONDS = 120
EVENTS_AGE_SECONDS = 3 * 86_400
AUDIT_AGE_SECONDS = 30 * 86_400
IDEMPOTENCY_AGE_SECONDS = 2 * 86_400  # entries carry a shorter time to live of their own; this catches the rest
STREAM_BYTES = 512 * 1024 * 1024
CHECK_SECONDS = 10.0
RETRY_SECONDS = 0.25
WAITING_LOG_SECONDS = 5.0
RECONNECT_SECONDS = 60.0
_NANOSECONDS = 1_000_000_000
_NOT_CLUSTERED = 10074
_CANNOT_BE_CHANGED = 10052
_REQUESTS = (  # what is asked and answered on NATS, and must not be stored: a stream's PubAck would be the first answer
    subjects.ALL_COMMANDS,
    subjects.ALL_REGISTRY_REQUESTS,
    f"{subjects.ROOT}._gateway.*.*",
    f"{subjects.ROOT}._registry.*",
    f"{subjects.ROOT}._registry.peer.*",
)
_RELIED_ON = ("num_replicas", "allow_msg_ttl", "allow_direct", "max_msgs_per_subject", "discard")

log = logging.getLogger(__name__)


class _Names(msgspec.Struct, frozen=True):
    streams: list[str] | None = None


_names = msgspec.json.Decoder(_Names)
_done: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


class Streams:
    """Keeps the buckets and streams in place."""

    def __init__(self, connection: Connection, replicas: int) -> None:
        self._connection = connection
        self._wanted = configurations(replicas)
        self._check_now = asyncio.Event()
        self._log_next = 0.0
        connection.on_reconnect(self._check_now.set)

    async def ensure(self) -> None:
        """Make or verify everything, waiting while JetStream is not ready.

        Raises `ConfigurationError` where a foreign stream captures requests, where one of ours has other subjects,
        and where the server cannot keep as many replicas as the settings ask for.
        """
        while True:
            try:
                return await self._ensure_once()
            except (Unavailable, Internal, JetStreamError) as exc:
                self._log_waiting(str(exc))
                await asyncio.sleep(RETRY_SECONDS)

    async def run(self) -> None:
        """Verify for ever: after each reconnect, and every ten seconds.

        What would have refused the start is an error in the log now: leaving would help nobody.
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
        for config in self._wanted:
            await self._ensure_stream(config)

    async def _refuse_strays(self) -> None:
        for subject in _REQUESTS:
            names = await self._capturing(subject)
            if names:
                raise ConfigurationError(
                    f"the stream {names[0]} captures {subject}, where requests are answered: its acknowledgements "
                    "would be taken for answers; delete it, or give it other subjects"
                )

    async def _capturing(self, subject: str) -> list[str]:
        found = await jetstream.request(self._connection, "STREAM.NAMES", _names, subject=subject)
        return found.streams or []

    async def _ensure_stream(self, config: dict[str, Any]) -> None:
        found = await jetstream.stream_info(self._connection, config["name"])
        if found is None:
            await self._write("CREATE", config)
            log.info("made the stream %s", config["name"])
        elif sorted(found.config.get("subjects") or []) != sorted(config["subjects"]):
            raise ConfigurationError(
                f"the stream {config['name']} has other subjects than this product's: delete or rename it"
            )
        else:
            wrong = {key: config[key] for key in _RELIED_ON if config[key] != found.config.get(key)}
            if wrong:
                await self._write("UPDATE", found.config | wrong)
                log.info("changed the stream %s: %s", config["name"], wrong)

    async def _write(self, verb: str, config: dict[str, Any]) -> None:
        name = config["name"]
        try:
            await jetstream.request(self._connection, f"STREAM.{verb}.{name}", _done, **config)
        except JetStreamError as exc:
            if exc.err_code == _NOT_CLUSTERED:
                raise ConfigurationError(
                    f"{PREFIX}REPLICAS is {config['num_replicas']}, but this NATS is one server and keeps 1"
                ) from exc
            if exc.err_code == jetstream.SUBJECTS_OVERLAP:
                raise ConfigurationError(await self._overlap(config)) from exc
            if exc.err_code == _CANNOT_BE_CHANGED and verb == "UPDATE":
                raise ConfigurationError(
                    f"the stream {name} was made without what this product relies on, and this NATS cannot change that "
                    f"({exc}): upgrade nats-server, or delete the stream, which is then made anew, empty"
                ) from exc
            raise

    async def _overlap(self, config: dict[str, Any]) -> str:
        others = [name for subject in config["subjects"] for name in await self._capturing(subject)]
        return (
            f"the stream {others[0] if others else 'of somebody else'} captures subjects of {config['name']}: delete it"
        )

    def _log_waiting(self, why: str) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._log_next:
            self._log_next = now + WAITING_LOG_SECONDS
            log.info("waiting for JetStream: %s", why)


def configurations(replicas: int) -> list[dict[str, Any]]:
    """Return the configuration of each stream, as JetStream's API spells it."""
    return [
        _bucket(subjects.CLIENTS_BUCKET, replicas),
        _bucket(
            subjects.IDEMPOTENCY_BUCKET,
            replicas,
            max_age=IDEMPOTENCY_AGE_SECONDS * _NANOSECONDS,
            max_bytes=STREAM_BYTES,  # when it is full, keyed commands are refused, and nothing is forgotten early
        ),
        _stream(
            subjects.EVENTS_STREAM, [subjects.ALL_EVENTS, subjects.ALL_CLIENT_CHANGES], replicas, EVENTS_AGE_SECONDS
        ),
        _stream(subjects.AUDIT_STREAM, [subjects.ALL_AUDIT], replicas, AUDIT_AGE_SECONDS),
    ]


def _bucket(name: str, replicas: int, **more: Any) -> dict[str, Any]:
    """Return the stream of a KV bucket (ADR-8) whose messages may each have a time to live (ADR-43)."""
    return {
        **_common(f"KV_{name}", [f"$KV.{name}.>"], replicas),
        "max_msgs_per_subject": 1,
        "discard": "new",
        "allow_rollup_hdrs": True,
        "deny_delete": True,
        "allow_msg_ttl": True,
        **more,
    }


def _stream(name: str, captured: list[str], replicas: int, age_seconds: int) -> dict[str, Any]:
    return {
        **_common(name, captured, replicas),
        "max_msgs_per_subject": -1,
        "discard": "old",
        "max_age": age_seconds * _NANOSECONDS,
        "max_bytes": STREAM_BYTES,
        "allow_msg_ttl": False,
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
