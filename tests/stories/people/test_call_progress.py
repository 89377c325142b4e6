"""`agentbridge call` with a slow function: its progress on a terminal and for programs, and how it is ended."""

import asyncio
import contextlib
import fcntl
import json
import os
import select
import signal
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.nats.relay import relay_to
from support.played.app import App, application, never
from support.processes.up import COMMAND_SECONDS, Up, finished
from support.wait import until


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    running = Up(tmp_path_factory.mktemp("up"))
    try:
        running.start_blocking()
        yield running
    finally:
        running.end()


@pytest.fixture
async def app(up: Up) -> AsyncIterator[App]:
    token = up.token("app", "ann")
    async with application(up.run_file["gatewayUrl"], {"never": never}, token=token) as connected:
        yield connected


async def taken(app: App) -> str:
    return str((await app.received(COMMAND_SECONDS, type="command"))["requestId"])


async def tell(app: App, wire_id: str, progress: float, **more: Any) -> None:
    await app.send({"type": "progress", "requestId": wire_id, "progress": progress, **more})


async def answer(app: App, wire_id: str) -> None:
    await app.send({"type": "response", "requestId": wire_id, "status": "success", "result": "all of it"})


async def test_terminal_shows_a_bar_while_the_command_runs(up: Up, app: App) -> None:
    async with up.on_terminal("call", app.client_id, "never") as (process, screen):
        wire_id = await taken(app)
        await tell(app, wire_id, 1, total=4, message="reading\x1b[2J")
        await until(lambda: r"[######------------------]  25%  reading\x1b[2J" in screen.text)
        await tell(app, wire_id, 7)
        await until(lambda: "\r7 " in screen.text)
        await answer(app, wire_id)
        assert await finished(process) == (0, b'"all of it"\n', b"")
        assert "\x1b" not in screen.text
        assert screen.text.endswith("\r"), "something was left on the line"


async def test_programs_get_progress_as_lines_on_standard_error(up: Up, app: App) -> None:
    process = await up.begin("call", app.client_id, "never", "--request-id", "mine", "--json")
    wire_id = await taken(app)
    await tell(app, wire_id, 1, data={"rows": 7})
    await answer(app, wire_id)
    _, out, err = await finished(process)
    assert json.loads(out)["result"] == "all of it"
    told = {"requestId": "mine", "clientId": app.client_id, "seq": 1, "progress": 1, "data": {"rows": 7}}
    assert [json.loads(line) for line in err.splitlines()] == [told]


async def test_where_nobody_looks_nothing_is_shown(up: Up, app: App) -> None:
    process = await up.begin("call", app.client_id, "never")
    wire_id = await taken(app)
    await tell(app, wire_id, 1)
    await answer(app, wire_id)
    assert await finished(process) == (0, b'"all of it"\n', b"")


async def test_ctrl_c_cancels_the_command_and_says_so(up: Up, app: App) -> None:
    async with up.on_terminal("call", app.client_id, "never") as (process, screen):
        wire_id = await taken(app)
        await tell(app, wire_id, 1, total=4)
        await until(lambda: "25%" in screen.text)
        process.send_signal(signal.SIGINT)
        cancel = await app.received(type="cancel", requestId=wire_id)
        told = await finished(process)
        said = screen.text
    assert cancel["reason"] == "the caller went away"
    assert told == (130, b"", b"")
    assert said.splitlines()[-1] == "cancelled; the application is told to stop"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=lambda it: str(it)
)
async def test_signal_that_ends_the_call_cancels_the_command(
    up: Up, app: App, number: signal.Signals, code: int
) -> None:
    process = await up.begin("call", app.client_id, "never")
    wire_id = await taken(app)
    process.send_signal(number)
    cancel = await app.received(type="cancel", requestId=wire_id)
    assert cancel["reason"] == "the caller went away"
    assert await finished(process) == (code, b"", b"cancelled; the application is told to stop\n")


async def test_signal_that_is_to_be_ignored_is_ignored(up: Up, app: App) -> None:
    process = await up.begin("call", app.client_id, "never", on_hangup=signal.SIG_IGN)
    wire_id = await taken(app)
    process.send_signal(signal.SIGHUP)
    await answer(app, wire_id)
    assert await finished(process) == (0, b'"all of it"\n', b"")


async def unheard(up: Up, app: App, **variables: str) -> Process:
    """Begin a call whose standard error nobody has open."""
    theirs, its = os.pipe()
    process = await up.begin("call", app.client_id, "never", "--json", stderr=its, variables=variables)
    os.close(its)
    os.close(theirs)
    return process


