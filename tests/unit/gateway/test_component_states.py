"""States of components that change faster than records may be written: put together, bounded, written in the end."""

import asyncio
import json
from typing import Any, cast

import msgspec
import pytest
from support.played.sessions import USER, live_session, session
from support.settings import settings_for
from support.wait import until

from gateway.capabilities.contracts import Contracts
from gateway.component_states import MAX_WAITING_BYTES, ComponentStates
from gateway.sessions.live import LiveSession, Socket
from gateway.settings import GatewaySettings
from protocol.errors import Overloaded
from protocol.frames import EventFrame
from protocol.reports import EndReason

PANEL = {"type": "component", "id": "panel", "properties": {"n": 0}, "actions": []}


def state(**values: Any) -> EventFrame:
    data = json.dumps({"properties": values}).encode()
    return EventFrame("state_changed", "panel", msgspec.Raw(data))


class Stage:
    """A client that may register twice a second, and how often it has."""

    def __init__(self) -> None:
        rates = settings_for(GatewaySettings, registrations_per_session=2).client_rates()
        self.written = 0
        self.contracts = Contracts()
        self.live = live_session(session(PANEL), cast("Socket", None), lambda _: None)
        self.states = ComponentStates(rates, self.register)

    def register(self, live: LiveSession, items: list[msgspec.Raw]) -> None:
        self.written += 1
        live.perform(live.core.register(self.contracts.read(items, (USER.tenant, USER.sub), 0), None, None, None))

    @property
    def properties(self) -> Any:
        [panel] = json.loads(bytes(self.live.core.contract.capabilities.raw))
        return panel["properties"]


async def test_fast_changes_are_written_together_when_there_is_room() -> None:
    stage = Stage()
    for number in range(1, 51):
        stage.states.take(stage.live, state(n=number, **{f"p{number % 3}": number}))
    assert stage.properties == {"n": 2, "p1": 1, "p2": 2}
    await until(lambda: stage.properties["n"] == 50)
    assert stage.properties == {"n": 50, "p0": 48, "p1": 49, "p2": 50}
    assert stage.written == 3


async def test_changes_that_wait_are_bounded() -> None:
    stage = Stage()
    large = "x" * (MAX_WAITING_BYTES // 2)
    for _ in range(3):
        stage.states.take(stage.live, state(text=large))
    with pytest.raises(Overloaded):
        stage.states.take(stage.live, state(text=large))


async def test_nothing_is_written_for_a_client_that_has_gone() -> None:
    stage = Stage()
    for number in range(3):
        stage.states.take(stage.live, state(n=number))
    stage.live.end(EndReason.CLOSED)
    await until(lambda: not stage.states.waiting)
    assert stage.written == 2


async def test_list_that_is_being_read_comes_first() -> None:
    stage = Stage()
    stage.live.registration = cast("Any", object())
    stage.states.take(stage.live, state(n=1))
    await asyncio.sleep(0)
    assert stage.properties == {"n": 0}
    stage.live.registration = None
    await until(lambda: stage.properties == {"n": 1})
