"""Which tenants' questions a registry takes while one of them is flooded."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any, cast

import nats
import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from support.settings import settings_for
from support.wait import until

from protocol import subjects
from protocol.runtime.clients.mirror import Mirror
from protocol.runtime.nats.connection import Connection, connect
from protocol.runtime.settings import Settings
from protocol.runtime.subject_floods import MAX_IN_WINDOW
from registry import question_subjects
from registry.question_subjects import QuestionSubjects


class FakeMirror:
    """Knows the tenants that the test names."""

    def __init__(self, *tenants: str) -> None:
        self._tenants = {tenant: {"c": object()} for tenant in tenants}

    def tenants(self) -> list[str]:
        return list(self._tenants)

    def clients(self, tenant: str) -> Mapping[str, Any]:
        return self._tenants.get(tenant, {})


class Stage:
    """One registry's subjects, and an agent who asks."""

    def __init__(self, served: QuestionSubjects, asked: list[str], agent: Client) -> None:
        self.served = served
        self.asked = asked
        self.agent = agent

    async def answers(self, tenant: str) -> bool:
        """Ask as a tenant's agent; tell whether somebody answers, and fail if it is heard twice."""
        self.asked.clear()
        try:
            await self.agent.request(subjects.registry(tenant, "list"), b"", 5)
        except nats.errors.NoRespondersError:
            return False
        assert self.asked == [subjects.registry(tenant, "list")]
        return True

    async def is_left(self, tenant: str) -> None:
        async with asyncio.timeout(10):
            while await self.answers(tenant):
                await asyncio.sleep(0.01)

    async def is_served(self, tenant: str) -> None:
        async with asyncio.timeout(20):
            while not await self.answers(tenant):
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def serving(url: str, *tenants: str) -> AsyncIterator[tuple[Connection, QuestionSubjects, list[str]]]:
    asked: list[str] = []
    async with connect(settings_for(Settings, url), "tests", "tests") as connection, asyncio.TaskGroup() as tasks:
        served = QuestionSubjects(connection, tasks, cast("Mirror", FakeMirror(*tenants)))

        def answer(msg: Msg) -> None:
            asked.append(msg.subject)
            connection.publish_now(msg.reply, b"{}")

        async with served.served():
            await served.serve({"list": answer, "get": answer}, lambda subject, block: False)
            await connection.flush()
            yield connection, served, asked


@pytest.fixture
async def stage(nats_url: str) -> AsyncIterator[Stage]:
    agent = await nats.connect(nats_url)
    async with serving(nats_url, "calm", "flooded") as (_, served, asked):
        yield Stage(served, asked, agent)
    await agent.close()


async def test_known_tenants_are_served_while_one_is_left(stage: Stage) -> None:
    assert await stage.answers("unheard")
    stage.served.asked("asker")
    stage.served.dropped("flooded", MAX_IN_WINDOW)
    await stage.is_left("flooded")
    assert [await stage.answers(tenant) for tenant in ("calm", "asker", "unheard")] == [True, True, False]
    assert stage.served.counters()["subjectsLeft"] == 1
    await stage.is_served("flooded")
    assert [await stage.answers(tenant) for tenant in ("calm", "asker", "unheard")] == [True] * 3


async def test_tenants_that_nobody_knows_are_left_together(stage: Stage) -> None:
    for number in range(MAX_IN_WINDOW // 100):
        stage.served.dropped(f"invented-{number}", 100)
    await stage.is_left("unheard")
    assert [await stage.answers(tenant) for tenant in ("calm", "flooded")] == [True, True]
    await stage.is_served("unheard")


async def test_second_tenant_is_left_while_the_first_one_is(stage: Stage) -> None:
    stage.served.dropped("flooded", MAX_IN_WINDOW)
    await stage.is_left("flooded")
    stage.served.dropped("calm", MAX_IN_WINDOW)
    await stage.is_left("calm")
    await stage.is_served("flooded")
    await stage.is_served("calm")


async def test_known_askers_are_bounded(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(question_subjects, "MAX_ASKERS", 2)
    for tenant in ("a", "b", "c"):
        stage.served.asked(tenant)
    stage.served.dropped("flooded", MAX_IN_WINDOW)
    await stage.is_left("flooded")
    assert [await stage.answers(tenant) for tenant in ("a", "b", "c")] == [False, True, True]
    await stage.is_served("flooded")


async def test_end_during_a_flood_takes_no_more_questions(nats_url: str) -> None:
    agent = await nats.connect(nats_url)
    async with serving(nats_url, "calm", "flooded") as (connection, served, asked):
        stage = Stage(served, asked, agent)
        served.dropped("flooded", MAX_IN_WINDOW)
        await stage.is_left("flooded")
        async with served.served():
            pass
        assert not await stage.answers("calm")
        await until(lambda: "serve tenants apart" not in {task.get_name() for task in asyncio.all_tasks()})
        await connection.flush()
        assert not await stage.answers("calm")
    await agent.close()
