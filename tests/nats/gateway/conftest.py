"""What most tests of a gateway need: a gateway on the server that all of them share, and an agent there."""

from collections.abc import AsyncIterator, Iterator

import pytest
from support.processes.child import Process
from support.processes.gateways import Agent, agent, shared_gateway


@pytest.fixture(scope="module")
def gateway(shared_nats_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with shared_gateway(tmp_path_factory.mktemp("gateway"), shared_nats_url) as running:
        yield running
        assert "Traceback" not in running.log
        assert "eyJ" not in running.log, "a token in the log"


@pytest.fixture
async def caller(shared_nats_url: str) -> AsyncIterator[Agent]:
    async with agent(shared_nats_url) as connected:
        yield connected
