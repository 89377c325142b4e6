"""Finds and ends the connections of agents to all NATS servers, by requests to the servers themselves (`$SYS`).

Only users of the system account may send these requests, so a registry has another connection for them, which may do
nothing else. Each server answers for its own connections, which it numbers itself. Any server tells how many servers
there are.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
import nats.errors
from nats.aio.msg import Msg

from protocol import codec
from protocol.errors import ConfigurationError, CredentialsRefused, Internal, Unavailable
from protocol.runtime.nats.connection import Connection, connect
from protocol.runtime.nats.servers import shown
from protocol.runtime.settings import Settings, variable

SYSTEM_USER = "system"

SERVERS, CONNECTIONS = "$SYS.REQ.SERVER.PING", "$SYS.REQ.SERVER.PING.CONNZ"
PAGE = 500
ANSWER_SECONDS = 2.0
PAUSE_SECONDS = 0.25  # then look again, because a client may have been logging in
CLEAN_LOOKS = 2
MOST_LOOKS = 12
KICKS_AT_ONCE = 64


class _AnsweringServer(msgspec.Struct, frozen=True):
    id: str


class _ServerStats(msgspec.Struct, frozen=True):
    active_servers: int = 1


class _Pong(msgspec.Struct, frozen=True):
    statsz: _ServerStats


class _OpenConnection(msgspec.Struct, frozen=True):
    cid: int
    authorized_user: str = ""


class _ConnectionList(msgspec.Struct, frozen=True):
    connections: list[_OpenConnection] = []


class _ServerConnections(msgspec.Struct, frozen=True):
    server: _AnsweringServer
    data: _ConnectionList


_pongs = msgspec.json.Decoder(_Pong)
_lists = msgspec.json.Decoder(_ServerConnections)


class AgentConnections:
    """Finds and ends an agent's NATS connections. `system` is a connection of the system account."""

    def __init__(self, system: Connection) -> None:
        self._system = system
        self._kicks = asyncio.Semaphore(KICKS_AT_ONCE)

    async def end_all(self, user: str) -> int:
        """End all connections of a NATS user, also new ones that come meanwhile. Return their number.

        Raises `Unavailable` if a server does not answer, or if the user reconnects as fast as it is disconnected.
        """
        ended: set[tuple[str, int]] = set()
        clean = 0
        for _ in range(MOST_LOOKS):
            # A login that was admitted just before the refusal may connect after this look. So look again.
            found = await self.end(user)
            ended |= found
            clean = 0 if found else clean + 1
            if clean == CLEAN_LOOKS:
                return len(ended)
            await asyncio.sleep(PAUSE_SECONDS)
        raise Unavailable("the agent's connections to NATS come back as fast as they are ended; try again")

    async def end(self, user: str) -> set[tuple[str, int]]:
        """End the present connections of a NATS user. Return them by server and number. Raises `Unavailable`."""
        found = await self._open(user)
        await asyncio.gather(*(self._kick(server, number) for server, number in found))
        return found

    async def _open(self, user: str) -> set[tuple[str, int]]:
        pong = codec.decode(_pongs, await self._ask(SERVERS), Internal)
        body = codec.encode({"auth": True, "user": user, "limit": PAGE})
        answers = await self._ask_all(CONNECTIONS, body, pong.statsz.active_servers)
        return {
            (answer.server.id, each.cid)
            for answer in answers
            for each in answer.data.connections
            if each.authorized_user == user  # a server may ignore the filter; never end others' connections
        }

    async def _kick(self, server: str, number: int) -> None:
        async with self._kicks:
            # The connection may have ended by itself. The next look shows it.
            await self._ask(f"$SYS.REQ.SERVER.{server}.KICK", codec.encode({"cid": number}))

    async def _ask(self, subject: str, body: bytes = b"") -> bytes:
        try:
            return (await self._system.request(subject, body, ANSWER_SECONDS)).data
        except (nats.errors.NoRespondersError, TimeoutError) as exc:
            raise Unavailable("NATS does not answer the registry's user `system`; see the log of nats-server") from exc

    async def _ask_all(self, subject: str, body: bytes, count: int) -> list[_ServerConnections]:
        """Return the answers of all servers. Raises `Unavailable` if one of them does not answer."""
        answers: asyncio.Queue[bytes] = asyncio.Queue()

        async def take(msg: Msg) -> None:
            answers.put_nowait(msg.data)

        inbox = self._system.new_inbox()
        subscription = await self._system.subscribe(inbox, take)
        found: list[_ServerConnections] = []
        try:
            # Every server answers for itself, so wait for as many answers as there are servers.
            await self._system.publish(subject, body, reply=inbox)
            async with asyncio.timeout(ANSWER_SECONDS):
                while len(found) < count:
                    found.append(codec.decode(_lists, await answers.get(), Internal))
        except TimeoutError as exc:
            raise Unavailable(
                f"{count - len(found)} of {count} NATS servers did not list their connections; try again"
            ) from exc
        finally:
            with contextlib.suppress(nats.errors.Error):
                # The subscription has gone with the connection.
                await subscription.unsubscribe()
        return found


@contextlib.asynccontextmanager
async def agent_connections(settings: Settings, password: str | None) -> AsyncIterator[AgentConnections | None]:
    """Connect to the system account. Yield None if there is no password for it.

    Raises `ConfigurationError` if NATS refuses it.
    """
    if password is None:
        yield None
        return
    own = msgspec.structs.replace(settings, nats_user=SYSTEM_USER, nats_password=password, nats_creds=None)
    async with contextlib.AsyncExitStack() as stack:
        try:
            system = await stack.enter_async_context(connect(own, "registry", SYSTEM_USER, drain=False))
        except CredentialsRefused as exc:
            raise ConfigurationError(
                f"NATS at {shown(settings)} refuses the user `{SYSTEM_USER}`: set {variable('nats_system_password')} "
                "to its password there; without one, agents on NATS cannot be disconnected"
            ) from exc
        yield AgentConnections(system)
