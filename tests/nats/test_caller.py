"""The caller against a real server and a gateway that behaves as each test has it."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import nats
import pytest
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg
from support.nats_server import NatsServer
from support.settings import settings_for
from support.wait import subscribed, until

from protocol import subjects
from protocol.errors import (
    ClientLost,
    ClientNotFound,
    Conflict,
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    Overloaded,
    Unavailable,
)
from protocol.messages import CommandRequest, CommandResponse
from protocol.runtime import caller as module
from protocol.runtime.caller import Caller, Doubt, Evidence
from protocol.runtime.nats import Connection, connect
from protocol.runtime.settings import Settings
from protocol.subjects import ClientAddress

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

    def __init__(self, connection: Connection, url: str) -> None:
        self.caller = Caller(connection, self._is_known)
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
        self, request_id: str | None = None, timeout_ms: int = 30_000, token: str | None = "t", key: str | None = None
    ) -> Any:
        command = CommandRequest(target="x", request_id=request_id, timeout_ms=timeout_ms, idempotency_key=key)
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


@pytest.fixture
async def stage(private_nats: NatsServer) -> AsyncIterator[Stage]:
    async with connect(settings_for(Settings, private_nats.url), "tests", "tests") as connection:
        made = Stage(connection, private_nats.url)
        async with asyncio.TaskGroup() as tasks:
            await made.caller.start(tasks)
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


# --- there is nobody ---


async def test_unknown_client_is_not_found_fast(stage: Stage) -> None:
    async with asyncio.timeout(0.5):
        with pytest.raises(ClientNotFound):
            await stage.call()


async def test_known_client_that_cannot_be_reached_is_unavailable(stage: Stage) -> None:
    stage.known = True
    async with asyncio.timeout(1):
        with pytest.raises(Unavailable):
            await stage.call()


async def test_known_client_whose_gateway_subscribes_in_time_is_reached_once(stage: Stage) -> None:
    stage.known = True
    gateway = Gateway(await stage.client())
    call = stage.start()
    await asyncio.sleep(0.1)  # the very thing: the subscription comes a tenth of a second late
    await gateway.serve()
    await gateway.reached()
    await gateway.answer()
    assert (await call).result == msgspec.Raw(b'"done"')
    assert len(gateway.calls) == 1


async def test_command_reaches_the_gateway_with_what_remains_of_its_time(stage: Stage) -> None:
    gateway = await stage.gateway()
    call = stage.start("r1", 5000)
    await gateway.reached()
    sent = json.loads(gateway.calls[0].data)
    assert sent == {
        "op": "call",
        "target": "x",
        "requestId": "r1",
        "timeoutMs": sent["timeoutMs"],
        "sentAt": sent["sentAt"],
    }
    assert 4000 < sent["timeoutMs"] <= 5000
    assert gateway.calls[0].headers == {"Authorization": "Bearer t"}
    await gateway.answer()
    assert (await call).request_id == "r1"


async def test_refusal_of_the_gateway_is_an_answer(stage: Stage) -> None:
    gateway = await stage.gateway()
    call = stage.start("r1")
    await gateway.reached()
    error = {"code": "overloaded", "message": "too much", "retryable": True}
    body = {"requestId": "r1", "status": "error", "error": error, "durationMs": 0}
    await gateway.answer(body=json.dumps(body).encode())
    with pytest.raises(Overloaded, match="too much"):
        (await call).value()
    assert gateway.cancels == []


# --- it is lost ---


async def test_killed_gateway_is_client_lost_within_2_seconds(stage: Stage) -> None:
    gateway = await stage.gateway()
    call = stage.start()
    await gateway.reached()
    await gateway.vanish()
    assert isinstance(await ended(call, 2), ClientLost)


async def test_gateway_killed_long_after_the_command_is_client_lost_within_2_seconds(stage: Stage) -> None:
    gateway = await stage.gateway()
    call = stage.start()
    await until(lambda: len(gateway.probes) == 2)
    await gateway.vanish()
    assert isinstance(await ended(call, 2), ClientLost)


async def test_silent_gateway_is_client_lost_within_3_seconds_and_the_command_cancelled(stage: Stage) -> None:
    gateway = await stage.gateway(SILENCE)
    call = stage.start("r1")
    await gateway.reached()
    assert isinstance(await ended(call, 3), ClientLost)
    await until(lambda: gateway.cancels)
    assert gateway.cancels[0]["requestId"] == "r1"


async def test_lost_command_with_a_key_is_not_cancelled(stage: Stage) -> None:
    gateway = await stage.gateway(SILENCE)
    calls = [stage.start("r1", key="k"), stage.start("r2")]
    await gateway.reached(2)
    assert [type(await ended(call, 3)) for call in calls] == [ClientLost] * 2
    await until(lambda: gateway.cancels)
    assert [cancel["requestId"] for cancel in gateway.cancels] == ["r2"]


async def test_many_commands_on_a_silent_gateway_are_all_lost_within_3_seconds(stage: Stage) -> None:
    """More than fit into one probe."""
    gateway = await stage.gateway(SILENCE)
    calls = [stage.start(f"r{number}") for number in range(600)]
    await gateway.reached(600)
    async with asyncio.timeout(3.5):
        await asyncio.wait(calls)
    assert {type(call.exception()) for call in calls} == {ClientLost}


async def test_tap_that_counts_as_interest_is_found_out_by_its_silence(stage: Stage) -> None:
    tap = await stage.client()
    await tap.subscribe("agentbridge.>")
    await subscribed(tap)
    assert isinstance(await ended(stage.start(), 3), ClientLost)


async def test_gateway_that_does_not_know_the_command_is_client_lost(stage: Stage) -> None:
    gateway = await stage.gateway(UNKNOWN)
    call = stage.start()
    await gateway.reached()
    assert isinstance(await ended(call, 2), ClientLost)


# --- it is not ---


async def test_slow_application_is_not_lost(stage: Stage) -> None:
    gateway = await stage.gateway()
    call = stage.start()
    await until(lambda: len(gateway.probes) >= 4, 6)
    assert not call.done()
    await gateway.answer()
    assert (await call).status == "success"
    assert gateway.cancels == []


async def test_lost_reply_is_recovered_by_a_probe(stage: Stage) -> None:
    gateway = await stage.gateway(OUTCOME)
    call = stage.start()
    await gateway.reached()
    async with asyncio.timeout(2):
        assert (await call).result == msgspec.Raw(b'"done"')


async def test_second_answer_is_dropped(stage: Stage) -> None:
    gateway = await stage.gateway()
    call = stage.start()
    await gateway.reached()
    await gateway.answer(result=1)
    await gateway.answer(result=2)
    assert (await call).result == msgspec.Raw(b"1")


async def test_one_probe_asks_for_all_commands_of_one_token(stage: Stage) -> None:
    gateway = await stage.gateway()
    calls = [stage.start("a"), stage.start("b"), stage.start("c", token="u")]
    await gateway.reached(3)
    await until(lambda: len(gateway.probes) == 2)
    assert sorted(sorted(probe["requestIds"]) for probe in gateway.probes) == [["a", "b"], ["c"]]
    for number in range(3):
        await gateway.answer(number)
    assert {(await call).status for call in calls} == {"success"}


async def test_odd_answers_to_probes_end_nothing(stage: Stage) -> None:
    gateway = await stage.gateway(SILENCE)
    odd = iter([b"{}", b"\xff", b'{"inFlight":[],"outcomes":[{"a":1},7],"unknown":["other"]}'])
    client = await stage.client()

    async def answer(msg: Msg) -> None:
        if b'"probe"' in msg.data:
            await msg.respond(next(odd, b"[]"))

    await client.subscribe(subjects.command(*C1), cb=answer)
    await subscribed(client)
    call = stage.start()
    await until(lambda: len(gateway.probes) >= 3, 6)
    assert not call.done()
    await gateway.answer()
    assert (await call).status == "success"


# --- NATS ---


async def test_command_waits_for_a_nats_that_has_just_gone(stage: Stage, private_nats: NatsServer) -> None:
    gateway = await stage.gateway()
    private_nats.stop()
    await until(lambda: not stage.connection.connected)
    call = stage.start()
    await private_nats.start()
    await gateway.reached()
    await gateway.answer()
    assert (await call).status == "success"


async def test_nats_away_for_longer_is_unavailable_at_once(stage: Stage, private_nats: NatsServer) -> None:
    private_nats.stop()
    await until(lambda: stage.connection.away_seconds() > 1)
    async with asyncio.timeout(0.2):
        with pytest.raises(Unavailable):
            await stage.call()
    await private_nats.start()


async def test_nats_that_does_not_come_back_is_unavailable_after_a_second(
    stage: Stage, private_nats: NatsServer
) -> None:
    private_nats.stop()
    await until(lambda: not stage.connection.connected)
    assert isinstance(await ended(stage.start(), 2), Unavailable)
    await private_nats.start()


async def test_commands_that_wait_for_nats_are_bounded(
    stage: Stage, private_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING_FOR_NATS", 2)
    private_nats.stop()
    await until(lambda: not stage.connection.connected)
    calls = [stage.start() for _ in range(3)]
    assert isinstance(await ended(calls[2], 0.5), Overloaded)
    await private_nats.start()
    assert {type(await ended(call, 3)) for call in calls[:2]} == {ClientNotFound}


async def test_restart_of_nats_loses_no_waiting_command(stage: Stage, private_nats: NatsServer) -> None:
    """The gateway is back a second later than the caller, and the reply was lost meanwhile."""
    gateway = await stage.gateway()
    call = stage.start()
    await until(lambda: gateway.probes)
    await gateway.vanish()
    private_nats.stop()
    await private_nats.start()
    await until(lambda: stage.connection.unbroken_seconds() > 1)
    assert not call.done()
    returned = await stage.gateway(OUTCOME)
    returned.calls = gateway.calls
    async with asyncio.timeout(3):
        assert (await call).result == msgspec.Raw(b'"done"')


async def test_gateway_that_never_comes_back_after_a_restart_of_nats_is_lost(
    stage: Stage, private_nats: NatsServer
) -> None:
    gateway = await stage.gateway()
    call = stage.start()
    await gateway.reached()
    await gateway.vanish()
    private_nats.stop()
    await private_nats.start()
    await until(lambda: stage.connection.connected)
    assert isinstance(await ended(call, 4), ClientLost)


async def test_unknown_does_not_count_right_after_a_reconnect(stage: Stage, private_nats: NatsServer) -> None:
    """In a cluster the probe may take another way than the command, and be there first."""
    gateway = await stage.gateway()
    call = stage.start()
    await until(lambda: gateway.probes)
    private_nats.stop()
    await private_nats.start()
    gateway.probed, seen = UNKNOWN, len(gateway.probes)
    await until(lambda: len(gateway.probes) > seen)
    gateway.probed = IN_FLIGHT
    await until(lambda: len(gateway.probes) > seen + 1)
    assert not call.done()
    await gateway.answer()
    assert (await call).status == "success"


# --- giving up ---


async def test_cancelled_call_cancels_its_command(stage: Stage) -> None:
    gateway = await stage.gateway()
    call = stage.start("r1")
    await gateway.reached()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: gateway.cancels)
    assert gateway.cancels == [{"op": "cancel", "requestId": "r1", "reason": "the caller went away"}]


async def test_deadline_ends_the_wait_and_cancels_the_command(stage: Stage) -> None:
    gateway = await stage.gateway()
    call = stage.start("r1", 200)
    await gateway.reached()
    assert isinstance(await ended(call, 1.5), DeadlineExceeded)
    await until(lambda: gateway.cancels)
    assert gateway.cancels[0]["requestId"] == "r1"


@pytest.mark.parametrize("body", [b'{"stream":"stray","seq":7}', b"+OK", b"", b"\xff", b"[]"])
async def test_foreign_reply_is_internal_and_the_command_cancelled(stage: Stage, body: bytes) -> None:
    gateway = await stage.gateway()
    call = stage.start("r1")
    await gateway.reached()
    await gateway.answer(body=body)
    assert isinstance(await ended(call, 1), Internal)
    await until(lambda: gateway.cancels)
    assert gateway.cancels[0]["requestId"] == "r1"


async def test_request_id_in_flight_is_a_conflict_and_harms_nobody(stage: Stage) -> None:
    gateway = await stage.gateway()
    call = stage.start("r1")
    await gateway.reached()
    with pytest.raises(Conflict):
        await stage.call("r1")
    await gateway.answer()
    assert (await call).status == "success"
    assert gateway.cancels == []


async def test_ids_that_are_none_are_refused(stage: Stage) -> None:
    with pytest.raises(InvalidRequest):
        await stage.caller.call(ClientAddress("default", "a.b"), CommandRequest(target="x", timeout_ms=1), None)


# --- evidence ---


@pytest.mark.parametrize(
    ("evidence", "lost"),
    [
        ([(Evidence.SILENCE, 0), (Evidence.SILENCE, 1)], True),
        ([(Evidence.SILENCE, 0), (Evidence.ANSWER, 1), (Evidence.SILENCE, 2)], False),
        ([(Evidence.NO_RESPONDERS, 0), (Evidence.NO_RESPONDERS, 0.1)], False),
        ([(Evidence.NO_RESPONDERS, 0), (Evidence.NO_RESPONDERS, 0.2)], True),
        ([(Evidence.NO_RESPONDERS, 0), (Evidence.NO_RESPONDERS, 0.1), (Evidence.NO_RESPONDERS, 0.25)], True),
        ([(Evidence.NO_RESPONDERS, 0), (Evidence.ANSWER, 1), (Evidence.NO_RESPONDERS, 2)], False),
        ([(Evidence.SILENCE, 0), (Evidence.NO_RESPONDERS, 1)], False),
    ],
)
def test_doubt_weighs_evidence(evidence: list[tuple[Evidence, float]], lost: bool) -> None:
    doubt = Doubt()
    verdicts = [doubt.weigh(what, now) for what, now in evidence]
    assert verdicts[-1] is lost
    assert not any(verdicts[:-1])
