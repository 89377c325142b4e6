"""The life of a process, as a real one: it starts in any order, stops in order, and says in one line what is wrong."""

import asyncio
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import nats
import pytest
from conftest import MakeNats
from support.nats.nats_server import NatsServer, free_port
from support.processes.child import Process
from support.settings import environment
from support.wait import until

MODULE = '''
"""A process that serves nothing and says when it drains."""

import asyncio
import contextlib
import sys

from protocol.runtime.process import life
from protocol.runtime.process.announcement import announce
from protocol.runtime.settings import Settings


async def crash():
    await asyncio.sleep(0)
    raise RuntimeError("a task failed")


@contextlib.asynccontextmanager
async def serving(settings, connection, tasks):
    async def note(msg):
        print(msg.data.decode(), flush=True)

    await connection.subscribe("{subject}", note)
    if {crashes}:
        tasks.create_task(crash())
    announce("probe")
    yield
    print("drained", flush=True)
    await asyncio.sleep({drain})


if __name__ == "__main__":
    life.run("probe", Settings, serving, user="probe")
'''


class Probes:
    """Makes processes of the module above."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: list[Process] = []

    def make(
        self, nats_url: str, *, drain: str = "0", crashes: bool = False, subject: str = "probe.in", **values: object
    ) -> Process:
        file = self._folder / f"probe_{len(self._made)}.py"
        file.write_text(MODULE.format(drain=drain, crashes=crashes, subject=subject))
        process = Process(file.stem, self._folder, environment(nats_url, **values))
        process.command = [sys.executable, str(file)]
        self._made.append(process)
        return process

    def end(self) -> None:
        for process in self._made:
            process.end()


@pytest.fixture
def probes(tmp_path: Path) -> Iterator[Probes]:
    made = Probes(tmp_path)
    yield made
    made.end()


def started_process(line: str) -> str:
    """Return the name in the line by which a process says that it serves."""
    said = json.loads(line)
    assert (said["level"], said["message"]) == ("info", "serving")
    return str(said["process"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_ends_a_process_in_order(probes: Probes, nats_url: str, number: signal.Signals) -> None:
    process = await probes.make(nats_url).start()
    process.signal(number)
    assert await process.ended(10) == 0
    started, ended = process.out.splitlines()
    assert (started_process(started), ended) == ("probe", "drained")
    assert "Traceback" not in process.log
    assert "lost NATS" not in process.log


async def test_second_signal_changes_nothing(probes: Probes, nats_url: str) -> None:
    process = await probes.make(nats_url, drain="0.3").start()
    process.signal(signal.SIGTERM)
    await until(lambda: "drained" in process.out)
    process.signal(signal.SIGTERM)
    process.signal(signal.SIGINT)
    assert await process.ended(10) == 0
    assert process.out.count("drained") == 1
    assert "Traceback" not in process.log


async def test_drain_is_bounded(probes: Probes, nats_url: str) -> None:
    process = await probes.make(nats_url, drain="3600", drain_seconds=0.1).start()
    assert await process.terminate() == 0
    assert "not all work in flight has ended within 0.1 s" in process.log


async def test_process_may_start_before_nats(probes: Probes, make_nats: MakeNats) -> None:
    server = make_nats("")
    process = probes.make(server.url).launch()
    await until(lambda: "waiting for NATS" in process.log, 10)
    await server.start()
    await until(lambda: process.out, 10)
    assert started_process(process.out) == "probe"
    assert await process.terminate() == 0
    assert "Traceback" not in process.log


async def test_signal_before_nats_is_there_ends_a_process(probes: Probes) -> None:
    port = free_port()
    process = probes.make(f"nats://ann:hunter2@127.0.0.1:{port}").launch()
    await until(lambda: f"waiting for NATS at 127.0.0.1:{port} (" in process.log, 10)
    assert "hunter2" not in process.log
    assert await process.terminate() == 0
    assert "Traceback" not in process.log


@pytest.mark.parametrize("end", ["kill", "freeze"])
async def test_signal_ends_a_process_while_nats_is_away(probes: Probes, private_nats: NatsServer, end: str) -> None:
    process = await probes.make(private_nats.url, drain_seconds=1).start()
    getattr(private_nats, end)()
    await until(lambda: "lost NATS" in process.log, 10)
    code = await process.terminate()
    assert code == 0, process.log
    assert "Traceback" not in process.log


async def test_process_lives_on_when_nats_restarts(probes: Probes, private_nats: NatsServer) -> None:
    process = await probes.make(private_nats.url).start()
    private_nats.stop()
    await until(lambda: "lost NATS" in process.log, 10)
    await private_nats.start()
    await until(lambda: "NATS is back" in process.log, 10)
    assert process.running
    assert await process.terminate() == 0


async def test_wrong_setting_is_one_line_and_exit_code_2(probes: Probes, nats_url: str) -> None:
    process = probes.make(nats_url, log_level="loud").launch()
    assert await process.ended(10) == 2
    assert process.log == "probe: AGENTBRIDGE_LOG_LEVEL is 'loud', but should be debug, info, warning or error\n"
    assert process.out == ""


async def test_refused_credentials_are_one_line_and_exit_code_2(probes: Probes, make_nats: MakeNats) -> None:
    server = make_nats('authorization { users = [ { user: bob, password: "secret-of-bob" } ] }')
    await server.start()
    process = probes.make(server.url, nats_user="bob", nats_password="hunter2").launch()
    assert await process.ended(10) == 2
    assert _last_line(process).startswith(
        f"probe: NATS at nats://127.0.0.1:{server.port} refuses this process's credentials"
    )
    assert "hunter2" not in process.log
    assert "Traceback" not in process.log


async def test_missing_permission_is_one_line_and_exit_code_2(probes: Probes, make_nats: MakeNats) -> None:
    users = '{ user: bob, password: "secret-of-bob", permissions: { subscribe: ["_INBOX.>"] } }'
    server = make_nats(f"authorization {{ users = [ {users} ] }}")
    await server.start()
    process = probes.make(server.url, nats_user="bob", nats_password="secret-of-bob").launch()
    assert await process.ended(10) == 2
    assert "probe: NATS user of probe lacks permissions: " in _last_line(process)
    assert "probe.in" in _last_line(process)
    assert "Traceback" not in process.log


async def test_failure_of_a_task_is_logged_and_exit_code_1(probes: Probes, nats_url: str) -> None:
    process = probes.make(nats_url, crashes=True).launch()
    assert await process.ended(10) == 1
    assert "RuntimeError: a task failed" in process.log


async def test_process_prints_what_it_hears_while_it_serves(probes: Probes, nats_url: str) -> None:
    process = await probes.make(nats_url, subject="probe.heard").start()
    other = await nats.connect(nats_url)
    async with asyncio.timeout(5):
        await other.publish("probe.heard", b"hello")
        await until(lambda: "hello" in process.out)
    await other.close()


def _last_line(process: Process) -> str:
    return process.log.splitlines()[-1]
