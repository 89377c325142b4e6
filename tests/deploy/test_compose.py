"""The deployment of compose.yaml, for real: one port for everything, replicas that come, crash, restart and go."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NamedTuple

import httpx
import pytest
from support.examples import Examples
from support.load.ledger import CUT_OFF, UNREACHED, Ledger
from support.load.load import Fleet, Load, OverHttp, ending_tasks
from support.played.agent_socket import agent_socket
from support.played.app import application, never, socket_of
from support.processes import engine
from support.processes.deployment import Container, Deployment, running_deployment
from support.settings import app_token
from support.wait import until

from protocol.runtime.tokens import mint

pytestmark = pytest.mark.docker

EXAMPLES = Examples()
PAGE = "docs/deployment.md"
START = EXAMPLES.take(PAGE, "docker compose up --build").code
SCALE = EXAMPLES.take(PAGE, "--scale gateway=4").code
BACK_UP, RESTORE = (EXAMPLES.take("docs/operations.md", part).code for part in ("-cf -", "-xf -"))
CHANGE = EXAMPLES.take("docs/operations.md", "--no-recreate").code
OPERATORS_COMMANDS = EXAMPLES.take(PAGE, "console health").lines
GATEWAYS, AGENT_APIS = 3, 2  # as START says
APPLICATIONS = 9
ANOTHER_SECRET = "another-secret-of-the-issuer-0123456789"
TOKEN_START = app_token().partition(".")[0]  # the same in every token
CLIENT_LOST, CLIENT_NOT_FOUND, UNAVAILABLE = "client_lost", "client_not_found", "unavailable"


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Everything of compose.yaml, scaled as the documentation says."""
    engine.require_engine()
    with running_deployment(tmp_path_factory.mktemp("deployment"), START) as running:
        yield running


@pytest.fixture
async def http(deployment: Deployment) -> AsyncIterator[httpx.AsyncClient]:
    """An agent behind the one port."""
    async with deployment.client() as client:
        yield client


class Traffic(NamedTuple):
    """Applications that come back, and callers, all through the one port; the ledger knows every command."""

    fleet: Fleet
    load: Load
    tasks: asyncio.TaskGroup

    async def goes_on(self) -> None:
        """Wait until every application is connected and commands flow."""
        await until(lambda: self.fleet.complete, 40)
        await self.load.flows(100, 40)

    async def end(self, *allowed: str) -> None:
        """Let all come to rest, and check that every command had one answer that is true."""
        self.fleet.release.set()
        await self.load.stop(30)
        assert self.load.ledger.faults() == []
        assert self.load.ledger.refused(allowed) == []


@pytest.fixture
async def traffic(deployment: Deployment, http: httpx.AsyncClient) -> AsyncIterator[Traffic]:
    """Commands under way all the time."""
    async with ending_tasks() as tasks:
        fleet = Fleet([deployment], Ledger())
        await fleet.join(APPLICATIONS, tasks)
        load = Load(fleet, [OverHttp(deployment, http)])
        load.start(tasks)
        traffic = Traffic(fleet, load, tasks)
        await traffic.goes_on()
        yield traffic


