"""Makes and changes streams, and turns JetStream's refusals into sentences for the operator."""

import logging
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from protocol.errors import ConfigurationError
from protocol.runtime.nats.connection import Connection
from protocol.runtime.settings import PREFIX
from protocol.runtime.streams import jetstream
from protocol.runtime.streams.jetstream import JetStreamError, StreamInfo
from registry.stores.configurations import LEAST_BYTES, sized

ROOM_CURE = (
    "free space on its disk and restart it, or raise max_file_store in its jetstream settings, which is three quarters "
    "of the disk's free space if nothing is said"
)
_NOT_CLUSTERED = 10074
_CANNOT_BE_CHANGED = 10052
_NO_PEERS = 10005  # in a cluster: no servers have room for the stream
_NAME_IN_USE = 10058  # the stream exists with another configuration
_NO_ROOM = (jetstream.NO_STORAGE, _NO_PEERS, 10002, 10023, 10028)


class _Names(msgspec.Struct, frozen=True):
    streams: list[str] | None = None


class _StreamPage(msgspec.Struct, frozen=True):
    total: int
    streams: list[StreamInfo] | None = None


log = logging.getLogger(__name__)
_names = msgspec.json.Decoder(_Names)
_pages = msgspec.json.Decoder(_StreamPage)
_done: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


class StreamWriter:
    """Makes, changes, finds and removes streams. All raise as `jetstream.request()` does."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def info(self, name: str) -> StreamInfo | None:
        """Return a stream's state, or None if it does not exist."""
        return await jetstream.stream_info(self._connection, name)

    async def capturing(self, subject: str) -> list[str]:
        """Return the names of the streams that capture a subject."""
        found = await jetstream.request(self._connection, "STREAM.NAMES", _names, subject=subject)
        return found.streams or []

    async def all(self) -> AsyncIterator[StreamInfo]:
        """Yield every stream of the account, page by page."""
        offset, total = 0, 1
        while offset < total:
            page = await jetstream.request(self._connection, "STREAM.LIST", _pages, offset=offset)
            for info in page.streams or []:
                yield info
            offset, total = offset + (len(page.streams or []) or total), page.total

    async def create(self, config: dict[str, Any]) -> int:
        """Make a stream of the wanted size, or else of a quarter of the free room. Return its size.

        The rest is left to others. Return 0 if there is no room for 1 MiB. A stream that another registry has made
        meanwhile is accepted.
        """
        wanted = size = int(config["max_bytes"])
        while not await self._fits("CREATE", sized(config, size)):
            size //= 2
            if size < LEAST_BYTES:
                return 0
        if size < wanted:
            size = max(size // 4, LEAST_BYTES)
            await self._fits("UPDATE", sized(config, size))
            log.warning(
                "the stream %s has %d bytes instead of %d: too little room",
                config["name"],
                size,
                wanted,
            )
        return size

    async def create_unlimited(self, config: dict[str, Any]) -> None:
        """Make a stream without a size limit, for which NATS reserves nothing."""
        await self._write("CREATE", config)

    async def resize(self, config: dict[str, Any], size: int) -> bool:
        """Change a stream's size. Return False if there is no room."""
        return await self._fits("UPDATE", sized(config, size))

    async def update(self, config: dict[str, Any]) -> None:
        """Change a stream."""
        await self._write("UPDATE", config)

    async def delete(self, name: str) -> None:
        """Remove a stream, if there is one."""
        try:
            await jetstream.request(self._connection, f"STREAM.DELETE.{name}", _done)
        except JetStreamError as exc:
            if exc.err_code != jetstream.STREAM_NOT_FOUND:
                raise

    async def _fits(self, verb: str, config: dict[str, Any]) -> bool:
        try:
            await self._write(verb, config)
        except JetStreamError as exc:
            if exc.err_code == _NAME_IN_USE and verb == "CREATE":
                # Another registry has made a smaller one.
                return True
            if exc.err_code not in _NO_ROOM:
                raise
            return False
        return True

    async def _write(self, verb: str, config: dict[str, Any]) -> None:
        """Send a request. Raises `ConfigurationError` for faults that only the operator can mend."""
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
        others = [name for subject in config["subjects"] for name in await self.capturing(subject)]
        return (
            f"the stream {others[0] if others else 'of somebody else'} captures subjects of {config['name']}: delete it"
        )
