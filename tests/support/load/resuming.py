"""A fleet of applications that resume their sessions, for loads that keep a ledger."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from support.load.ledger import Ledger
from support.load.load import Listener, ending_tasks
from support.load.resuming_app import ResumingApp


class ResumingFleet:
    """Applications that keep their ids wherever they go."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.release = asyncio.Event()
        self.apps: list[ResumingApp] = []

    @property
    def clients(self) -> set[str]:
        """The ids of all sessions."""
        return {app.client_id for app in self.apps}

    @property
    def ids_ever(self) -> set[str]:
        """All ids that the applications were ever given."""
        return {connection["clientId"] for app in self.apps for connection in app.connections}

    @property
    def complete(self) -> bool:
        """Whether every application is connected."""
        return all(app.socket is not None for app in self.apps)


@contextlib.asynccontextmanager
async def resuming_fleet(gateways: Sequence[Listener], count: int) -> AsyncIterator[ResumingFleet]:
    """Run so many applications, spread over the gateways."""
    fleet = ResumingFleet(Ledger())
    async with ending_tasks() as tasks:
        for number in range(count):
            app = _application(fleet, gateways, number)
            fleet.apps.append(app)
            tasks.create_task(app.live(tasks), name=f"application {number}")
        await asyncio.gather(*(app.connected(seconds=20) for app in fleet.apps))
        yield fleet


def _application(fleet: ResumingFleet, gateways: Sequence[Listener], number: int) -> ResumingApp:
    def executed(parameters: dict[str, Any]) -> None:
        fleet.ledger.executed(parameters["number"], app.client_id)

    async def work(parameters: dict[str, Any]) -> dict[str, Any]:
        executed(parameters)
        await asyncio.sleep(parameters["workMs"] / 1000)
        return parameters

    async def hold(parameters: dict[str, Any]) -> dict[str, Any]:
        executed(parameters)
        await fleet.release.wait()
        return parameters

    app = ResumingApp(gateways, {"work": work, "hold": hold}, first=number)
    return app
