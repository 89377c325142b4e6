"""Progress of commands: from an application through a real gateway, over NATS, to a caller who asked for it."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.aio.msg import Msg
from support.played.app import App, application, never
from support.processes.child import Process
from support.processes.gateways import Agent, agent, gateway_process
from support.settings import agent_token, bearer, settings_for
from support.wait import subscribed, until

from protocol import codec, subjects
from protocol.errors import ClientLost
from protocol.messages import CommandRequest, CommandResponse, ProgressMessage
from protocol.runtime.commands.caller import Caller
from protocol.runtime.nats.connection import connect
from protocol.runtime.settings import Settings
from protocol.subjects import ClientAddress

Frame = dict[str, Any]
INBOX = "_INBOX.tests.p"


class Listening:
    """A caller that notes the progress of its commands, and whatever comes too late for them."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.heard: list[ProgressMessage] = []

    def call(self, client_id: str, **fields: Any) -> asyncio.Task[CommandResponse]:
        """Send a command that the application never answers by itself."""
        command = CommandRequest(**{"target": "never", "request_id": "r1", "timeout_ms": 20_000, **fields})
        work = self.caller.call(ClientAddress("default", client_id), command, agent_token(), self.heard.append)
        return asyncio.get_running_loop().create_task(work)

    @property
    def said(self) -> list[float]:
        """How far each message says that the command is."""
        return [message.progress for message in self.heard]


@pytest.fixture
async def plain(shared_nats_url: str) -> AsyncIterator[Agent]:
    async with agent(shared_nats_url) as connected:
        yield connected


@pytest.fixture
async def app(gateway: Process) -> AsyncIterator[App]:
    async with application(gateway.url, {"never": never, "echo": dict}) as connected:
        yield connected


@pytest.fixture
async def listening(shared_nats_url: str) -> AsyncIterator[Listening]:
    async with calling(shared_nats_url) as ready:
        yield ready


@contextlib.asynccontextmanager
async def calling(url: str) -> AsyncIterator[Listening]:
    async with connect(settings_for(Settings, url), "tests", "tests") as connection, asyncio.TaskGroup() as tasks:
        caller = Caller(connection, unknown, tasks)
        await caller.start()
        yield Listening(caller)
        assert caller.in_flight == 0
        assert not caller._listeners._listening


async def unknown(address: ClientAddress, token: str | None) -> bool:
    return False


async def taken(app: App) -> str:
    """Wait until the application has its command, and return the id by which it answers."""
    return str((await app.received(type="command"))["requestId"])


async def tell(app: App, wire_id: str, progress: float, **more: Any) -> None:
    await app.send({"type": "progress", "requestId": wire_id, "progress": progress, **more})


async def answer(app: App, wire_id: str, result: Any = "done") -> None:
    await app.send({"type": "response", "requestId": wire_id, "status": "success", "result": result})


async def test_caller_hears_all_that_is_said_and_then_the_answer(app: App, listening: Listening) -> None:
    call = listening.call(app.client_id)
    wire_id = await taken(app)
    await tell(app, wire_id, 1, total=2, message="half", data={"rows": [1]})
    await until(lambda: listening.heard)
    await tell(app, wire_id, 2)
    await until(lambda: len(listening.heard) == 2)
    await answer(app, wire_id)

    assert (await call).status == "success"
    first, second = listening.heard
    assert isinstance(first.data, msgspec.Raw)
    assert json.loads(codec.raw_bytes(first.data)) == {"rows": [1]}
    assert (first.request_id, first.seq, first.progress, first.total, first.message) == ("r1", 1, 1, 2, "half")
    assert second == ProgressMessage(request_id="r1", seq=2, progress=2, client_id=app.client_id)


