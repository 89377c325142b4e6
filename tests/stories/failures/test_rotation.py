"""The secret of tokens is replaced step by step, as docs/operations.md says, and nobody is refused meanwhile."""

import asyncio
import contextlib
import random
from collections import Counter
from pathlib import Path

import httpx
from support.nats.nats_server import NatsServer
from support.played.app import application
from support.processes.bridge import Bridge, running_bridge
from support.processes.child import Process
from support.settings import SECRET, bearer
from support.wait import until
from websockets.exceptions import InvalidStatus, WebSocketException

from protocol.errors import CloseCode
from protocol.runtime.tokens import mint

NEW = "another-secret-of-the-issuer-0123456789"
APPS, CALLERS, MORE = 4, 4, 20
REFUSED = {CloseCode.NO_CREDENTIALS, CloseCode.REFUSED}


class Traffic:
    """Applications that come back and agents that go on, all with tokens of the issuer's present secret."""

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge
        self.secret = SECRET
        self.answers: Counter[int] = Counter()
        self.refusals: list[str] = []
        self.up: list[Process] = [*bridge.gateways, *bridge.agent_apis]

    def token(self, role: str) -> str:
        return mint(self.secret, f"{role}-1", role, 600)

    def some(self, module: str) -> str:
        return random.choice([process for process in self.up if process.module == module]).url

    async def be_an_application(self) -> None:
        while True:
            with contextlib.suppress(OSError, TimeoutError, InvalidStatus, WebSocketException, ExceptionGroup):
                async with application(self.some("gateway"), {"echo": dict}, token=self.token("app")) as app:
                    await until(lambda: app.close_code, 600)
                    if app.close_code in REFUSED:
                        self.refusals.append(f"application: {app.close_code}")
            await asyncio.sleep(0.05)

    async def be_an_agent(self) -> None:
        async with httpx.AsyncClient(timeout=30, trust_env=False) as http:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    url, body = f"{self.some('agent_api')}/api/command", {"command": {"target": "echo"}, "any": True}
                    answer = await http.post(url, json=body, headers=bearer(self.token("agent")))
                    self.answers[answer.status_code] += 1
                    if answer.status_code in (401, 403):
                        self.refusals.append(answer.text)
                await asyncio.sleep(0.01)

    async def flows(self) -> None:
        """Wait for some more answers of applications."""
        goal = self.answers[200] + MORE
        await until(lambda: self.answers[200] >= goal, 30)


async def give(traffic: Traffic, secret: str, also: str) -> None:
    """Restart every process with these secrets, one at a time, while the others go on."""
    for process in traffic.bridge.processes:
        if process in traffic.up:
            traffic.up.remove(process)
        await process.terminate()
        process.environment = {
            **process.environment,
            "AGENTBRIDGE_JWT_SECRET": secret,
            "AGENTBRIDGE_JWT_SECRETS_ALSO": also,
        }
        await process.start()
        if process.module != "registry":
            traffic.up.append(process)
        await traffic.flows()


async def test_secret_is_rotated_under_load_without_a_refusal(tmp_path: Path, private_nats: NatsServer) -> None:
    two = {"gateways": 2, "agent_apis": 2, "registries": 2}
    async with running_bridge(tmp_path, private_nats.url, drain_seconds=2, **two) as bridge:
        traffic = Traffic(bridge)
        people = [traffic.be_an_application] * APPS + [traffic.be_an_agent] * CALLERS
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(one()) for one in people]
            await traffic.flows()
            await give(traffic, SECRET, NEW)  # 1: everybody accepts the new one
            old, traffic.secret = traffic.token("agent"), NEW  # 2: the issuer signs with it
            await traffic.flows()
            await give(traffic, NEW, SECRET)  # 3: they change places
            async with httpx.AsyncClient(base_url=traffic.some("agent_api"), trust_env=False) as http:
                assert (await http.get("/api/clients", headers=bearer(old))).status_code == 200
                await give(traffic, NEW, "")  # 4: the old one goes, once its last token has expired
            async with httpx.AsyncClient(base_url=traffic.some("agent_api"), trust_env=False) as http:
                assert (await http.get("/api/clients", headers=bearer(old))).status_code == 401
            for task in running:
                task.cancel()
        assert traffic.refusals == []
        assert "eyJ" not in bridge.log
        assert NEW not in bridge.log
