"""Calls from their start to their answer: who is reached, what is answered, and how callers give up."""

import asyncio
import json
from collections.abc import AsyncIterator

import msgspec
import pytest
from support.nats.nats_server import NatsServer
from support.played.stage import Gateway, Stage, ended, staged
from support.wait import until

from protocol.errors import (
    ClientNotFound,
    Conflict,
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    Overloaded,
    Unavailable,
)
from protocol.messages import CommandRequest
from protocol.subjects import ClientAddress


@pytest.fixture
async def stage(private_nats: NatsServer) -> AsyncIterator[Stage]:
    async with staged(private_nats.url) as made:
        yield made


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


# --- it answers ---


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
        "probed": True,
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


async def test_second_answer_is_dropped(stage: Stage) -> None:
    gateway = await stage.gateway()
    call = stage.start()
    await gateway.reached()
    await gateway.answer(result=1)
    await gateway.answer(result=2)
    assert (await call).result == msgspec.Raw(b"1")


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
