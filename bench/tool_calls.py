#!/usr/bin/env python3
"""Tools: what a call costs an agent API by each way in, and what a list of many clients' tools costs.

One caller sends one request after the other on one connection. CPU is that of the agent API's process alone. The lists
are made in this process, of clients that exist on paper only: 10,000 that offer the same 20 tools, and 10,000 with 20
of their own each.
"""

import argparse
import http.client
import json
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from measuring import load, report
from measuring.figures import spread
from measuring.processes import cpu_seconds
from measuring.report import Outcome, Table
from measuring.systems import System, agentbridge
from measuring.tools import Missing

from agent_api.tools.groups import TenantTools
from agent_api.tools.listing import listing_of
from agent_api.tools.slices import at_once
from agent_api.tools.views import ToolView
from protocol import codec
from protocol.access import Principal
from protocol.discovery import Client
from protocol.records import ClientRecord, read_capabilities
from protocol.shares import Shares

MODERN, LEGACY = "2026-07-28", "2025-11-25"
OFFERED_SECONDS = 10
TARGET, ACTION, TOOL = "headline", "setText", "headline_setText"
ARGUMENTS = {"text": "Hello", "n": 1}
WARM_UP_CALLS = 50
META = {"io.modelcontextprotocol/protocolVersion": MODERN, "io.modelcontextprotocol/clientCapabilities": {}}
AGENT = Principal("bench", "agent", "default", float("inf"))

Call = tuple[str, dict[str, str], Any]


class Way(NamedTuple):
    """What one way in has cost: microseconds of CPU, and milliseconds of time, for a request."""

    name: str
    cpu_us: float
    ms: float


def main() -> None:
    """Measure and print."""
    parser = report.options("Call tools by each way in, and list those of many clients.")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured")
    parser.add_argument("--calls", type=int, default=500, help="requests in each measurement")
    parser.add_argument("--clients", type=int, default=10_000, help="clients whose tools are listed")
    report.run(parser, measure)


def measure(given: argparse.Namespace, folder: Path) -> Outcome:
    """Run all rounds."""
    ways: list[Way] = []
    with agentbridge(folder, secrets.token_urlsafe(48)) as system, load.clients(system, folder, "all", 1):
        calls = _calls()
        _wait_until_offered(system)
        for name, call in calls.items():
            _send(system, call, WARM_UP_CALLS, name)
        for number in range(given.rounds):
            report.progress(f"round {number + 1} of {given.rounds}")
            ways += [_send(system, call, given.calls, name) for name, call in calls.items()]
    lists = {name: _list_ms(clients, given.rounds) for name, clients in _tenants(given.clients).items()}
    return _outcome(ways, lists)


def _wait_until_offered(system: System) -> None:
    """Return when the agent API knows the client; raise `Missing` after some seconds."""
    connection = http.client.HTTPConnection("127.0.0.1", system.api_port, timeout=60)
    give_up = time.monotonic() + OFFERED_SECONDS
    while time.monotonic() < give_up:
        connection.request("GET", "/api/tools", headers={"Authorization": f"Bearer {system.agent_token}"})
        if TOOL.encode() in connection.getresponse().read():
            connection.close()
            return
        time.sleep(0.05)
    raise Missing(f"the agent API does not list `{TOOL}` within {OFFERED_SECONDS} s")


def _calls() -> dict[str, Call]:
    """Return a request for each way in: its path, its headers, its body."""
    command = {"any": True, "command": {"target": TARGET, "action": ACTION, "parameters": ARGUMENTS}}
    return {
        "POST /api/command": ("/api/command", {}, command),
        "POST /api/tools/{name}": (f"/api/tools/{TOOL}", {}, ARGUMENTS),
        "MCP 2026-07-28, tools/call": _rpc(MODERN, "tools/call", {"name": TOOL, "arguments": ARGUMENTS, "_meta": META}),
        "MCP 2025-11-25, tools/call": _rpc(LEGACY, "tools/call", {"name": TOOL, "arguments": ARGUMENTS}),
        "MCP 2026-07-28, tools/list": _rpc(MODERN, "tools/list", {"_meta": META}),
    }


