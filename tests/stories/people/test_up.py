"""`agentbridge up`: everything starts, is watched, and goes, however it ends."""

import contextlib
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import nats
import pytest
from support.nats.nats_server import NatsServer, free_port
from support.played.app import application
from support.processes.up import Up, tree
from support.wait import until

from protocol.runtime.nats import agent_login

MakeUp = Callable[..., Up]
CHILDREN = ["nats-server", "registry", "gateway", "agent_api"]


@pytest.fixture
def make_up(tmp_path: Path) -> Iterator[MakeUp]:
    """Make `up`s, each in a folder of its own: `make_up("one", api_port=8123)`."""
    made: list[Up] = []

    def make(name: str = "up", **settings: object) -> Up:
        made.append(Up(tmp_path / name, **settings))
        return made[-1]

    yield make
    for up in made:
        up.end()


async def serves(up: Up) -> bool:
    """Tell whether an application can be found and called, at the addresses that were first told."""
    try:
        async with (
            application(up.run_file["gatewayUrl"], {"echo": dict}, token=up.token("app")) as app,
            httpx.AsyncClient(base_url=up.run_file["apiUrl"], trust_env=False) as http,
        ):
            http.headers["Authorization"] = f"Bearer {up.token('agent')}"
            command = {"clientId": app.client_id, "command": {"target": "echo", "parameters": {"n": 1}}}
            answer = await http.post("/api/command", json=command)
            found = app.client_id in (await http.get("/api/capabilities")).json()
        return found and answer.status_code == httpx.codes.OK
    except (OSError, ExceptionGroup, TimeoutError, httpx.HTTPError):
        return False


def has_another(up: Up, name: str, before: int) -> bool:
    """Tell whether a child runs in the place of the one before."""
    return up.child(name) not in (0, before)


async def test_ctrl_c_ends_everything_and_no_secret_stays_behind(make_up: MakeUp) -> None:
    up = make_up()
    await up.start()
    found = up.run_file
    assert all(up.child(name) for name in CHILDREN)
    assert await serves(up)
    assert await up.interrupted() == 0
    assert (up.orphans(), up.run_file) == ([], {})
    assert "Traceback" not in up.log

    assert not {"natsUser", "natsPassword"} & found.keys(), "the command line logs in by its token"
    written = [path.read_bytes() for path in up.folder.rglob("*") if path.is_file()]
    assert not [content for content in written if found["jwtSecret"].encode() in content]
    assert "eyJ" not in up.log + up.out


async def test_terminal_shows_tokens_that_work_and_its_ctrl_c_ends_everything(make_up: MakeUp) -> None:
    up = make_up()
    terminal = up.launch_on_terminal()
    try:
        shown = await until(partial(shown_with, terminal, bytearray(), b"/api/capabilities"), 30)
        tokens = dict(re.findall(r"^  (app|agent|admin) +(eyJ\S+)\r$", shown, re.MULTILINE))
        async with application(up.run_file["gatewayUrl"], {"echo": dict}, token=tokens["app"]) as app:
            called = await up.command("call", app.client_id, "echo", "--token", tokens["agent"])
            assert called.out == "{}\n"
        up.descendants |= set(tree(up.pid))
        os.write(terminal, b"\x03")
        assert await up.ended() == 0
    finally:
        os.close(terminal)
    assert up.orphans() == []


def shown_with(terminal: int, shown: bytearray, awaited: bytes) -> str:
    """Return what a terminal shows once that holds `awaited`; nothing before."""
    os.set_blocking(terminal, False)
    with contextlib.suppress(BlockingIOError):
        shown += os.read(terminal, 65536)
    return shown.decode() if awaited in shown else ""


async def test_second_signal_changes_nothing(make_up: MakeUp) -> None:
    up = make_up()
    await up.start()
    async with application(up.run_file["gatewayUrl"], token=up.token("app")):
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            up.signal(number)
        assert await up.ended() == 0
    assert up.orphans() == []
    assert "Traceback" not in up.log


async def test_signal_during_the_start_ends_it(make_up: MakeUp) -> None:
    up = make_up()
    up.launch()
    await until(lambda: up.child("registry"), 20)
    up.signal(signal.SIGTERM)
    assert await up.ended() == 0
    assert up.orphans() == []
    assert "Traceback" not in up.log


