"""What holders of a NATS password can do to a registry, without a valid token and with one, and what they cannot."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.load.flood import flood
from support.nats.clients_bucket import record
from support.nats.nats_server import NatsServer
from support.played.gateway import FakeGateway, fake_gateway
from support.processes.child import Process
from support.processes.registry import Observer, observer, registries
from support.settings import agent_token
from support.wait import until

from protocol import subjects
from registry.questions import MAX_QUESTION_BYTES, MAX_WAITING

FLOOD_SECONDS = 3.0
FULL_SPEED = 400_000  # messages a second; what one process can send is less
RECORDS = 60
QUESTIONS = 2 * MAX_WAITING - 200  # so many that all refusals are answered
World = tuple[Process, FakeGateway, Observer]


@pytest.fixture
async def world(private_nats: NatsServer, tmp_path: Path) -> AsyncIterator[World]:
    async with (
        registries(tmp_path, private_nats.url) as (registry,),
        observer(private_nats.url) as watching,
        fake_gateway(private_nats.url) as gateway,
    ):
        await gateway.connect(record("ann", tenant="calm"))
        await until(lambda: watching.announced.messages)
        yield registry, gateway, watching
        assert "Traceback" not in registry.log


async def test_flood_without_a_good_token_stops_neither_reports_nor_answers(
    private_nats: NatsServer, world: World
) -> None:
    registry, gateway, watching = world
    lines_before = len(registry.log.splitlines())
    port = urlsplit(private_nats.url).port
    assert port is not None
    found: list[Any] = []
    async with asyncio.TaskGroup() as tasks:
        flooding = tasks.create_task(flood(port, subjects.registry("flood", "list"), FLOOD_SECONDS))
        while not flooding.done():
            answer = await watching.ask("get", {"clientId": "ann"}, token=agent_token(tenant="calm"), tenant="calm")
            found.append(answer.get("clientId"))
            acknowledged = await gateway.connect(record("ann", tenant="calm", revision=2 + len(found)))
            assert json.loads(acknowledged) == {"number": gateway.number}
    assert set(found) == {"ann"}
    lines = registry.log.splitlines()[lines_before:]
    assert len(lines) <= 5 * FLOOD_SECONDS, f"{len(lines)} lines, beginning with {lines[:3]}"


async def test_flood_at_full_speed_costs_the_flooded_tenant_its_answers_and_nobody_else(
    private_nats: NatsServer, world: World
) -> None:
    registry, gateway, watching = world
    port = urlsplit(private_nats.url).port
    assert port is not None
    found: list[Any] = []
    async with asyncio.TaskGroup() as tasks:
        subject = subjects.registry("flood", "list")
        flooding = tasks.create_task(flood(port, subject, FLOOD_SECONDS, FULL_SPEED))
        while not flooding.done():
            answer = await watching.ask("get", {"clientId": "ann"}, token=agent_token(tenant="calm"), tenant="calm")
            found.append(answer.get("clientId"))
            acknowledged = await gateway.connect(record("ann", tenant="calm", revision=2 + len(found)))
            assert json.loads(acknowledged) == {"number": gateway.number}
    assert set(found) == {"ann"}
    assert "lost NATS" not in registry.log
    assert "no longer answering" in registry.log


async def test_questions_of_one_agent_are_overloaded_before_they_delay_others(world: World) -> None:
    _, gateway, watching = world
    await gateway.connect(*(record(f"c{number}", tenant="flood") for number in range(RECORDS)))
    token = agent_token("flooder", tenant="flood")

    async def ask() -> str:
        answer = await watching.ask("list", token=token, tenant="flood")
        return str(answer["error"]["details"]["limit"]) if "error" in answer else "answered"

    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(ask()) for _ in range(QUESTIONS)]
        await asyncio.sleep(0)
        answer = await watching.ask("get", {"clientId": "ann"}, token=agent_token(tenant="calm"), tenant="calm")
        waiting = sum(not task.done() for task in asking)
    assert answer["clientId"] == "ann"
    assert waiting, "the neighbour is answered while the flooder's questions wait"
    outcomes = Counter(task.result() for task in asking)
    assert outcomes.keys() == {"answered", "agent"}


async def test_question_without_a_token_is_still_told_so(world: World) -> None:
    _, _, watching = world
    assert await watching.refused("list", token=None) == "unauthenticated"


async def test_question_that_is_too_large_is_told_so(world: World) -> None:
    _, _, watching = world
    body = json.dumps({"name": "x" * MAX_QUESTION_BYTES}).encode()
    assert await watching.refused("list", body) == "payload_too_large"
