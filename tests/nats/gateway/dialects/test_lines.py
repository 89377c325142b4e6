"""An application that speaks another dialect, at a real gateway: all but the frames is as for the native one."""

import asyncio
import json
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
from support.dialects.line_dialect import LINES, Lines
from support.nats.nats_server import NatsServer
from support.played.app import application
from support.played.running_gateway import running_gateway
from support.processes.gateways import Agent, agent
from support.settings import app_token
from support.wait import until
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from gateway.dialects.choice import DIALECTS
from gateway.dialects.dialect import MessageIds
from gateway.sessions import table
from protocol.errors import CloseCode
from protocol.frames import ErrorFrame, ServerFrame


@pytest.fixture
async def url(private_nats: NatsServer) -> AsyncIterator[str]:
    async with running_gateway(private_nats.url, (*DIALECTS, LINES)) as native:
        yield f"ws://{urlsplit(native).netloc}/lines"


@pytest.fixture
async def caller(private_nats: NatsServer) -> AsyncIterator[Agent]:
    async with agent(private_nats.url) as connected:
        yield connected


@pytest.fixture
async def app(url: str) -> AsyncIterator[ClientConnection]:
    async with connect(f"{url}?token={app_token()}") as socket:
        yield socket


async def registered(app: ClientConnection, *capabilities: object) -> str:
    """Register and return the client's id."""
    you, client_id, _ = (await heard(app)).split(" ")
    assert you == "you"
    await app.send(f"offer {json.dumps(capabilities)}")
    assert await heard(app) == "ok 1"
    return client_id


@pytest.fixture
def large_list() -> list[object]:
    """Return capabilities that are read in many turns."""
    schema = {"type": "object", "properties": {f"p{number}": {"type": "integer"} for number in range(200)}}
    return [{"name": f"c{number}", "parameters": schema} for number in range(50)]


async def heard(app: ClientConnection) -> str:
    async with asyncio.timeout(10):
        message = await app.recv()
    assert isinstance(message, str)
    return message


async def test_command_is_executed_and_answered_in_the_dialect(app: ClientConnection, caller: Agent) -> None:
    client_id = await registered(app, "add")
    async with asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(caller.call(client_id, "add", {"a": 1}, timeoutMs=4000))
        do, request_id, target, action, timeout_ms, sub, parameters = (await heard(app)).split(" ", 6)
        assert (do, target, action, timeout_ms, sub) == ("do", "add", "-", "4000", "agent-1")
        assert json.loads(parameters) == {"a": 1}
        await app.send(f'answer {request_id} {{"sum":3}}')
    assert answer.result()["result"] == {"sum": 3}


async def test_answers_of_a_message_that_cannot_be_read_fail_at_once(app: ClientConnection, caller: Agent) -> None:
    """The line between is refused, so that the good one does not count either."""
    client_id = await registered(app, "add")
    async with asyncio.TaskGroup() as tasks:
        answers = [tasks.create_task(caller.call(client_id, "add", timeoutMs=30_000, seconds=5)) for _ in range(2)]
        first, second = [(await heard(app)).split(" ")[1] for _ in range(2)]
        await app.send(f"answer {first} 1\nanswer {second} NaN")
    assert [answer.result()["error"]["details"] for answer in answers] == [{"code": "invalid_response"}] * 2
    assert [(await heard(app)).split(" ")[3] for _ in range(2)] == [first, second]


async def test_checks_are_the_same_as_for_every_dialect(app: ClientConnection, caller: Agent) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    client_id = await registered(app, {"name": "add", "parameters": schema})
    assert await caller.refused(client_id, {"target": "add", "parameters": {}}) == "invalid_parameters"
    assert await caller.refused(client_id, {"target": "sub"}) == "unknown_capability"


async def test_cancel_reaches_the_application(app: ClientConnection, caller: Agent) -> None:
    client_id = await registered(app, "slow")
    async with asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(caller.call(client_id, "slow", requestId="r1"))
        request_id = (await heard(app)).split(" ")[1]
        await caller.ask(client_id, {"op": "cancel", "requestId": "r1", "reason": "enough"})
        assert await heard(app) == f"stop {request_id} enough"
    assert answer.result()["error"]["code"] == "cancelled"


async def test_bad_line_is_refused_by_its_number_and_the_next_is_answered_at_once(app: ClientConnection) -> None:
    await registered(app)
    await app.send("nonsense")
    assert (await heard(app)).startswith("error invalid_frame 2 - a line begins with")
    await app.send("count")
    assert await heard(app) == "lines 3"