async def test_flood_is_thinned_out_and_its_last_word_comes_before_the_answer(app: App, listening: Listening) -> None:
    call = listening.call(app.client_id)
    wire_id = await taken(app)
    for number in range(500):
        await tell(app, wire_id, number)
    await answer(app, wire_id)

    assert (await call).status == "success"
    assert listening.said[-1] == 499
    assert listening.said == sorted(set(listening.said))
    assert [message.seq for message in listening.heard] == list(range(1, len(listening.heard) + 1))
    assert len(listening.heard) < 100


async def test_progress_after_the_answer_is_dropped_and_counted(app: App, plain: Agent, listening: Listening) -> None:
    before = await counted(plain, "lateProgress")
    call = listening.call(app.client_id)
    wire_id = await taken(app)
    await answer(app, wire_id)
    await call
    await tell(app, wire_id, 1)
    await tell(app, "never-sent", 1)
    await until(lambda: counted(plain, "lateProgress", before + 2))
    assert listening.heard == []


async def counted(plain: Agent, name: str, wanted: int | None = None) -> int:
    """Return a counter of the gateway's; 0 where it is not what is wanted."""
    stats = json.loads((await plain.nats.request("$SRV.STATS.agentbridge-gateway", timeout=5)).data)
    [data] = [endpoint["data"] for endpoint in stats["endpoints"] if endpoint.get("data")]
    found = int(data[name])
    return found if wanted in (None, found) else 0


async def test_progress_of_a_command_whose_caller_did_not_ask_goes_nowhere(app: App, plain: Agent) -> None:
    everything: list[Msg] = []

    async def note(msg: Msg) -> None:
        everything.append(msg)

    await plain.nats.subscribe("_INBOX.>", cb=note)
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(plain.call(app.client_id, "never"))
        wire_id = await taken(app)
        await tell(app, wire_id, 1)
        await answer(app, wire_id)
        assert (await call)["status"] == "success"
    assert not [msg for msg in everything if b'"progress"' in msg.data]


@pytest.mark.parametrize("subject", ["_INBOX.a.*", "_INBOX.>", "_INBOX", "agentbridge.default.event.c1.x", "x" * 300])
async def test_progress_is_sent_to_inboxes_alone(app: App, plain: Agent, subject: str) -> None:
    error = (await asking(plain, app, subject))["error"]
    assert (error["code"], "Agentbridge-Progress" in error["message"]) == ("invalid_request", True)
    assert await app.commands() == []


async def asking(plain: Agent, app: App, subject: str) -> Frame:
    headers = {**bearer(agent_token()), "Agentbridge-Progress": subject}
    subject = subjects.command("default", app.client_id)
    reply = await plain.nats.request(subject, b'{"target":"echo"}', 5, headers=headers)
    found: Frame = json.loads(reply.data)
    return found


async def test_progress_never_goes_where_the_answer_goes(app: App, plain: Agent) -> None:
    inbox = await plain.nats.subscribe(INBOX)
    headers = {**bearer(agent_token()), "Agentbridge-Progress": INBOX}
    await plain.nats.publish(subjects.command("default", app.client_id), b'{"target":"echo"}', INBOX, headers)
    refused = json.loads((await inbox.next_msg(5)).data)
    assert refused["error"]["code"] == "invalid_request"


async def test_plain_nats_agent_can_listen_too(app: App, plain: Agent) -> None:
    inbox = await plain.nats.subscribe(INBOX)
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(asking_slowly(plain, app))
        wire_id = await taken(app)
        await tell(app, wire_id, 0.5, message="half")
        told = json.loads((await inbox.next_msg(5)).data)
        await answer(app, wire_id)
        request_id = (await call)["requestId"]
    assert told == {"requestId": request_id, "seq": 1, "progress": 0.5, "message": "half", "clientId": app.client_id}