async def records(http: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
    """Return the record of each client."""
    answer = await http.get("/api/clients")
    assert answer.status_code == httpx.codes.OK, answer.text
    return {record["clientId"]: record for record in answer.json()}


async def listed(http: httpx.AsyncClient, client_ids: Callable[[], set[str]], seconds: float = 15) -> None:
    """Wait until exactly these clients are listed."""

    async def found() -> bool:
        answer = await http.get("/api/clients")
        return answer.status_code == httpx.codes.OK and {c["clientId"] for c in answer.json()} == client_ids()

    await until(found, seconds)


async def gateway_of(deployment: Deployment, http: httpx.AsyncClient, client_id: str) -> Container:
    """Return the container whose gateway holds a client."""
    gateway_id = (await records(http))[client_id]["gatewayId"]
    host = next(each["host"] for each in await deployment.processes() if each["id"] == gateway_id)
    return deployment.container_on("gateway", host)


@pytest.mark.parametrize(
    "name",
    [
        *("JWT_SECRET", "NATS_ACCOUNT", "NATS_ACCOUNT_SEED", "NATS_XKEY", "NATS_XKEY_SEED"),
        *(f"NATS_PASSWORD_{user}" for user in ("GATEWAY", "REGISTRY", "API", "SYSTEM")),
    ],
)
def test_missing_secret_stops_it_with_a_sentence(deployment: Deployment, name: str) -> None:
    refusal = deployment.refusal_without(f"AGENTBRIDGE_{name}")
    assert f"AGENTBRIDGE_{name} is missing a value: must be set" in refusal
    assert "deploy/secrets.sh" in refusal


def test_containers_are_confined(deployment: Deployment) -> None:
    for service in ("haproxy", "gateway", "agent_api", "registry", "nats"):
        for container in deployment.containers(service):
            host = container.facts["HostConfig"]
            assert host["Memory"] > 0, service
            assert host["PidsLimit"] > 0, service
            assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}}, service
            assert (host["ReadonlyRootfs"], host["CapDrop"]) == (True, ["ALL"]), service
            assert host["SecurityOpt"] == ["no-new-privileges:true"], service
            assert host["RestartPolicy"]["Name"] == "unless-stopped", service
    for service in ("gateway", "agent_api", "registry"):
        assert {container.facts["Config"]["User"] for container in deployment.containers(service)} == {"10001:10001"}


def test_only_the_proxy_is_published_and_it_cannot_reach_nats(deployment: Deployment) -> None:
    published = {
        service: [port for port in container.facts["NetworkSettings"]["Ports"].values() if port]
        for service in ("haproxy", "gateway", "agent_api", "registry", "nats")
        for container in deployment.containers(service)
    }
    assert {service for service, ports in published.items() if ports} == {"haproxy"}
    proxy, nats = deployment.containers("haproxy")[0], deployment.containers("nats")[0]
    assert not set(proxy.facts["NetworkSettings"]["Networks"]) & set(nats.facts["NetworkSettings"]["Networks"])


async def test_one_port_serves_agents_and_applications(deployment: Deployment, http: httpx.AsyncClient) -> None:
    for path in ("/readyz", "/docs", "/openapi.json", "/api/clients"):
        assert (await http.get(path)).status_code == httpx.codes.OK, path
    assert (await http.get("/ws")).json()["code"] == "invalid_request"  # without an upgrade it is the agent API's
    assert (await http.get("/metrics")).text == "no such path\n"  # figures are not for the public
    assert (await http.get("/%6detrics")).status_code == 404
    for path in ("/agentbridge.js", "/agentbridge.mjs", "/agentbridge.d.mts", "/agentbridge.json"):
        assert (await http.get(path)).headers["Access-Control-Allow-Origin"] == "*", path
    for path in ("/cable", "/socket.io/x"):
        assert "WebSocket" in (await http.get(path)).text, path
        assert (await http.post(path, content=b"x" * 100_000)).status_code == httpx.codes.METHOD_NOT_ALLOWED, path
    for path in ("/ws", "/"):
        assert (await http.post(path, content=b"{}")).status_code == httpx.codes.NOT_FOUND, path
    for path in ("/ws", "/", "/agent-bridge", f"/ws?token={app_token()}"):
        async with socket_of(deployment.url, None if "?" in path else app_token(), path) as socket:
            assert json.loads(await socket.recv())["type"] == "connection"


async def test_agents_websockets_go_to_agent_apis(deployment: Deployment) -> None:
    async with agent_socket(deployment.url) as agent:
        await agent.send({"type": "ping"})
        await agent.received(type="pong")


async def test_applications_are_spread_over_all_gateways(deployment: Deployment, http: httpx.AsyncClient) -> None:
    async with contextlib.AsyncExitStack() as stack:
        apps = [
            await stack.enter_async_context(application(deployment.url, {"add": lambda given: given["a"] + 1}))
            for _ in range(2 * GATEWAYS)
        ]
        await listed(http, lambda: {app.client_id for app in apps})
        gateways = Counter(record["gatewayId"] for record in (await records(http)).values())
        assert list(gateways.values()) == [2] * GATEWAYS
        for number, app in enumerate(apps):
            body = {"clientId": app.client_id, "command": {"target": "add", "parameters": {"a": number}}}
            assert (await http.post("/api/command", json=body)).json()["result"] == number + 1


