"""Stores that may not exist yet: before this process first writes to one, it asks a registry to make it.

We ask first instead of publishing first, because a missing stream is not always noticed. NATS answers *no responders*
only if nobody taps the subject; with a tap there is silence. A registry answers within milliseconds. If none answers
within two seconds, we publish anyway, because the store probably exists.

We forget the known stores at each reconnect, because NATS may come back empty, and a single store if a publish to it
gets *no responders* or no answer.
"""

import asyncio
import itertools
from collections.abc import Callable

import msgspec
from nats.aio.msg import Msg

from protocol import codec, subjects
from protocol.errors import BridgeError, Unavailable
from protocol.messages import ERROR_CODE_HEADER, ErrorResponse
from protocol.runtime.nats.connection import Connection
from protocol.runtime.streams.stores import StoreRequest, TenantStore

ASK_SECONDS = 2.0
REFUSED_SECONDS = 1.0  # how long a registry's refusal answers further questions
HINT_BYTES = 1024 * 1024  # written to a store between hints to a registry; about an eighth of a new store's size
_NO_RESPONDERS = "503"
_NO_REGISTRY = "the store of this tenant may not exist yet, and no registry answers that could make it"

Done = Callable[[str], None]
_errors = msgspec.json.Decoder(ErrorResponse)


class _Asking:
    """One question to a registry, and the callbacks that wait for its answer."""

    def __init__(self, store: TenantStore, timer: asyncio.TimerHandle) -> None:
        self.store = store
        self.timer = timer
        self.waiting: list[Done] = []


class TenantStores:
    """The stores that this process knows to exist. `start()` it first."""

    def __init__(self, connection: Connection, refused_seconds: float = REFUSED_SECONDS) -> None:
        self._connection = connection
        self._refused_seconds = refused_seconds
        self._loop = asyncio.get_running_loop()
        self._inbox = connection.new_inbox()
        self._numbers = itertools.count()
        self._known: set[str] = set()  # names of streams
        self._asking: dict[TenantStore, _Asking] = {}
        self._asked: dict[str, _Asking] = {}
        self._refused: dict[TenantStore, tuple[float, str]] = {}
        self._written: dict[TenantStore, int] = {}
        self._grew_at: dict[TenantStore, float] = {}
        connection.on_reconnect(self._forget_all)

    async def start(self) -> None:
        """Subscribe for the answers of registries."""
        await self._connection.subscribe_directly(f"{self._inbox}.*", self._on_answer)

    def knows(self, store: TenantStore) -> bool:
        """Tell whether this process knows that a store exists."""
        return store.stream in self._known

    def took(self, stream: str) -> None:
        """Note that a store has taken a message, so it exists."""
        self._known.add(stream)

    def forget(self, stream: str) -> None:
        """Note that a publish to a store got *no responders* or no answer, so its stream may be gone."""
        self._known.discard(stream)

    def make(self, store: TenantStore, done: Done) -> None:
        """Let a registry make a store. `done` is called with "" if the store exists, else with the reason.

        Concurrent callers share one question. `done` is called within two seconds, perhaps before this returns.
        """
        refused_at, why = self._refused.get(store, (float("-inf"), ""))
        if store.stream in self._known:
            done("")
        elif self._loop.time() < refused_at + self._refused_seconds:
            done(why)
        elif (asking := self._asking.get(store) or self._ask(store)) is not None:
            asking.waiting.append(done)
        else:
            done("NATS is away; try again in a moment")

    async def ensure(self, store: TenantStore) -> None:
        """Return when a store exists. Raises `Unavailable` with the reason if it may not, within two seconds."""
        if store.stream in self._known:
            return
        answer: asyncio.Future[str] = self._loop.create_future()
        self.make(store, lambda why: None if answer.done() else answer.set_result(why))
        if why := await answer:
            raise Unavailable(why)

    def wrote(self, store: TenantStore, size: int) -> None:
        """Count the bytes published to a store. Each MiB a registry gets a hint, so that the store grows in time."""
        written = self._written.get(store, 0) + size
        if written >= HINT_BYTES:
            written = 0
            self._request(store, "")
        self._written[store] = written

    async def grow(self, store: TenantStore) -> None:
        """Ask a registry for more room, because a full store has refused a message.

        Asks once a second for each store at most. Raises as `ensure()` does.
        """
        now = self._loop.time()
        if now < self._grew_at.get(store, float("-inf")) + self._refused_seconds:
            return
        self._grew_at[store] = now
        self._known.discard(store.stream)
        self._refused.pop(store, None)
        await self.ensure(store)

    def _ask(self, store: TenantStore) -> _Asking | None:
        number = f"{next(self._numbers):x}"
        if not self._request(store, f"{self._inbox}.{number}"):
            return None
        timer = self._loop.call_later(ASK_SECONDS, self._settle, number, _NO_REGISTRY)
        asking = self._asking[store] = self._asked[number] = _Asking(store, timer)
        return asking

    def _request(self, store: TenantStore, reply: str) -> bool:
        body = codec.encode(StoreRequest(store.tenant, store.kind))
        try:
            self._connection.publish_now(subjects.REGISTRY_STORES, body, reply=reply)
        except BridgeError:  # NATS is away; after the reconnect we ask again, because all stores are forgotten
            return False
        return True

    def _on_answer(self, msg: Msg) -> None:
        self._settle(msg.subject.rpartition(".")[2], _refusal(msg))

    def _settle(self, number: str, why: str) -> None:
        asking = self._asked.pop(number, None)
        if asking is None:
            return
        asking.timer.cancel()
        del self._asking[asking.store]
        if why:
            self._refused[asking.store] = self._loop.time(), why
        else:
            self._refused.pop(asking.store, None)
            self._known.add(asking.store.stream)
        for done in asking.waiting:
            done(why)

    def _forget_all(self) -> None:
        self._known.clear()
        self._refused.clear()
        self._written.clear()


def is_missing(msg: Msg) -> bool:
    """Tell whether an answer to a publish is NATS's *no responders*: no stream keeps the subject."""
    return not msg.data and (msg.headers or {}).get("Status") == _NO_RESPONDERS


def _refusal(msg: Msg) -> str:
    """Return why a registry has not made a store, or "" if it has."""
    if is_missing(msg):
        return _NO_REGISTRY
    if ERROR_CODE_HEADER not in (msg.headers or {}):
        return ""
    try:
        return codec.decode(_errors, msg.data).error.message
    except BridgeError:
        return _NO_REGISTRY
