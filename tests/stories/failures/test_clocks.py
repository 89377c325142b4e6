"""Processes whose clocks are wrong by five seconds: commands of one second are answered all the same."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.nats.nats_server import NatsServer
from support.processes.bridge import Bridge
from support.processes.child import Process
from support.processes.metrics import of_gateway
from support.settings import admin_token
from support.wait import until

# What Python runs at its start, if it finds it: the time of day is another one.
WRONG_CLOCK = "import time; real = time.time; time.time = lambda: real() + {seconds}"


class WrongClocks(Bridge):
    """A bridge in which the processes of one kind find other modules first, in the folder `wrong`."""

    def __init__(self, folder: Path, nats_url: str, kind: str, wrong: Path) -> None:
        super().__init__(folder, nats_url)
        self.kind = kind
        self.wrong = wrong

    def _process(self, module: str, number: int) -> Process:
        made = super()._process(module, number)
        if module == self.kind:
            made.environment = {**made.environment, "PYTHONPATH": str(self.wrong)}
        return made


@asynccontextmanager
async def bridge_with_a_wrong_clock(folder: Path, nats: NatsServer, kind: str, seconds: float) -> AsyncIterator[Bridge]:
    wrong = folder / "wrong"
    wrong.mkdir()
    (wrong / "sitecustomize.py").write_text(WRONG_CLOCK.format(seconds=seconds))
    bridge = WrongClocks(folder, nats.url, kind, wrong)
    try:
        await bridge.start()
        yield bridge
    finally:
        await bridge.close()


@pytest.mark.parametrize(("kind", "seconds"), [("gateway", 5), ("agent_api", -5), ("agent_api", 5), ("registry", 5)])
async def test_command_of_one_second_is_executed_though_a_clock_is_wrong(
    tmp_path: Path, private_nats: NatsServer, kind: str, seconds: float
) -> None:
    async with (
        bridge_with_a_wrong_clock(tmp_path, private_nats, kind, seconds) as bridge,
        bridge.app({"echo": lambda given: given}) as app,
    ):
        await bridge.listed(app.client_id)

        async def answered() -> bool:
            answer = await bridge.call(app.client_id, "echo", {"n": 1}, timeout_ms=1000)
            return answer.status_code == 200

        await until(answered, 15)
        answers = await asyncio.gather(*(bridge.call(app.client_id, "echo", timeout_ms=1000) for _ in range(10)))
        assert [answer.status_code for answer in answers] == [200] * 10


async def test_wrong_clock_is_logged_counted_and_shown(tmp_path: Path, private_nats: NatsServer) -> None:
    async with bridge_with_a_wrong_clock(tmp_path, private_nats, "gateway", 5) as bridge:
        gateway = bridge.gateways[0]
        await until(lambda: "s ahead of the registry's" in gateway.log, 15)
        async with of_gateway(gateway) as http:
            [line] = [
                line
                for line in (await http.get("/metrics")).text.splitlines()
                if "skew_ms " in line[:60] and "#" not in line
            ]
        assert 4_500 < float(line.split()[1]) < 5_500
        process = await asyncio.create_subprocess_exec(
            *(bridge.processes[0].command[0], "-m", "agentbridge", "health", "--json", "--nats-url", bridge.nats_url),
            env={**bridge.processes[0].environment, "AGENTBRIDGE_TOKEN": admin_token()},
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(20):
            out, _ = await process.communicate()
        skews = {each["name"]: each["clockSkewMs"] for each in json.loads(out)["processes"]}
        assert 4_500 < skews["agentbridge-gateway"] < 5_500
        assert abs(skews["agentbridge-registry"]) < 500
