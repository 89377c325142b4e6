"""Capability lists of sessions that come from other gateways: read in turns, later if they are refused for now."""

import asyncio
import time
from collections.abc import AsyncIterator

import msgspec
import pytest
from support.load.load import ending_tasks
from support.played.sessions import AGENT_1, CLIENT_ID, LIMITS, REPLY, USER, call, codes, command, live_session, session
from support.wait import until

from gateway.capabilities import contracts
from gateway.capabilities.contracts import NO_CONTRACT, Contracts, UnreadContract
from gateway.sessions.core.session import Session
from gateway.sessions.core.snapshots import SessionSnapshot
from gateway.sessions.live import NOWHERE, LiveSession
from gateway.sessions.moved_lists import MAX_UNREAD_BYTES, MovedLists
from protocol.errors import Unavailable
from protocol.records import Rate
from protocol.runtime.connections.turns import Turns

NOW = 0.0
ROOM = 1000  # for lists at the gateway
SENT = session("add").snapshot("then", None, None, NOW)


class Lists:
    """A gateway's lists, and the sessions that it has turned away."""

    def __init__(self, tasks: asyncio.TaskGroup, max_unread_bytes: int = MAX_UNREAD_BYTES) -> None:
        self.contracts = Contracts(ROOM)
        self.turned_away: list[LiveSession] = []
        turns = Turns(asyncio.get_running_loop().call_soon, time.perf_counter)
        turn_away = self.turned_away.append
        self.moved = MovedLists(self.contracts, turns, tasks, turn_away, 0, max_unread_bytes)

    async def arrive(self, snapshot: SessionSnapshot) -> LiveSession:
        """Return a session that has come from another gateway."""
        live = live_session(Session(CLIENT_ID, USER, LIMITS, NOW), NOWHERE, lambda _: None)
        live.core.arrive(snapshot, await self.moved.read(snapshot), NOW)
        self.moved.read_later(live)
        return live

    def fill(self, size: int = ROOM * 6 // 10) -> contracts.Contract:
        """Take room for as long as the list is kept that is returned: more than the share of a lone user."""
        item = msgspec.Raw(msgspec.json.encode({"name": "other", "description": "x" * size}))
        return self.contracts.read([item], (USER.tenant, USER.sub), NOW)


@pytest.fixture
async def lists() -> AsyncIterator[Lists]:
    async with ending_tasks() as tasks:
        yield Lists(tasks)


def called(live: LiveSession) -> list[str]:
    return codes(call(live.core, AGENT_1, command("add"), "r1", REPLY, NOW))


async def test_list_that_is_taken_is_there_at_once(lists: Lists) -> None:
    live = await lists.arrive(SENT)
    assert (called(live), lists.moved.waiting) == (["command", "arm"], 0)


async def test_list_without_room_is_told_as_it_was_and_read_when_there_is_some(lists: Lists) -> None:
    filled = [lists.fill()]
    live = await lists.arrive(SENT)
    assert msgspec.json.decode(live.record().capabilities) == [{"type": "function", "name": "add"}]
    with pytest.raises(Unavailable):  # not `unknown_capability`, after which nobody would try again
        called(live)
    assert lists.moved.waiting == 1
    filled.clear()
    await until(lambda: lists.moved.waiting == 0)
    assert called(live) == ["command", "arm"]


async def test_list_that_waits_no_more_leaves_its_room_to_the_next() -> None:
    of_one_size = [session(name).snapshot("then", None, None, NOW) for name in ("one", "two", "six")]
    async with ending_tasks() as tasks:
        lists = Lists(tasks, max_unread_bytes=len(memoryview(of_one_size[0].capabilities)))
        filled = [lists.fill()]
        for sent in of_one_size:
            live = await lists.arrive(sent)
            assert (lists.turned_away, lists.moved.waiting) == ([], 1)
            live.end()
            await until(lambda: lists.moved.waiting == 0)
        filled.clear()


async def test_list_of_a_user_who_has_registered_too_much_is_read_when_there_is_time(
    lists: Lists, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as busy:
        busy.setattr(contracts, "EFFORT", Rate(per_second=1, burst=0))
        live = await lists.arrive(SENT)
        with pytest.raises(Unavailable):
            called(live)
    await until(lambda: lists.moved.waiting == 0)
    assert called(live) == ["command", "arm"]


async def test_list_that_the_client_registers_meanwhile_stays(lists: Lists) -> None:
    filled = [lists.fill()]
    live = await lists.arrive(SENT)
    newer = session("newer").contract
    live.core.register(newer, None, None, None)
    await until(lambda: lists.moved.waiting == 0)
    filled.clear()
    assert live.core.contract is newer


async def test_session_that_has_ended_waits_for_no_list(lists: Lists) -> None:
    filled = [lists.fill()]
    live = await lists.arrive(SENT)
    live.end()
    await until(lambda: lists.moved.waiting == 0)
    assert isinstance(live.core.contract, UnreadContract)
    filled.clear()


async def test_session_whose_list_has_no_room_to_wait_ends() -> None:
    async with ending_tasks() as tasks:
        lists = Lists(tasks, max_unread_bytes=10)
        filled = [lists.fill()]
        live = await lists.arrive(SENT)
        assert (lists.turned_away, lists.moved.waiting) == ([live], 0)
        filled.clear()


async def test_list_that_is_refused_for_good_is_no_list(lists: Lists, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contracts, "MAX_CAPABILITIES", 0)
    live = await lists.arrive(SENT)
    assert (live.core.contract, lists.moved.waiting) == (NO_CONTRACT, 0)
