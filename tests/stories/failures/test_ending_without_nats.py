"""Processes that are to end, or lose applications, while NATS is gone or frozen: exit code 0, and no traceback."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from support.nats.nats_server import NatsServer
from support.processes.bridge import running_bridge
from support.wait import until

APPS = 20
SECONDS = 30


@pytest.mark.parametrize("break_it", [NatsServer.kill, NatsServer.freeze], ids=["gone", "frozen"])
async def test_process_ends_in_order_though_nats_has_just_left(
    tmp_path: Path, private_nats: NatsServer, break_it: Callable[[NatsServer], None]
) -> None:
    async with running_bridge(tmp_path, private_nats.url) as bridge, bridge.app({"f": dict}):
        await until(lambda: bridge.capabilities())
        break_it(private_nats)
        codes = [await process.terminate() for process in bridge.processes]
        assert codes == [0, 0, 0], bridge.log
        assert "Traceback" not in bridge.log
        assert "not all work in flight has ended" not in bridge.log
        assert [process.log.count("draining") for process in bridge.processes] == [1, 1, 1]


async def test_sockets_that_are_cut_while_nats_is_frozen_write_no_traceback(
    tmp_path: Path, private_nats: NatsServer
) -> None:
    async with running_bridge(tmp_path, private_nats.url) as bridge, contextlib.AsyncExitStack() as stack:
        apps = [await stack.enter_async_context(bridge.app({"f": dict})) for _ in range(APPS)]
        await bridge.listed(*(app.client_id for app in apps), seconds=SECONDS)
        private_nats.freeze()
        for app in apps:
            app.socket.transport.abort()
        gateway = bridge.gateways[0]
        await until(lambda: "lost NATS" in gateway.log, SECONDS)
        assert await gateway.terminate() == 0  # which waits for the subscriptions of ended sessions
        assert "Traceback" not in bridge.log