async def test_caller_that_goes_away_cancels_its_command(deployment: Deployment, http: httpx.AsyncClient) -> None:
    async with application(deployment.url, {"wait": never}) as app:
        await listed(http, lambda: {app.client_id})
        body = {"clientId": app.client_id, "command": {"target": "wait"}}
        calling = asyncio.ensure_future(http.post("/api/command", json=body))  # noqa: TID251  it is cancelled below
        await app.received(type="command")
        calling.cancel()
        await app.received(type="cancel")


async def test_operators_see_every_process(deployment: Deployment) -> None:
    kinds = Counter(process["name"] for process in await deployment.processes())
    assert kinds == {"agentbridge-gateway": GATEWAYS, "agentbridge-agent-api": AGENT_APIS, "agentbridge-registry": 1}


async def test_operators_commands_do_what_they_say(deployment: Deployment) -> None:
    async with application(deployment.url, {"add": never}) as app:
        table, token, clients = [await asyncio.to_thread(deployment.type, line) for line in OPERATORS_COMMANDS]
        assert table.count("agentbridge-gateway") == GATEWAYS
        assert token.startswith(TOKEN_START)
        assert app.client_id in clients


async def test_commands_of_a_crashed_gateway_are_answered_and_it_comes_back(
    deployment: Deployment, http: httpx.AsyncClient, traffic: Traffic
) -> None:
    client_id = next(iter(traffic.fleet.clients))
    container = await gateway_of(deployment, http, client_id)
    held = await traffic.load.hold({client_id}, traffic.tasks)
    await asyncio.to_thread(container.crash)
    await until(lambda: not any(command.waits for command in held), 10)
    assert [command.answers for command in held] == [[CLIENT_LOST]]
    await traffic.goes_on()
    await until(lambda: asyncio.to_thread(lambda: container.crashes == 1), 20)
    await deployment.healthy("gateway")
    await listed(http, lambda: traffic.fleet.clients)
    await traffic.end(CLIENT_LOST, CLIENT_NOT_FOUND, UNAVAILABLE)


async def test_crashed_agent_api_takes_only_its_own_requests_along(deployment: Deployment, traffic: Traffic) -> None:
    await asyncio.to_thread(deployment.containers("agent_api")[0].crash)
    await traffic.goes_on()
    await deployment.healthy("agent_api")
    await traffic.end(CLIENT_LOST, CUT_OFF)


async def test_crashed_registry_stops_no_command(
    deployment: Deployment, http: httpx.AsyncClient, traffic: Traffic
) -> None:
    registry = deployment.containers("registry")[0]
    await asyncio.to_thread(registry.crash)
    await traffic.goes_on()
    await until(lambda: asyncio.to_thread(lambda: registry.crashes == 1), 20)
    async with application(deployment.url, {"add": lambda given: given}) as newcomer:
        await listed(http, lambda: {newcomer.client_id} | traffic.fleet.clients, 30)
    await traffic.end()


async def test_restarted_nats_has_kept_its_streams(
    deployment: Deployment, http: httpx.AsyncClient, traffic: Traffic
) -> None:
    before = await asyncio.to_thread(streams, deployment)
    assert {"KV_agentbridge_clients", "agentbridge_events_default"} <= set(before)
    await asyncio.to_thread(deployment.compose, "up", "--detach", "--no-deps", "--force-recreate", "nats")
    await deployment.healthy("nats")
    await traffic.goes_on()
    assert await asyncio.to_thread(streams, deployment) == before
    await listed(http, lambda: traffic.fleet.clients)
    await traffic.end(CLIENT_LOST, UNAVAILABLE)


async def test_restarted_agent_apis_refuse_nothing(deployment: Deployment, traffic: Traffic) -> None:
    for container in deployment.containers("agent_api"):
        await asyncio.to_thread(engine.docker, "restart", container.id)
        await deployment.healthy("agent_api")
    await traffic.goes_on()
    await traffic.end()


async def test_restarted_gateways_send_their_applications_elsewhere(deployment: Deployment, traffic: Traffic) -> None:
    first = traffic.fleet.clients
    for container in deployment.containers("gateway"):
        await asyncio.to_thread(engine.docker, "restart", container.id)
        await deployment.healthy("gateway")
    await traffic.goes_on()
    assert not first & traffic.fleet.clients
    await traffic.end(CLIENT_NOT_FOUND, UNAVAILABLE)


