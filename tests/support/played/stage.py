"""A caller on a real server, and gateways that behave as each test has it."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import nats
from msgspec import Raw
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg

from protocol import subjects
from protocol.codec import EMPTY_OBJECT
from protocol.messages import CommandRequest, CommandResponse
from protocol.runtime.commands.caller import Caller
from protocol.runtime.nats.connection import Connection, connect
from protocol.runtime.settings import Settings
from protocol.subjects import ClientAddress
from support.settings import settings_for
from support.wait import subscribed, until

C1 = ClientAddress("default", "c1")
IN_FLIGHT, OUTCOME, UNKNOWN, SILENCE = "in_flight", "outcome", "unknown", "silence"
Body = dict[str, Any]


class Gateway:
    """The gateway of client c1. `probed` is what it makes of probes; calls are answered by `answer()` alone."""

    def __init__(self, client: NatsClient) -> None:
        self.nats = client
        self.calls: list[Msg] = []
        self.cancels: list[Body] = []
        self.probes: list[Body] = []
        self.probed = IN_FLIGHT

    async def serve(self) -> None:
        await self.nats.subscribe(subjects.command(*C1), cb=self._take)
        await subscribed(self.nats)

    async def answer(self, number: int = 0, result: Any = "done", body: bytes | None = None) -> None:
        await self.nats.publish(
            self.calls[number].reply, response_to(self.calls[number], result) if body is None else body
        )
        await subscribed(self.nats)

    async def reached(self, number: int = 1) -> None:
        await until(lambda: len(self.calls) >= number)

    async def vanish(self) -> None:
        """Be gone as a killed process is."""
        await self.nats.close()

    async def _take(self, msg: Msg) -> None:
        body = json.loads(msg.data)
        match body.get("op", "call"):
            case "cancel":
                self.cancels.append(body)
            case "probe":
                self.probes.append(body)
                if self.probed != SILENCE:
                    await msg.respond(self._judge(body["requestIds"]))
            case _:
                self.calls.append(msg)

    def _judge(self, ids: list[str]) -> bytes:
        outcomes = [json.loads(response_to(call)) for call in self.calls]
        return json.dumps(
            {
                "inFlight": ids if self.probed == IN_FLIGHT else [],
                "outcomes": [one for one in outcomes if one["requestId"] in ids] if self.probed == OUTCOME else [],
                "unknown": ids if self.probed == UNKNOWN else [],
            }
        ).encode()


class Stage:
    """A caller and how it is made to meet gateways."""

    def __init__(self, connection: Connection, url: str, tasks: asyncio.TaskGroup) -> None:
        self.caller = Caller(connection, self._is_known, tasks)
        self.connection = connection
        self.url = url
        self.known = False
        self.clients: list[NatsClient] = []
        self.calls: list[asyncio.Task[CommandResponse]] = []

    async def client(self) -> NatsClient:
        """Connect somebody else, who stays through restarts of the server."""
        client = await nats.connect(self.url, max_reconnect_attempts=-1, reconnect_time_wait=0)
        self.clients.append(client)
        return client

    async def gateway(self, probed: str = IN_FLIGHT) -> Gateway:
        gateway = Gateway(await self.client())
        gateway.probed = probed
        await gateway.serve()
        return gateway

    def call(
        self,
        request_id: str | None = None,
        timeout_ms: int = 30_000,
        token: str | None = "t",
        key: str | None = None,
        parameters: Raw = EMPTY_OBJECT,
    ) -> Any:
        command = CommandRequest(
            target="x",
            request_id=request_id,
            timeout_ms=timeout_ms,
            idempotency_key=key,
            parameters=parameters,
        )
        return self.caller.call(C1, command, token)

    def start(self, *arguments: Any, **more: Any) -> asyncio.Task[CommandResponse]:
        """Call in a task of its own, whose error is the test's to look at."""
        call = asyncio.get_running_loop().create_task(self.call(*arguments, **more))
        self.calls.append(call)
        return call

    async def close(self) -> None:
        """Leave nothing behind, whatever became of the test."""
        for call in self.calls:
            call.cancel()
        await asyncio.gather(*self.calls, return_exceptions=True)
        for client in self.clients:
            await client.close()

    async def _is_known(self, address: ClientAddress, token: str | None) -> bool:
        assert (address, token) == (C1, "t")
        return self.known


@contextlib.asynccontextmanager
async def staged(url: str) -> AsyncIterator[Stage]:
    """Run a caller, and see to it that it keeps nothing of the calls that have ended."""
    async with connect(settings_for(Settings, url), "tests", "tests") as connection:
        async with asyncio.TaskGroup() as tasks:
            made = Stage(connection, url, tasks)
            await made.caller.start()
            try:
                yield made
            finally:
                await made.close()
        assert made.caller.in_flight == 0
        assert not made.caller._groups
        assert not made.caller._replies


def response_to(call: Msg, result: Any = "done") -> bytes:
    ident = json.loads(call.data)["requestId"]
    return json.dumps({"requestId": ident, "status": "success", "result": result, "durationMs": 1}).encode()


async def ended(task: asyncio.Task[CommandResponse], seconds: float) -> Any:
    """Return the error that a call ends with, within so many seconds."""
    async with asyncio.timeout(seconds):
        await asyncio.wait([task])
    return task.exception()
