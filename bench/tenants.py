#!/usr/bin/env python3
"""Tenants: what the stores of many weigh in NATS and in our processes, and how long it takes to make and restart them.

A NATS of its own, or a cluster of three with `--replicas 3`, a registry, a gateway and an agent API. Each tenant has an
application, an event that is stored, a command under a key and its audit record: three streams. Idle CPU is measured
before and after one reader of events for each tenant has come.
"""

import argparse
import asyncio
import contextlib
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import nats
from measuring import report
from measuring.figures import spread
from measuring.processes import Service, cpu_seconds, free_port, resident_bytes, running
from measuring.report import Outcome, Table
from measuring.tenants import STORES_OF_A_TENANT, Place, Tenant, for_all, stores, whole
from nats.aio.client import Client as NatsClient

from agentbridge.up import nats_server
from protocol.runtime.settings import variable

IDLE_SECONDS = 15
RESTART_SECONDS = 300
MB = 1e6
ROUNDS = 10
MODULES = ("registry", "gateway", "agent_api")


def main() -> None:
    """Measure and print."""
    parser = report.options("Make many tenants and look at what their stores cost.")
    parser.add_argument("--tenants", type=int, default=1000, help="how many tenants")
    parser.add_argument("--replicas", type=int, choices=[1, 3], default=1, help="servers that keep each stream")
    report.run(parser, measure)


def measure(given: argparse.Namespace, folder: Path) -> Outcome:
    """Run everything once."""
    secret, gateway_port, api_port = secrets.token_urlsafe(48), free_port(), free_port()
    servers = Servers(folder, given.replicas)
    with contextlib.ExitStack() as stack:
        stack.callback(servers.end)
        servers.start()
        place = Place(gateway_port, api_port, servers.url, secret)
        processes = {name: stack.enter_context(_ours(name, folder, place, given.replicas)) for name in MODULES}
        for name, port in (("gateway", gateway_port), ("agent_api", api_port)):
            processes[name].wait_for_port(port)
        return asyncio.run(_measure(given, place, servers, processes))


class Servers:
    """One nats-server, or a cluster of three, that can be started again on the same ports and folders."""

    def __init__(self, folder: Path, count: int) -> None:
        self._folder = folder
        self.ports = [free_port() for _ in range(count)]
        routes = [free_port() for _ in range(count)]
        self._stack = contextlib.ExitStack()
        self.running: dict[str, Service] = {}
        for number, port in enumerate(self.ports):
            others = ", ".join(f'"nats://127.0.0.1:{route}"' for route in routes if route != routes[number])
            cluster = f'cluster {{ name: bench, listen: "127.0.0.1:{routes[number]}", routes: [{others}] }}\n'
            (folder / f"nats-{number}.conf").write_text(
                f'server_name: n{number}\nlisten: "127.0.0.1:{port}"\n'
                f'jetstream {{ store_dir: "{folder / f"jetstream-{number}"}", max_file_store: 200GB }}\n'
                + (cluster if count > 1 else "")
            )

    @property
    def url(self) -> str:
        """All servers."""
        return ",".join(f"nats://127.0.0.1:{port}" for port in self.ports)

    def start(self) -> None:
        """Start them all, and wait for their ports."""
        for number, port in enumerate(self.ports):
            command = [str(nats_server.find()), "-c", str(self._folder / f"nats-{number}.conf")]
            name = f"nats-server {number}"
            self.running[name] = self._stack.enter_context(running(name, command, self._folder, {}))
            self.running[name].wait_for_port(port)

    def end(self) -> None:
        """End them all."""
        self._stack.close()


@contextlib.contextmanager
def _ours(name: str, folder: Path, place: Place, replicas: int) -> Iterator[Service]:
    settings: Mapping[str, object] = {
        "nats_url": place.nats_url,
        "jwt_secret": place.secret,
        "gateway_port": place.gateway_port,
        "api_port": place.api_port,
        "replicas": replicas,
        "log_level": "warning",
    }
    variables = {variable(setting): str(value) for setting, value in settings.items()}
    with running(name, [sys.executable, "-P", "-m", name], folder, variables) as process:
        yield process