def _rpc(version: str, method: str, params: dict[str, Any]) -> Call:
    headers = {"MCP-Protocol-Version": version, "Mcp-Method": method, "Accept": "application/json, text/event-stream"}
    headers |= {"Mcp-Name": params["name"]} if "name" in params else {}
    return "/mcp", headers, {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}


def _send(system: System, call: Call, count: int, name: str) -> Way:
    path, headers, body = call
    known = {"Authorization": f"Bearer {system.agent_token}", "Content-Type": "application/json", **headers}
    data, pid = json.dumps(body).encode(), system.pids["agent_api"]
    connection = http.client.HTTPConnection("127.0.0.1", system.api_port, timeout=60)
    cpu, begun = cpu_seconds(pid), time.perf_counter()
    for _ in range(count):
        connection.request("POST", path, data, known)
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != http.client.OK or b'"isError":true' in content:
            raise Missing(f"{name}: {answer.status} {content[:200]!r}")
    seconds = time.perf_counter() - begun
    connection.close()
    return Way(name, (cpu_seconds(pid) - cpu) / count * 1e6, seconds / count * 1000)


# --- lists ---


def _tenants(count: int) -> dict[str, Callable[[], Iterator[Client]]]:
    return {
        f"{count} clients, the same 20 tools": lambda: _clients(count, distinct=False),
        f"{count} clients, 20 tools of their own each": lambda: _clients(count, distinct=True),
    }


def _clients(count: int, *, distinct: bool) -> Iterator[Client]:
    shared = _capabilities("")
    for number in range(count):
        capabilities = _capabilities(str(number)) if distinct else shared
        record = ClientRecord(
            client_id=f"c{number}",
            tenant="default",
            gateway_id="gw-1",
            principal=f"user-{number}",
            capabilities=capabilities.raw,
            revision=1,
            connected_at=f"2026-01-01T00:00:00.{number % 1000:03}Z",
        )
        yield Client(record, capabilities)


def _capabilities(suffix: str) -> Any:
    schema = {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]}
    offered = [{"type": "function", "name": f"tool{n}{suffix}", "parameters": schema} for n in range(20)]
    return read_capabilities(msgspec.Raw(codec.encode(offered)))


def _list_ms(clients: Callable[[], Iterator[Client]], rounds: int) -> tuple[float, list[float]]:
    """Return the seconds of reading all clients, and the milliseconds of each list."""
    tools, begun = TenantTools(Shares(1_000_000, "no room")), time.perf_counter()
    for client in clients():
        tools.put(client.record.client_id, client)
    reading = time.perf_counter() - begun
    found = []
    for _ in range(rounds):
        begun = time.perf_counter()
        at_once(listing_of(ToolView(tools, AGENT)))
        found.append((time.perf_counter() - begun) * 1000)
    return reading, found


# --- what came of it ---


def _outcome(ways: list[Way], lists: dict[str, tuple[float, list[float]]]) -> Outcome:
    names = list(dict.fromkeys(way.name for way in ways))
    groups = {name: [way for way in ways if way.name == name] for name in names}
    rows = [
        [name, spread(way.cpu_us for way in group).shown(0), spread(way.ms for way in group).shown(2)]
        for name, group in groups.items()
    ]
    listed = [[name, f"{reading:.2f}", spread(ms).shown(2)] for name, (reading, ms) in lists.items()]
    figures = {f"tools.{name}.cpu_us": spread(way.cpu_us for way in group).median for name, group in groups.items()}
    figures |= {f"tools.{name}.ms": spread(ms).median for name, (_, ms) in lists.items()}
    tables = [
        Table(["way in", "CPU us a request, agent API", "ms a request"], rows),
        Table(["list", "s to read all clients", "ms a list of 128"], listed),
    ]
    return Outcome(tables, figures, {"ways": [way._asdict() for way in ways]})


if __name__ == "__main__":
    main()