async def test_standard_error_that_nobody_has_open_changes_nothing(up: Up, app: App) -> None:
    process = await unheard(up, app)
    wire_id = await taken(app)
    for part in range(3):
        await tell(app, wire_id, part)
    await answer(app, wire_id)
    code, out, _ = await finished(process)
    assert (code, json.loads(out)["result"]) == (0, "all of it")


async def test_log_that_nobody_has_open_changes_nothing(up: Up, app: App) -> None:
    port = urlsplit(up.run_file["natsUrl"]).port
    assert port is not None
    async with relay_to(port) as (relay, url):
        process = await unheard(up, app, AGENTBRIDGE_NATS_URL=url)
        wire_id = await taken(app)
        relay.cut()  # which the call logs
        relay.mend()
        await answer(app, wire_id)
        code, out, _ = await finished(process)
    assert (code, json.loads(out)["result"]) == (0, "all of it")


@contextlib.asynccontextmanager
async def unread(up: Up, app: App) -> AsyncIterator[tuple[Process, str]]:
    """Give a call with more progress than the pipe that is its standard error takes, and nobody who reads it."""
    theirs, its = os.pipe()
    fcntl.fcntl(its, fcntl.F_SETPIPE_SZ, 4096)
    process = await up.begin("call", app.client_id, "never", "--json", stderr=its)
    os.close(its)
    try:
        wire_id = await taken(app)
        await tell(app, wire_id, 1, data="x" * 10_000)
        await until(lambda: bool(select.select([theirs], [], [], 0)[0]))
        yield process, wire_id
    finally:
        if process.returncode is None:
            process.kill()
            await finished(process)
        os.close(theirs)


async def test_standard_error_that_nobody_reads_does_not_hold_up_the_result(up: Up, app: App) -> None:
    async with unread(up, app) as (process, wire_id):
        await answer(app, wire_id)
        code, out, _ = await finished(process)
    assert (code, json.loads(out)["result"]) == (0, "all of it")


async def test_standard_error_that_nobody_reads_does_not_hold_up_ctrl_c(up: Up, app: App) -> None:
    async with unread(up, app) as (process, wire_id):
        process.send_signal(signal.SIGINT)
        assert (await finished(process))[:2] == (130, b"")
        await app.received(type="cancel", requestId=wire_id)


async def test_killed_gateway_ends_the_call_long_before_its_timeout(up: Up, app: App) -> None:
    async with up.on_terminal("call", app.client_id, "never") as (process, screen):
        await tell(app, await taken(app), 1, total=4)
        await until(lambda: "25%" in screen.text)
        up.signal_child("gateway", signal.SIGKILL)
        assert (await finished(process))[0] == 1
        assert "Error: client_lost: " in screen.text
    await until(lambda: up_is_healthy(up), 30)  # those that follow connect to the next one


@contextlib.asynccontextmanager
async def frozen_nats(up: Up) -> AsyncIterator[None]:
    """Freeze NATS; in the end wait until everybody has come back to it."""
    await up.freeze_child("nats-server")
    try:
        yield
    finally:
        up.signal_child("nats-server", signal.SIGCONT)
        await until(lambda: up_is_healthy(up), 30)


async def up_is_healthy(up: Up) -> bool:
    return (await up.command("health")).code == 0


async def test_ctrl_c_does_not_claim_what_a_frozen_nats_has_not_taken(up: Up, app: App) -> None:
    process = await up.begin("call", app.client_id, "never")
    await taken(app)
    async with frozen_nats(up):
        process.send_signal(signal.SIGINT)
        told = await finished(process)
    assert told == (130, b"", b"cancelled, but NATS does not answer: the application may go on\n")


async def test_frozen_nats_is_told_as_soon_as_it_is_known(up: Up, app: App) -> None:
    process = await up.begin("call", app.client_id, "never", "--json")
    await taken(app)
    assert process.stdout is not None
    async with frozen_nats(up):
        async with asyncio.timeout(COMMAND_SECONDS):
            response = json.loads(await process.stdout.readline())
        code, out, _ = await finished(process)
    assert (code, out, response["error"]["code"]) == (1, b"", "client_lost")
    assert response["error"]["message"].endswith(": its gateway cannot be reached any more")


async def test_frozen_nats_is_one_sentence_for_people(up: Up, app: App) -> None:
    process = await up.begin("call", app.client_id, "never")
    await taken(app)
    async with frozen_nats(up):
        code, out, err = await finished(process)
    assert (code, out) == (1, b"")
    assert err.startswith(b"Error: client_lost: ")
