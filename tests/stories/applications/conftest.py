"""A bridge, and a web site beside it, for the tests of a module."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from support.nats.nats_server import NatsServer, free_port
from support.processes.bridge import Bridge, running_bridge
from support.processes.pages import Site, site

# By a name that only a browser of the tests knows, this machine is no loopback to the page.
ORIGINS = "http://127.0.0.1:*,https://127.0.0.1:*,http://app.test:*,https://app.test:*"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bridge(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bridge]:
    """All processes of a bridge; its gateway can be restarted on the same port."""
    nats_server = NatsServer(tmp_path_factory.mktemp("nats"))
    await nats_server.start()
    try:
        folder, port = tmp_path_factory.mktemp("bridge"), free_port()
        async with running_bridge(folder, nats_server.url, gateway_port=port, allowed_origins=ORIGINS) as running:
            yield running
    finally:
        nats_server.kill()


@pytest.fixture
def pages(bridge: Bridge) -> Iterator[Site]:
    """A web site whose pages load the library from the bridge's gateway."""
    with site(bridge.gateway_url) as served:
        yield served
