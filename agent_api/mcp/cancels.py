"""Cancelling in the older era: a client cancels by another request, which may reach another replica.

If an agent API has no such request in flight, it passes the cancel to all others. A request is identified by its
principal, the session name from `initialize`, and its id. So nobody can cancel another principal's request.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec
from nats.aio.msg import Msg

from agent_api.mcp.callers import McpCaller
from agent_api.mcp.messages import RpcId
from protocol import codec, subjects
from protocol.errors import BridgeError
from protocol.records import Rate
from protocol.runtime.nats.connection import Connection
from protocol.runtime.token_buckets import TokenBuckets

CANCELS = Rate(per_second=50, burst=200)  # of one agent, passed to other replicas
MAX_AGENTS = 10_000

log = logging.getLogger(__name__)


class McpCancel(msgspec.Struct, frozen=True):
    """The message to all agent APIs about a cancelled request."""

    tenant: str
    sub: str
    session: str
    id: RpcId


class _Key(NamedTuple):
    cancel: McpCancel
    kind: type  # 1 and "1" are different ids


_decoder = msgspec.json.Decoder(McpCancel)


class LegacyCancels:
    """The older era's requests in flight at this process."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._in_flight: dict[_Key, Callable[[], object]] = {}
        self._buckets = TokenBuckets(MAX_AGENTS)
        self._clock = asyncio.get_running_loop().time

    async def start(self) -> None:
        """Subscribe to the other agent APIs' cancels."""
        await self._connection.subscribe_directly(subjects.API_MCP_CANCEL, self._hear)

    @contextlib.contextmanager
    def in_flight(self, caller: McpCaller, ident: RpcId, cancel: Callable[[], object]) -> Iterator[None]:
        """Let a request be cancelled inside the block. Without a session its id is not unique, so it cannot be."""
        key = _key(caller, ident)
        if caller.session:
            self._in_flight[key] = cancel
        try:
            yield
        finally:
            if self._in_flight.get(key) is cancel:
                del self._in_flight[key]

    async def cancel(self, caller: McpCaller, ident: RpcId) -> None:
        """Cancel a request of the caller at any replica."""
        if not caller.session or self._cancel_here(_key(caller, ident)):
            return
        holder = (caller.principal.tenant, caller.principal.sub)
        if self._buckets.draw(holder, CANCELS, self._clock()):
            return  # above the rate; no honest client gets here, because it cannot have so many calls in flight
        try:
            await self._connection.publish(subjects.API_MCP_CANCEL, codec.encode(_key(caller, ident).cancel))
        except BridgeError as exc:
            log.warning("other agent APIs could not be told of a cancelled call: %s", exc.message)

    def _hear(self, msg: Msg) -> None:
        try:
            told = codec.decode(_decoder, msg.data)
        except BridgeError as exc:
            log.warning("a message on %s is not ours: %s", msg.subject, exc.message)
            return
        self._cancel_here(_Key(told, type(told.id)))

    def _cancel_here(self, key: _Key) -> bool:
        cancel = self._in_flight.get(key)
        if cancel is not None:
            cancel()
        return cancel is not None


def _key(caller: McpCaller, ident: RpcId) -> _Key:
    principal = caller.principal
    return _Key(McpCancel(principal.tenant, principal.sub, caller.session, ident), type(ident))