async def test_child_that_ignores_its_signal_is_killed(make_up: MakeUp) -> None:
    up = make_up(drain_seconds=0.1)
    await up.start()
    await up.freeze_child("gateway")
    assert await up.interrupted() == 0
    assert up.orphans() == []
    assert "gateway has not ended within" in up.log


async def test_child_that_dies_is_started_again_where_it_was(make_up: MakeUp) -> None:
    up = make_up()
    await up.start()
    for name in CHILDREN:
        before = up.child(name)
        up.signal_child(name, signal.SIGKILL)
        await until(partial(has_another, up, name, before), 10)
        assert f"{name} was killed by SIGKILL; starting it again" in up.log
        await until(partial(serves, up), 20)
    assert await up.interrupted() == 0
    assert up.orphans() == []


async def test_killed_up_leaves_no_orphans_and_can_be_started_again(make_up: MakeUp) -> None:
    up = make_up()
    await up.start()
    up.signal(signal.SIGKILL)
    assert await up.ended() == -signal.SIGKILL
    assert len(up.descendants) == len(CHILDREN)
    await until(lambda: not up.orphans(), 5)

    assert up.run_file
    await up.start()
    assert await up.interrupted() == 0


async def test_two_run_side_by_side_and_a_second_in_one_folder_is_refused(make_up: MakeUp) -> None:
    one, other = make_up("one"), make_up("other")
    await one.start()
    await other.start()
    addresses = {up.run_file[name] for up in (one, other) for name in ("natsUrl", "apiUrl", "gatewayUrl")}
    assert len(addresses) == 6
    async with application(one.run_file["gatewayUrl"], {"echo": dict}, token=one.token("app")) as app:
        assert app.client_id in (await one.command("clients")).out
        assert app.client_id not in (await other.command("clients")).out

    second = await one.command("up")
    assert (second.code, second.out, len(second.err.splitlines())) == (1, "", 1)
    assert "already runs in" in second.err
    assert "AGENTBRIDGE_DATA_DIR" in second.err
    assert await serves(one)
    assert [await one.interrupted(), await other.interrupted()] == [0, 0]


async def test_port_of_nats_can_be_chosen_and_a_mistyped_setting_is_named(make_up: MakeUp) -> None:
    port = free_port()
    up = make_up(nats_port=port, drain_second=1)
    await up.start()
    assert urlsplit(up.run_file["natsUrl"]).port == port
    sentence = "AGENTBRIDGE_DRAIN_SECOND is not a setting, and has no effect; did you mean AGENTBRIDGE_DRAIN_SECONDS?"
    said_by = {line.split()[1] for line in up.log.splitlines() if sentence in line}
    assert said_by == {"up"}
    assert await up.interrupted() == 0


async def test_taken_port_is_one_sentence(make_up: MakeUp) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused = await make_up(api_port=taken.getsockname()[1]).command("up")
    assert refused.code == 1
    assert len(refused.err.splitlines()) == 1
    assert "AGENTBRIDGE_API_PORT" in refused.err


async def test_setting_that_only_a_child_knows_stops_everything(make_up: MakeUp) -> None:
    up = make_up(ping_interval_seconds="often")
    up.launch()
    assert await up.ended() == 1
    assert up.orphans() == []
    assert "AGENTBRIDGE_PING_INTERVAL_SECONDS is 'often'" in up.log
    assert up.log.splitlines()[-1].startswith("Error: gateway ended with exit code 2")


async def test_without_authentication_agents_need_no_token_on_nats_either(make_up: MakeUp) -> None:
    up = make_up(auth="off")
    await up.start()
    prefix = agent_login.inbox_prefix("default", "anonymous")
    async with await nats.connect(up.run_file["natsUrl"], inbox_prefix=prefix) as agent:
        assert (await agent.request("agentbridge.default.registry.list", b"{}")).data == b'{"clients":[]}'


async def test_nats_that_runs_already_is_used_and_authentication_may_be_off(
    make_up: MakeUp, private_nats: NatsServer
) -> None:
    up = make_up(nats_url=private_nats.url, auth="off")
    await up.start()
    assert not up.child("nats-server")
    assert up.run_file["natsUrl"] == private_nats.url
    assert "jwtSecret" not in up.run_file
    async with application(up.run_file["gatewayUrl"], {"echo": dict}, token="none") as app:
        answer = await up.command("call", app.client_id, "echo", "n:=1", "--json")
        assert '"result":{"n":1}' in answer.out
    assert await up.interrupted() == 0