async def asking_slowly(plain: Agent, app: App) -> Frame:
    headers = {**bearer(agent_token()), "Agentbridge-Progress": INBOX}
    subject = subjects.command("default", app.client_id)
    found: Frame = json.loads((await plain.nats.request(subject, b'{"target":"never"}', 5, headers=headers)).data)
    return found


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ('"progress": NaN', "invalid_frame", ""),
        ('"progress": 1e999', "invalid_frame", "`progress`"),
        ('"progress": "half"', "invalid_frame", "`progress`"),
        ('"progress": true', "invalid_frame", "`progress`"),
        ('"progress": null', "invalid_frame", "`progress`"),
        ('"total": 1', "invalid_frame", "`progress`"),
        ('"progress": 1, "total": "2"', "invalid_frame", "`total`"),
        ('"progress": 1, "message": {}', "invalid_frame", "`message`"),
        (f'"progress": 1, "message": "{"x" * 1001}"', "payload_too_large", "`message`"),
        (f'"progress": 1, "data": "{"x" * 16_384}"', "payload_too_large", "`data`"),
    ],
)
async def test_bad_progress_is_refused_and_the_command_goes_on(
    app: App, listening: Listening, fields: str, code: str, field: str
) -> None:
    call = listening.call(app.client_id)
    wire_id = await taken(app)
    await app.send(f'{{"type": "progress", "requestId": "{wire_id}", {fields}}}')
    refused = await app.received(type="error")
    assert refused["code"] == code
    assert field in refused["message"]
    await tell(app, wire_id, 1, message="x" * 1000, data="x" * 16_000)
    await answer(app, wire_id)
    assert (await call).status == "success"
    assert listening.said == [1]


async def test_progress_does_not_keep_a_command_alive(app: App, listening: Listening) -> None:
    call = listening.call(app.client_id, timeout_ms=300)
    wire_id = await taken(app)
    while not call.done():
        await tell(app, wire_id, 1)
        await asyncio.sleep(0.02)
    error = call.result().error
    assert error is not None
    assert error.code == "timeout"
    assert listening.heard


async def test_cancelled_call_hears_no_more(app: App, listening: Listening) -> None:
    call = listening.call(app.client_id)
    wire_id = await taken(app)
    await tell(app, wire_id, 1)
    await until(lambda: listening.heard)
    call.cancel()
    await app.received(type="cancel", requestId=wire_id)
    await tell(app, wire_id, 2)
    await app.acknowledged({"type": "metadata", "metadata": {}})
    await asyncio.wait([call])
    assert listening.said == [1]


async def test_killed_gateway_is_client_lost_within_2_seconds_of_the_last_word(
    tmp_path: Path, shared_nats_url: str
) -> None:
    async with (
        gateway_process(tmp_path, shared_nats_url) as doomed,
        application(doomed.url, {"never": never}) as app,
        calling(shared_nats_url) as listening,
    ):
        call = listening.call(app.client_id)
        await tell(app, await taken(app), 1)
        await until(lambda: listening.heard)
        await doomed.kill()
        async with asyncio.timeout(2.5):
            with pytest.raises(ClientLost):
                await call


async def test_odd_words_on_the_way_are_ignored(plain: Agent, listening: Listening) -> None:
    """A gateway that tells garbage, tells something good, answers, and goes on telling."""
    good = {"requestId": "r1", "seq": 7, "progress": 0.5}

    async def lie(msg: Msg) -> None:
        assert msg.headers is not None
        request, to = json.loads(msg.data), msg.headers["Agentbridge-Progress"]
        for odd in (b"", b"\xff", b"[]", b"{}", b'{"requestId":"r1","seq":1,"progress":"x"}'):
            await plain.nats.publish(to, odd)
        await plain.nats.publish(to, json.dumps(good).encode())
        done = {"requestId": request["requestId"], "status": "success", "durationMs": 1}
        await msg.respond(json.dumps(done).encode())
        await plain.nats.publish(to, json.dumps({**good, "seq": 8}).encode())

    await plain.nats.subscribe(subjects.command("default", "liar"), cb=lie)
    await subscribed(plain.nats)
    assert (await listening.call("liar")).status == "success"
    assert (await listening.call("liar")).status == "success"
    assert [message.seq for message in listening.heard] == [7, 7]
