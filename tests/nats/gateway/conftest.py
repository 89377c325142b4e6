"""What most tests of a gateway need: an agent on the server that all of them share."""

from collections.abc import AsyncIterator

import pytest
from support.processes.gateways import Agent, agent


@pytest.fixture
async def caller(shared_nats_url: str) -> AsyncIterator[Agent]:
    async with agent(shared_nats_url) as connected:
        yield connected
