"""A NATS that takes smaller messages than before: what does not fit any more is in nobody's way."""

from typing import Any

from support.nats.nats_server import NatsServer
from support.processes.bridge import Bridge
from support.processes.child import Process
from support.wait import until


def is_back(process: Process) -> bool:
    """Tell whether all connections of a process are back: some processes have two."""
    return process.log.count("NATS is back") == process.log.count("lost NATS") > 0


async def test_record_that_fits_no_more_does_not_hold_up_the_others(bridge: Bridge, private_nats: NatsServer) -> None:
    private_nats.stop()
    private_nats.configure("max_payload: 65536")
    await private_nats.start()
    await until(lambda: all(is_back(process) for process in bridge.processes), 10)
    large = [{"type": "function", "name": f"f{number}", "description": "x" * 500} for number in range(300)]

    def echo(parameters: dict[str, Any]) -> dict[str, Any]:
        return parameters

    async with bridge.app({"f1": echo}, capabilities=large) as first, bridge.app({"echo": echo}) as second:
        await bridge.listed(first.client_id, second.client_id, seconds=10)

        async def registered() -> bool:
            return bool((await bridge.capabilities())[second.client_id])

        await until(registered)
        assert (await bridge.capabilities())[first.client_id] == []
        assert (await bridge.call(first.client_id, "f1", {"n": 1})).json()["result"] == {"n": 1}
        await until(lambda: f"the last of client {first.client_id}" in bridge.gateways[0].log)
    await bridge.listed(seconds=10)
