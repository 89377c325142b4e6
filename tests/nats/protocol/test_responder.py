"""Fixed endpoints: bounded, one error boundary, announced so that any NATS micro client understands them."""

import asyncio
import contextlib
import json
import logging
import socket
import time
from collections.abc import AsyncIterator
from importlib import metadata
from typing import Any

import msgspec
import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.micro.service import EndpointInfo, ServiceInfo, ServicePing, ServiceStats
from support.settings import settings_for
from support.wait import until

from protocol.errors import ClientNotFound, Conflict
from protocol.runtime.nats import responder as responding
from protocol.runtime.nats.connection import connect
from protocol.runtime.nats.responder import Answer, Responder
from protocol.runtime.settings import Settings


@contextlib.asynccontextmanager
async def serving(url: str, queue: str = "", **answers: Answer) -> AsyncIterator[Responder]:
    """Serve `t.NAME` for each answer as the service `agentbridge-test`, id `id1`."""
    async with connect(settings_for(Settings, url), "tests", "tests") as connection, asyncio.TaskGroup() as tasks:
        responder = Responder(connection, tasks, "agentbridge-test", {"gatewayId": "g1"}, "id1")
        await responder.announce()
        for name, answer in answers.items():
            await responder.endpoint(name, f"t.{name}", answer, queue=queue)
        await connection.flush()
        yield responder


@pytest.fixture
async def caller(nats_url: str) -> AsyncIterator[Client]:
    client = await nats.connect(nats_url)
    yield client
    await client.close()


async def echo(msg: Msg) -> bytes:
    return msg.data


async def test_request_is_answered(nats_url: str, caller: Client) -> None:
    async with serving(nats_url, echo=echo):
        reply = await caller.request("t.echo", b"hello", 5)
    assert reply.data == b"hello"
    assert reply.headers is None


async def test_error_of_ours_is_told_by_code_and_header(nats_url: str, caller: Client) -> None:
    async def refuse(msg: Msg) -> bytes:
        raise Conflict("this is 7,\nnot 8", details={"number": 7})

    async with serving(nats_url, refuse=refuse):
        reply = await caller.request("t.refuse", b"", 5)
    assert json.loads(reply.data) == {
        "status": "error",
        "error": {"code": "conflict", "message": "this is 7,\nnot 8", "retryable": False, "details": {"number": 7}},
    }
    assert reply.headers == {"Nats-Service-Error-Code": "conflict", "Nats-Service-Error": "this is 7,?not 8"}