async def test_silent_client_is_pinged_in_the_dialect_and_its_answer_keeps_it(
    url: str, caller: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "TICK_SECONDS", 0.1)
    async with connect(f"{url}?token={app_token()}") as app:
        client_id = await registered(app, "slow")
        async with asyncio.TaskGroup() as tasks:
            answer = tasks.create_task(caller.call(client_id, "slow", timeoutMs=20_000, seconds=20))
            request_id = (await heard(app)).split(" ")[1]
            for _ in range(3):  # the command goes unanswered; a ping, too, would end the session before the third
                assert await heard(app) == "tick"
                await app.send("tock")
            await app.send(f"answer {request_id} 1")
        assert answer.result()["result"] == 1


async def test_frames_of_one_message_wait_for_the_list_among_them(
    app: ClientConnection, caller: Agent, large_list: list[object]
) -> None:
    client_id = await registered(app, "first")
    await app.send(f'offer {json.dumps(large_list)}\noffer ["last"]\ncount')
    assert [await heard(app) for _ in range(3)] == ["ok 2", "ok 3", "lines 4"]
    assert (await caller.refused(client_id, {"target": "first"})) == "unknown_capability"
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(caller.call(client_id, "last"))
        await app.send(f"answer {(await heard(app)).split(' ')[1]} 1")


async def test_lists_that_follow_each_other_are_read_one_after_the_other(
    app: ClientConnection, caller: Agent, large_list: list[object]
) -> None:
    client_id = await registered(app, "first")
    large = json.dumps(large_list)
    await app.send(f'offer {large}\ncount\noffer {large}\noffer ["last"]\ncount')
    await app.send("count")
    assert [await heard(app) for _ in range(6)] == ["ok 2", "lines 3", "ok 4", "ok 5", "lines 6", "lines 7"]
    assert (await caller.refused(client_id, {"target": "c1"})) == "unknown_capability"


async def test_good_frame_before_a_bad_one_of_the_same_message_does_not_count(app: ClientConnection) -> None:
    await registered(app)
    await app.send('meta {"a": 1}\nnonsense')
    await app.send("count")
    assert (await heard(app)).startswith("error invalid_frame 3 - ")
    assert await heard(app) == "lines 4"


async def test_message_of_too_many_frames_is_refused_whole(app: ClientConnection) -> None:
    await registered(app)
    await app.send("\n".join(["count"] * 65))
    assert await heard(app) == "error payload_too_large 66 - a message may hold 64 frames"
    await app.send("count")
    assert await heard(app) == "lines 67"


async def test_refused_token_ends_the_connection_in_the_dialect(url: str) -> None:
    async with connect(url) as app:
        assert await heard(app) == f"bye {CloseCode.NO_CREDENTIALS}"
        with pytest.raises(ConnectionClosed):
            await heard(app)
        assert (app.close_code, app.close_reason) == (1000, "authentication required")


async def test_native_clients_are_served_beside_it(url: str, caller: Agent) -> None:
    native = url.removesuffix("/lines") + "/ws"
    async with application(native, {"echo": lambda parameters: parameters}) as connected:
        await until(lambda: connected.client_id)
        assert (await caller.call(connected.client_id, "echo", {"a": 1}))["result"] == {"a": 1}


class Speechless(Lines):
    """Cannot tell a refusal."""

    def encode(self, frame: ServerFrame) -> bytes | None:
        if isinstance(frame, ErrorFrame):
            raise ValueError("no word for it")
        return super().encode(frame)


async def test_dialect_that_cannot_tell_a_refusal_ends_its_connection(private_nats: NatsServer) -> None:
    speechless = LINES._replace(name="speechless", usual_path="/speechless", make=Speechless)
    async with (
        running_gateway(private_nats.url, (*DIALECTS, speechless)) as native,
        connect(f"ws://{urlsplit(native).netloc}/speechless?token={app_token()}") as app,
    ):
        await registered(app)
        await app.send("nonsense")
        with pytest.raises(ConnectionClosed):
            await heard(app)
        assert app.close_code == CloseCode.INTERNAL


class Blind(Lines):
    """Cannot tell which message it was."""

    def identify(self, data: bytes) -> MessageIds:
        raise IndexError("no such line")


async def test_message_that_a_dialect_cannot_identify_is_refused_and_the_connection_goes_on(
    private_nats: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    blind = LINES._replace(name="blind", usual_path="/blind", make=Blind)
    async with (
        running_gateway(private_nats.url, (*DIALECTS, blind)) as native,
        connect(f"ws://{urlsplit(native).netloc}/blind?token={app_token()}") as app,
    ):
        await registered(app)
        await app.send("nonsense")
        assert (await heard(app)).startswith("error invalid_frame - - a line begins with")
        await app.send("count")
        assert await heard(app) == "lines 3"
    assert "a refused message could not be identified" in caplog.text
