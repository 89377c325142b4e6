"""What most tests of an agent API need: gateways and registries that the test plays, an agent API, and callers."""

from collections.abc import AsyncIterator

import httpx
import pytest
from support.played.agent_api import RunningApi, World, http_client, running_agent_api, world_at
from support.played.agent_socket import AgentSocket, agent_socket


@pytest.fixture
async def world(nats_url: str) -> AsyncIterator[World]:
    async with world_at(nats_url) as surroundings:
        yield surroundings


@pytest.fixture
async def api(world: World, nats_url: str) -> AsyncIterator[RunningApi]:
    async with running_agent_api(nats_url) as running:
        yield running


@pytest.fixture
async def http(api: RunningApi) -> AsyncIterator[httpx.AsyncClient]:
    async with http_client(api) as client:
        yield client


@pytest.fixture
async def agent(api: RunningApi) -> AsyncIterator[AgentSocket]:
    async with agent_socket(api.url) as connected:
        yield connected
