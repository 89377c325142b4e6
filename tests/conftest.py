"""Fixtures for all tests: a NATS server that they share, private ones, connections, and the whole bridge."""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from support.nats.nats_server import NatsServer, forget_streams, shared_server
from support.processes.bridge import Bridge, running_bridge

pytest_plugins = ["support.limits"]
MakeNats = Callable[[str], NatsServer]

# A busy machine is no fault of the code's, and examples that failed belong into the tests, not into a folder.
hypothesis.settings.register_profile(
    "ours", deadline=None, database=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("ours")


WORKERS = 4  # stories wait half of the time, so four at a time keep two cores busy
TESTS = Path(__file__).parent
SLOW = ("deploy", "stories")
SLOW_PART = 0.8  # of the whole list: in it the slow files are spread evenly, and the rest of it has none


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Spread all tests over processes; what is chosen by a path or a name runs in this one, where a debugger works."""
    return 0 if any(not str(one).startswith("-") for one in config.invocation_params.args) else WORKERS


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mix files that wait with files that compute, and end with quick ones.

    In the order of collection all stories would run at one time and wait for one core. xdist's own order puts files
    with few tests last: these are the slowest, so one worker would go on alone.
    """
    if hasattr(config, "workerinput"):
        files = dict.fromkeys(item.path for item in items)
        slow = [file for file in files if file.relative_to(TESTS).parts[0] in SLOW]
        quick = [file for file in files if file not in slow]
        places = {file: SLOW_PART * number / len(slow) for number, file in enumerate(slow)}
        places |= {file: number / len(quick) for number, file in enumerate(quick)}
        items.sort(key=lambda item: places[item.path])


@pytest.fixture(scope="session")
def shared_nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server that tests share, with whatever the last one left in it."""
    with shared_server(tmp_path_factory.mktemp("nats")) as url:
        yield url


@pytest.fixture
async def nats_url(shared_nats_url: str) -> str:
    """The shared server without any stream or bucket of ours."""
    await forget_streams(shared_nats_url)
    return shared_nats_url


@pytest.fixture
def make_nats(tmp_path: Path) -> Iterator[MakeNats]:
    """Make private servers, not started yet: `make_nats('authorization { ... }')`."""
    with contextlib.ExitStack() as stack:

        def make(config: str = "") -> NatsServer:
            server = NatsServer(tmp_path / f"nats-{len(list(tmp_path.glob('nats-*')))}", config)
            stack.callback(server.kill)
            return server

        yield make


@pytest.fixture
async def private_nats(make_nats: MakeNats) -> NatsServer:
    """A running server of the test's own, to stop, freeze, kill and wipe."""
    server = make_nats("")
    await server.start()
    return server


@pytest.fixture
async def bridge(tmp_path: Path, private_nats: NatsServer) -> AsyncIterator[Bridge]:
    """The whole bridge, one process of each kind, on a NATS of its own."""
    async with running_bridge(tmp_path / "bridge", private_nats.url) as running:
        yield running
