"""Gateways that restart and die under load to applications that resume, on a cluster of three servers."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.load.ledger import SUCCESS
from support.load.load import Listener, Load, OverHttp, Way, ending_tasks, over_nats
from support.load.resuming import ResumingFleet, resuming_fleet
from support.load.resuming_app import resuming_application
from support.nats.cluster import Cluster, bridge_on, running_cluster
from support.nats.nats_server import NatsServer
from support.processes.gateways import agent, gateway_process
from support.settings import SECRET, environment
from support.wait import until

APPLICATIONS = 10
BACK_SECONDS = 3
SLACK_SECONDS = 5  # for a machine that does many other things
LOST, UNAVAILABLE = "client_lost", "unavailable"


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """Three nodes."""
    async with running_cluster(tmp_path / "cluster") as cluster:
        yield cluster


class OverHttpNoting(OverHttp):
    """Through an agent API, with a list of the errors."""

    def __init__(self, agent_api: Listener, http: httpx.AsyncClient) -> None:
        super().__init__(agent_api, http)
        self.errors: list[dict[str, Any]] = []

    async def call(self, client_id: str, target: str, parameters: dict[str, Any]) -> tuple[str, Any]:
        """Send a command, and note the error if there is one."""
        answer, result = await super().call(client_id, target, parameters)
        if answer != SUCCESS:
            self.errors.append(result)
        return answer, result


def at_rest(fleet: ResumingFleet, ids: set[str], *allowed: str) -> None:
    """Check the ledger, and that nobody has got another id."""
    assert fleet.ledger.faults() == []
    assert fleet.ledger.refused(allowed) == []
    assert fleet.ids_ever == ids


@pytest.mark.parametrize("gateways", [2, 3])
async def test_rolling_restart_loses_nothing(tmp_path: Path, cluster: Cluster, gateways: int) -> None:
    async with (
        bridge_on(cluster, tmp_path / "bridge", gateways=gateways, agent_apis=1, registries=2) as bridge,
        resuming_fleet(bridge.gateways, APPLICATIONS) as fleet,
        over_nats(cluster.agent_settings()) as directly,
        ending_tasks() as tasks,
    ):
        ids = fleet.clients
        over_http = OverHttpNoting(bridge.agent_apis[0], bridge.http)
        ways: list[Way] = [over_http, directly]
        load = Load(fleet, ways)
        load.start(tasks)
        for gateway in bridge.gateways:
            await load.flows(100)
            assert await gateway.terminate() == 0
            await load.flows(100)
            await gateway.start()
        await load.flows(100)
        await load.stop()
        at_rest(fleet, ids, UNAVAILABLE)
        assert all(error["retryable"] is True for error in over_http.errors), over_http.errors
        assert not any("Traceback" in process.log for process in bridge.processes), bridge.log


async def test_killed_gateway_loses_its_own_commands_and_no_session(tmp_path: Path, cluster: Cluster) -> None:
    async with (
        bridge_on(cluster, tmp_path / "bridge", gateways=2, agent_apis=1, registries=2) as bridge,
        resuming_fleet(bridge.gateways, APPLICATIONS) as fleet,
        over_nats(cluster.agent_settings()) as directly,
        ending_tasks() as tasks,
    ):
        ids = fleet.clients
        there = {app.client_id for number, app in enumerate(fleet.apps) if number % 2 == 0}
        load = Load(fleet, [OverHttp(bridge.agent_apis[0], bridge.http), directly])
        held = await load.hold(ids, tasks)
        load.start(tasks)
        await load.flows(100)
        await bridge.gateways[0].kill()
        await until(lambda: _back(fleet, there), BACK_SECONDS + SLACK_SECONDS)
        await until(lambda: all(not each.waits for each in held if each.client_id in there), SLACK_SECONDS)
        await load.flows(100)
        fleet.release.set()
        await load.stop()
        at_rest(fleet, ids, UNAVAILABLE, LOST)
        lost = [each for each in held if each.client_id in there]
        assert [each.answers for each in lost] == [[LOST]] * len(lost)
        assert [each.answers for each in held if each not in lost] == [[SUCCESS]] * (len(held) - len(lost))
        assert [app.connections[-1]["resumed"] for app in fleet.apps if app.client_id in there] == [False] * len(there)
        await bridge.listed(*ids, seconds=10)


def _back(fleet: ResumingFleet, client_ids: set[str]) -> bool:
    """Tell whether these applications have registered again at another gateway."""
    apps = [app for app in fleet.apps if app.client_id in client_ids]
    return all(
        app.all_received(type="ack", id=f"list-{len(app.connections)}") and len(app.connections) > 1 for app in apps
    )


async def test_secret_may_change_in_the_middle_of_a_rolling_restart(tmp_path: Path, private_nats: NatsServer) -> None:
    """Each gateway comes back with the new secret in front, and the old one beside it."""
    fresh = "another-secret-of-more-than-32-bytes!"
    async with (
        gateway_process(tmp_path / "a", private_nats.url, jwt_secrets_also=fresh) as one,
        gateway_process(tmp_path / "b", private_nats.url, jwt_secrets_also=fresh) as other,
        agent(private_nats.url) as caller,
        resuming_application([one, other], {"echo": lambda parameters: parameters}) as app,
    ):
        for count, gateway in ((1, one), (2, other), (3, one)):
            client_id = app.client_id
            assert await gateway.terminate() == 0
            again = await app.connected(count + 1)
            assert (again["clientId"], again["resumed"]) == (client_id, True)
            assert (await caller.call(client_id, "echo", {"n": count}))["result"] == {"n": count}
            gateway.environment |= environment(private_nats.url, jwt_secret=fresh, jwt_secrets_also=SECRET)
            await gateway.start()
