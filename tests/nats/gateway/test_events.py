"""Events of applications on NATS and in the stream."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import nats
import pytest
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg
from nats.js.api import StreamConfig
from support.played.app import App, application
from support.processes.child import Process
from support.processes.gateways import shared_gateway
from support.wait import subscribed, until

EVENTS = "agentbridge.*.event.*.*"
Feed = list[tuple[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def gateway(shared_nats_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with shared_gateway(tmp_path_factory.mktemp("gateway"), shared_nats_url) as running:
        yield running
        assert "Traceback" not in running.log


@pytest.fixture
async def observer(nats_url: str) -> AsyncIterator[NatsClient]:
    client = await nats.connect(nats_url)
    yield client
    await client.close()


@pytest.fixture
async def app(gateway: Process) -> AsyncIterator[App]:
    async with application(gateway.url, capabilities=["x"], app={"name": "todo"}) as connected:
        yield connected


@pytest.fixture
async def stream(observer: NatsClient) -> Callable[[], Any]:
    """Make the stream, and return what reads all that is in it."""
    context = observer.jetstream()
    config = StreamConfig(name="agentbridge_events", subjects=[EVENTS], duplicate_window=120)
    await context.add_stream(config)

    async def stored() -> Feed:
        info = await context.stream_info("agentbridge_events")
        messages = [await context.get_msg("agentbridge_events", seq) for seq in range(1, info.state.messages + 1)]
        return [(str(message.subject), json.loads(message.data or b"")) for message in messages]

    return stored


async def heard(observer: NatsClient, subject: str = EVENTS) -> Feed:
    """Listen from now on."""
    feed: Feed = []

    async def take(msg: Msg) -> None:
        feed.append((msg.subject, json.loads(msg.data)))

    await observer.subscribe(subject, cb=take)
    await subscribed(observer)
    return feed


async def test_event_without_an_id_is_published_and_not_answered(observer: NatsClient, app: App) -> None:
    feed = await heard(observer)
    await app.send({"type": "event", "event": "task.added", "source": "list", "data": {"id": 1}})
    await until(lambda: feed)
    ((subject, event),) = feed
    assert subject == f"agentbridge.default.event.{app.client_id}.task%2Eadded"
    assert event == {
        "event": "task.added",
        "clientId": app.client_id,
        "user": "user-1",
        "app": "todo",
        "at": event["at"],
        "source": "list",
        "data": {"id": 1},
    }
    await app.send({"type": "ping"})
    await app.received(type="pong")
    assert [frame["type"] for frame in app.frames] == ["connection", "ack", "pong"]


@pytest.mark.parametrize("name", ["a b", "*", ">", "é", "x" * 256, "a\x00b", "..", "%"])
async def test_event_may_have_any_name(observer: NatsClient, app: App, name: str) -> None:
    feed = await heard(observer)
    await app.send({"type": "event", "event": name})
    await until(lambda: feed)
    assert feed[0][1]["event"] == name
    assert len(feed[0][0].split(".")) == 5


@pytest.mark.parametrize("name", ["", "x" * 257, "é" * 129])
async def test_event_name_beyond_its_bounds_is_refused(app: App, name: str) -> None:
    answer = await app.acknowledged({"type": "event", "event": name})
    assert (answer["type"], answer["code"]) == ("error", "invalid_frame")


async def test_event_with_an_id_is_acknowledged_when_it_is_stored(app: App, stream: Any) -> None:
    assert (await app.acknowledged({"type": "event", "event": "saved", "data": [1]}))["type"] == "ack"
    ((subject, event),) = await stream()
    assert subject == f"agentbridge.default.event.{app.client_id}.saved"
    assert (event["data"], event["id"]) == ([1], "frame-2")


async def test_event_sent_again_is_stored_once_and_acknowledged_again(app: App, stream: Any) -> None:
    for _ in range(3):
        await app.send({"type": "event", "event": "saved", "id": "e1"})
    await until(lambda: len(app.all_received(type="ack", id="e1")) == 3)
    assert len(await stream()) == 1


async def test_id_of_another_client_s_event_is_another_event(gateway: Process, app: App, stream: Any) -> None:
    async with application(gateway.url) as other:
        for client in (app, other):
            await client.send({"type": "event", "event": "saved", "id": "e1"})
            assert (await client.received(id="e1"))["type"] == "ack"
    assert len(await stream()) == 2


async def test_events_keep_their_order_with_and_without_an_id(app: App, stream: Any) -> None:
    """Sent in one piece, so that they arrive at once."""
    for number in range(50):
        ident = {"id": f"e{number}"} if number % 3 == 0 else {}
        app.socket.protocol.send_text(json.dumps({"type": "event", "event": "n", "data": number, **ident}).encode())
    app.socket.send_data()
    await until(lambda: len(app.all_received(type="ack")) == 1 + 17)

    async def all_stored() -> Feed:
        feed: Feed = await stream()
        return feed if len(feed) == 50 else []

    assert [event["data"] for _, event in await until(all_stored)] == list(range(50))


async def test_event_that_nobody_stores_is_unavailable(observer: NatsClient, app: App) -> None:
    answer = await app.acknowledged({"type": "event", "event": "saved"})
    assert (answer["type"], answer["code"]) == ("error", "unavailable")


async def test_answer_of_somebody_else_than_the_stream_is_no_ack(observer: NatsClient, app: App) -> None:
    bodies = iter([b"{}", b"[]", b"+ACK", b"", b'{"stream":"other","seq":1}', b'{"error":{"code":503}}', b"7"])

    async def answer(msg: Msg) -> None:
        await msg.respond(next(bodies))

    await observer.subscribe(EVENTS, cb=answer)
    await subscribed(observer)
    for _ in range(7):
        refusal = await app.acknowledged({"type": "event", "event": "saved"})
        assert (refusal["type"], refusal["code"]) == ("error", "unavailable")


async def test_too_many_events_that_wait_to_be_stored_are_refused(observer: NatsClient, app: App) -> None:
    """A tap is interest without an answer: each waits its time."""
    feed = await heard(observer)
    for number in range(70):
        await app.send({"type": "event", "event": "saved", "id": f"e{number}"})
    await until(lambda: len(app.all_received(type="error", code="overloaded")) == 6)
    await until(lambda: len(feed) == 64)
    await app.send({"type": "event", "event": "unsaved"})
    await until(lambda: len(feed) == 65)


async def test_events_refused_in_numbers_do_not_close_the_socket(observer: NatsClient, app: App) -> None:
    for number in range(300):
        await app.send({"type": "event", "event": "saved", "id": f"e{number}"})
    async with asyncio.timeout(10):
        await until(lambda: len(app.all_received(type="error")) == 300, 10)
    assert {frame["code"] for frame in app.all_received(type="error")} <= {"unavailable", "overloaded"}
    assert app.close_code is None