async def test_fault_of_ours_says_nothing_of_itself(
    nats_url: str, caller: Client, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(msg: Msg) -> bytes:
        raise RuntimeError("the password is hunter2")

    async with serving(nats_url, fail=fail, echo=echo):
        reply = await caller.request("t.fail", b"", 5)
        assert (await caller.request("t.echo", b"still here", 5)).data == b"still here"
    assert json.loads(reply.data)["error"]["code"] == "internal"
    assert reply.headers is not None
    assert "hunter2" not in f"{reply.data!r}{reply.headers}"
    assert "RuntimeError" not in f"{reply.data!r}{reply.headers}"
    assert "hunter2" in caplog.text


async def test_slow_requests_do_not_hold_up_others(nats_url: str, caller: Client) -> None:
    both = asyncio.Barrier(2)

    async def meet(msg: Msg) -> bytes:
        await both.wait()
        return b"met"

    async with serving(nats_url, meet=meet), asyncio.timeout(5):
        replies = await asyncio.gather(*(caller.request("t.meet", b"", 5) for _ in range(2)))
    assert [reply.data for reply in replies] == [b"met", b"met"]


async def test_requests_beyond_the_bound_are_refused(
    nats_url: str, caller: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responding, "MAX_REQUESTS_AT_ONCE", 2)
    release, started = asyncio.Event(), asyncio.Semaphore(0)

    async def hold(msg: Msg) -> bytes:
        started.release()
        await release.wait()
        return b"done"

    async with serving(nats_url, hold=hold), asyncio.TaskGroup() as tasks:
        held = [tasks.create_task(caller.request("t.hold", b"", 10)) for _ in range(2)]
        await started.acquire()
        await started.acquire()
        refused = json.loads((await caller.request("t.hold", b"", 5)).data)
        release.set()
        assert [(await request).data for request in held] == [b"done", b"done"]
        assert (await caller.request("t.hold", b"", 5)).data == b"done"
    assert (refused["error"]["code"], refused["error"]["retryable"]) == ("overloaded", True)


@pytest.mark.parametrize("reply", ["agentbridge.default.event.c1.paid", "$JS.API.STREAM.DELETE.kept", "elsewhere"])
async def test_reply_outside_the_inbox_is_ignored(
    nats_url: str, caller: Client, reply: str, caplog: pytest.LogCaptureFixture
) -> None:
    served: list[bytes] = []

    async def note(msg: Msg) -> bytes:
        served.append(msg.data)
        return b"forged"

    subscription = await caller.subscribe(reply)
    with caplog.at_level(logging.WARNING):
        async with serving(nats_url, note=note):
            await caller.publish("t.note", b"forge", reply=reply)
            await caller.request("t.note", b"honest", 5)
    assert served == [b"honest"]
    assert "their reply is not an inbox" in caplog.text
    assert subscription.pending_msgs == 0


async def test_flood_of_bad_replies_is_a_line_a_second(
    nats_url: str, caller: Client, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(msg: Msg) -> bytes:
        return b"yes"

    async with asyncio.timeout(10), serving(nats_url, note=answer):
        caplog.clear()
        started = time.monotonic()
        for _ in range(1000):
            await caller.publish("t.note", b"", reply="elsewhere")
        await caller.request("t.note", b"", 5)
        seconds = time.monotonic() - started
    assert len([line for line in caplog.messages if "not an inbox" in line]) <= 1 + seconds


async def test_message_without_reply_is_served_and_not_answered(
    nats_url: str, caller: Client, caplog: pytest.LogCaptureFixture
) -> None:
    served: list[bytes] = []
    heard: list[bytes] = []

    async def note(msg: Msg) -> bytes:
        served.append(msg.data)
        return b"answer to " + msg.data

    async def hear(msg: Msg) -> None:
        heard.append(msg.data)

    await caller.subscribe("_INBOX.>", cb=hear)
    async with serving(nats_url, note=note):
        await caller.publish("t.note", b"nobody")
        await caller.request("t.note", b"somebody", 5)
        await until(lambda: heard)
    assert served == [b"nobody", b"somebody"]
    assert heard == [b"answer to somebody"]
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_answer_too_large_for_nats_is_told(nats_url: str, caller: Client) -> None:
    async def much(msg: Msg) -> bytes:
        return bytes(caller.max_payload + 1)

    async with serving(nats_url, much=much):
        reply = await caller.request("t.much", b"", 5)
    assert json.loads(reply.data)["error"]["code"] == "payload_too_large"


async def test_queue_group_shares_requests(nats_url: str, caller: Client) -> None:
    async def first(msg: Msg) -> bytes:
        return b"first"

    async def second(msg: Msg) -> bytes:
        return b"second"

    async with serving(nats_url, "group", who=first), serving(nats_url, "group", who=second):
        answers = {(await caller.request("t.who", b"", 5)).data for _ in range(60)}
    assert answers == {b"first", b"second"}


async def test_drain_lets_requests_end_and_takes_no_more(nats_url: str, caller: Client) -> None:
    release, started = asyncio.Event(), asyncio.Event()

    async def hold(msg: Msg) -> bytes:
        started.set()
        await release.wait()
        return b"done"

    async with serving(nats_url, hold=hold) as responder, asyncio.TaskGroup() as tasks:
        held = tasks.create_task(caller.request("t.hold", b"", 10))
        await started.wait()
        draining = tasks.create_task(responder.drain(5))
        await until(lambda: _nobody_serves(caller, "t.hold"))
        release.set()
        await draining
        assert (await held).data == b"done"


async def test_drain_does_not_wait_for_ever(nats_url: str, caller: Client) -> None:
    release, started = asyncio.Event(), asyncio.Event()

    async def hold(msg: Msg) -> None:
        started.set()
        await release.wait()

    async with serving(nats_url, hold=hold) as responder:
        await caller.publish("t.hold", b"")
        await started.wait()
        with pytest.raises(TimeoutError):
            await responder.drain(0.05)
        release.set()


async def test_request_after_the_end_of_the_tasks_is_refused_in_silence(
    nats_url: str, caller: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """A registry may ping a gateway that has ended its work, but has not yet left NATS."""
    async with connect(settings_for(Settings, nats_url), "tests", "tests") as connection:
        async with asyncio.TaskGroup() as tasks:
            responder = Responder(connection, tasks, "agentbridge-test", {}, "id1")
            await responder.endpoint("echo", "t.echo", echo)
            await connection.flush()
        reply = await caller.request("t.echo", b"hello", 5)
        await responder.drain(5)
    assert json.loads(reply.data)["error"]["code"] == "unavailable"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def _nobody_serves(caller: Client, subject: str) -> bool:
    try:
        await caller.request(subject, b"", 0.2)
    except nats.errors.NoRespondersError:
        return True
    except TimeoutError:
        return False
    return False


@pytest.mark.parametrize("whom", ["", ".agentbridge-test", ".agentbridge-test.id1"])
async def test_service_answers_as_nats_micro_expects(nats_url: str, caller: Client, whom: str) -> None:
    async def fail(msg: Msg) -> bytes:
        raise ClientNotFound

    async with serving(nats_url, "group", echo=echo, fail=fail):
        for subject in ("t.echo", "t.echo", "t.fail"):
            await caller.request(subject, b"", 5)
        ping, info, stats = [await _asked(caller, f"$SRV.{verb}{whom}") for verb in ("PING", "INFO", "STATS")]
    about = {"host": socket.gethostname(), "gatewayId": "g1"}
    identity = {
        "name": "agentbridge-test",
        "id": "id1",
        "version": metadata.version("agentbridge-nats"),
        "metadata": about,
    }
    assert ping == {"type": "io.nats.micro.v1.ping_response", **identity}
    assert ServicePing.from_dict(dict(ping)).id == "id1"

    described = ServiceInfo.from_dict(dict(info))
    assert (described.type, described.name) == ("io.nats.micro.v1.info_response", "agentbridge-test")
    assert [(found.name, found.subject, found.queue_group) for found in described.endpoints] == [
        ("echo", "t.echo", "group"),
        ("fail", "t.fail", "group"),
    ]
    assert all(isinstance(found, EndpointInfo) for found in described.endpoints)

    counted = ServiceStats.from_dict(dict(stats))
    assert counted.type == "io.nats.micro.v1.stats_response"
    assert stats["started"].endswith("Z")
    assert [(found.num_requests, found.num_errors) for found in counted.endpoints] == [(2, 0), (1, 1)]
    assert counted.endpoints[1].last_error == "client_not_found"
    assert counted.endpoints[0].processing_time >= counted.endpoints[0].average_processing_time > 0


async def test_service_ignores_replies_outside_the_inbox(nats_url: str, caller: Client) -> None:
    subscription = await caller.subscribe("forged.reply")
    async with serving(nats_url, echo=echo):
        await caller.publish("$SRV.PING", b"", reply="forged.reply")
        await caller.request("t.echo", b"", 5)
    assert subscription.pending_msgs == 0


async def _asked(caller: Client, subject: str) -> dict[str, Any]:
    answer: dict[str, Any] = msgspec.json.decode((await caller.request(subject, b"", 5)).data)
    return answer
