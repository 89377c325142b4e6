import asyncio
from functools import partial

import pytest

from agent_api.commands.admission import Admission
from protocol.errors import Overloaded, Unavailable

HOARDER, OTHER = ("a", "x"), ("b", "x")


def take_all(admission: Admission, body_bytes: int) -> object:
    """Have commands of one agent admitted until one is refused; return the refusal's details."""
    while True:
        try:
            admission.admit(HOARDER, body_bytes)
        except Overloaded as exc:
            return exc.details


@pytest.mark.parametrize(("body_bytes", "most"), [(0, 563), (1000, 282)])
async def test_number_and_bytes_are_bounded_and_leave_room_for_others(body_bytes: int, most: int) -> None:
    admission = Admission(max_commands=1000, max_bytes=1_000_000)
    assert take_all(admission, body_bytes) == {"limit": "agent"}
    assert admission.commands == most  # nine sixteenths: three quarters of what a lone tenant may have
    for _ in range(10):
        admission.admit(OTHER, body_bytes)


async def test_bodies_that_arrive_are_given_back_for_others_and_those_that_were_sent_are_not() -> None:
    admission, told = Admission(max_commands=10, max_bytes=1000), list[tuple[int, Overloaded]]()
    pieces = [admission.admit(HOARDER, give_back=partial(_note, told, number)) for number in range(10)]
    for piece in pieces[:3]:
        piece.keep()
    for _ in range(3):
        admission.admit(OTHER)
    assert [number for number, _ in told] == [9, 8, 7]
    assert all(error.details == {"limit": "tenant"} for _, error in told)
    for piece in pieces:
        admission.release(piece)
    assert admission.commands == 3


def _note(told: list[tuple[int, Overloaded]], number: int, error: Overloaded) -> None:
    told.append((number, error))


async def test_commands_of_one_request_are_admitted_all_or_none() -> None:
    admission = Admission(max_commands=100, max_bytes=1000)
    with pytest.raises(Overloaded):
        admission.admit(HOARDER, commands=60)
    assert admission.commands == 0
    piece = admission.admit(HOARDER, commands=56)
    admission.release(piece, 56)
    admission.admit(HOARDER, commands=56)
    assert admission.commands == 56


async def test_drain_refuses_new_commands_and_waits_for_those_under_way() -> None:
    admission = Admission()
    piece = admission.admit(HOARDER)
    async with asyncio.timeout(2), asyncio.TaskGroup() as tasks:
        draining = tasks.create_task(admission.drain())
        while not admission.draining:
            await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            admission.admit(OTHER)
        assert not draining.done()
        admission.release(piece)


async def test_idle_intake_drains_at_once() -> None:
    async with asyncio.timeout(1):
        await Admission().drain()