async def _measure(given: argparse.Namespace, place: Place, servers: Servers, processes: dict[str, Service]) -> Outcome:
    tenants = [Tenant(place, f"t{number}") for number in range(given.tenants)]
    client = await nats.connect(servers.url.split(",")[0], max_reconnect_attempts=-1)
    await asyncio.sleep(2)
    empty = _memory(servers.running | processes)
    async with asyncio.TaskGroup() as tasks:
        loop = asyncio.get_running_loop()
        began = loop.time()
        took = await for_all(tenants, lambda tenant: tenant.come(tasks))
        made_seconds = loop.time() - began
        report.progress(f"{given.tenants} tenants in {made_seconds:.1f} s")
        await _until_made(client, tenants)
        made = await stores(client)
        idle = await _idle(servers.running | processes)
        full = _memory(servers.running | processes)
        readers = await for_all(tenants, lambda tenant: tenant.read())
        read = await _idle(servers.running | processes)
        followed = _memory(servers.running | processes)
        await client.close()
        await asyncio.to_thread(servers.end)  # applications answer keepalive meanwhile
        began = loop.time()
        await asyncio.to_thread(servers.start)  # which returns when NATS listens again: it reads its streams before
        await whole(servers.url.split(",")[0], made, RESTART_SECONDS)
        restart_seconds = loop.time() - began
        report.progress(f"restarted in {restart_seconds:.1f} s")
        began = loop.time()
        await for_all(tenants, lambda tenant: tenant.store_an_event("e1"))
        again_seconds = loop.time() - began
        await for_all(tenants, lambda tenant: tenant.leave())
        del readers
    first = spread(took)
    rows = [
        [
            name,
            f"{empty[name]:.0f}",
            f"{full[name]:.0f}",
            f"{followed[name]:.0f}",
            f"{idle[name]:.1f}",
            f"{read[name]:.1f}",
        ]
        for name in empty
    ]
    figures = {
        "tenants": float(given.tenants),
        "stores": float(made),
        "made_seconds": made_seconds,
        "first_median_seconds": first.median,
        "first_highest_seconds": first.high,
        "refused_commands": float(sum(tenant.refused for tenant in tenants)),
        "restart_seconds": restart_seconds,
        "event_of_each_after_restart_seconds": again_seconds,
        "load": os.getloadavg()[0],
    }
    tables = [
        Table(["process", "MB empty", "MB full", "MB read", "idle CPU %", "with readers %"], rows),
        Table(["what", "figure"], [[name, f"{value:.2f}"] for name, value in figures.items()]),
    ]
    return Outcome(tables, {}, {"figures of tenants": figures, "processes": rows})


async def _until_made(client: NatsClient, tenants: list[Tenant]) -> None:
    """Wait for the streams of all tenants, with more commands for audit records: the first may be lost under load."""
    for number in range(1, ROUNDS):
        await asyncio.sleep(1)
        if await stores(client) >= len(tenants) * STORES_OF_A_TENANT:
            return
        report.progress(f"{await stores(client)} stores; another command of each tenant")
        await for_all(tenants, partial(Tenant.command, key=f"k{number}"))


def _memory(processes: dict[str, Service]) -> dict[str, float]:
    return {name: resident_bytes(process.pid) / MB for name, process in processes.items()}


async def _idle(processes: dict[str, Service]) -> dict[str, float]:
    """Return the percentage of a core that each process uses while nothing happens."""
    await asyncio.sleep(3)
    before = {name: cpu_seconds(process.pid) for name, process in processes.items()}
    await asyncio.sleep(IDLE_SECONDS)
    return {name: (cpu_seconds(process.pid) - before[name]) / IDLE_SECONDS * 100 for name, process in processes.items()}


if __name__ == "__main__":
    main()