async def test_restarted_proxy_is_found_again(deployment: Deployment, traffic: Traffic) -> None:
    await asyncio.to_thread(deployment.compose, "restart", "haproxy")
    await traffic.goes_on()
    await traffic.end(CLIENT_LOST, CLIENT_NOT_FOUND, CUT_OFF, UNREACHED, UNAVAILABLE)


async def test_scaling_needs_no_other_change(deployment: Deployment, http: httpx.AsyncClient, traffic: Traffic) -> None:
    before = {container.id for container in everything(deployment)}
    connected = traffic.fleet.clients
    await asyncio.to_thread(deployment.type, SCALE)
    assert before < {container.id for container in everything(deployment)}
    assert traffic.fleet.clients == connected, "a session was lost"
    async with contextlib.AsyncExitStack() as stack:
        found: set[str] = set()

        async def newcomers_reach_it() -> bool:
            await stack.enter_async_context(application(deployment.url, {"add": lambda given: given}))
            found.update(record["gatewayId"] for record in (await records(http)).values())
            return len(found) == GATEWAYS + 1

        await until(newcomers_reach_it, 30)
    await asyncio.to_thread(deployment.up, gateway=1, agent_api=1)
    await traffic.goes_on()
    await listed(http, lambda: traffic.fleet.clients)
    assert len({record["gatewayId"] for record in (await records(http)).values()}) == 1
    await traffic.end(CLIENT_NOT_FOUND, UNAVAILABLE)


async def test_backup_brings_back_the_streams(
    deployment: Deployment, http: httpx.AsyncClient, traffic: Traffic
) -> None:
    before = await asyncio.to_thread(streams, deployment)
    await asyncio.to_thread(deployment.type, BACK_UP)
    await deployment.healthy("nats")
    wipe = "docker compose stop nats && docker compose run --rm --no-deps -T --entrypoint sh nats -c 'rm -rf /data/*'"
    await asyncio.to_thread(deployment.type, wipe)
    await asyncio.to_thread(deployment.type, RESTORE)
    await deployment.healthy("nats")
    await traffic.goes_on()
    assert await asyncio.to_thread(streams, deployment) == before
    await listed(http, lambda: traffic.fleet.clients)
    await traffic.end(CLIENT_LOST, UNAVAILABLE)


async def test_changed_setting_loses_nothing(deployment: Deployment, traffic: Traffic) -> None:
    """A secret more, as in the first step of a rotation."""
    await asyncio.to_thread(deployment.up, gateway=4, agent_api=2)
    before = {container.id for container in everything(deployment)}
    deployment.set("AGENTBRIDGE_JWT_SECRETS_ALSO", ANOTHER_SECRET)
    await asyncio.to_thread(deployment.type, CHANGE)
    await traffic.goes_on()
    kept = before & {container.id for container in everything(deployment)}
    assert kept == {container.id for service in ("haproxy", "nats") for container in deployment.containers(service)}
    counts = [len(deployment.containers(service)) for service in ("gateway", "agent_api", "registry")]
    assert counts == [4, 2, 1]
    async with deployment.client(mint(ANOTHER_SECRET, "somebody", "agent", 60)) as agent:
        for _ in range(4):  # two agent APIs in turn
            assert (await agent.get("/api/clients")).status_code == httpx.codes.OK
    await traffic.end(CLIENT_NOT_FOUND, UNAVAILABLE)


def test_nothing_was_logged_that_nobody_expected(deployment: Deployment) -> None:
    log = deployment.log
    assert "Traceback" not in log
    assert TOKEN_START not in log
    assert "/<NOSRV> 503" not in log  # to reused connections HAProxy does not say this, it closes them


def everything(deployment: Deployment) -> list[Container]:
    """Return all running containers."""
    services = ("haproxy", "gateway", "agent_api", "registry", "nats")
    return [container for service in services for container in deployment.containers(service)]


def streams(deployment: Deployment) -> dict[str, str]:
    """Return when each stream was made, as NATS's monitoring says."""
    said = json.loads(
        deployment.compose("exec", "-T", "nats", "wget", "-q", "-O", "-", "http://127.0.0.1:8222/jsz?streams=true")
    )
    found = (stream for account in said["account_details"] for stream in account["stream_detail"])
    return {stream["name"]: stream["created"] for stream in found}
