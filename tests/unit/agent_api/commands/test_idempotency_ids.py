"""The ids under which commands go and are answered, with a key and without."""

from typing import Any

import pytest
from support.played.keyed_orders import ANY, Bench
from support.played.known import client


@pytest.fixture
async def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize("whom", [{"clientId": "c1"}, ANY, {}, {"clientIds": ["c1", "c2"]}])
async def test_keyed_command_goes_under_an_id_of_its_own_and_is_answered_under_the_caller_s(
    bench: Bench, whom: dict[str, Any]
) -> None:
    bench.known.put(client("c1", "f"))
    for _ in range(2):
        answer = await bench.ask(whom)
        told = (
            [each["requestId"] for each in answer["results"].values()] if "clientIds" in whom else [answer.request_id]
        )
        assert set(told) == {"mine"}
    commands = [command for _, command in bench.sent]
    assert {command.caller_request_id for command in commands} == {"mine"}
    assert len({"mine", *(command.request_id for command in commands)}) == len(commands) + 1


async def test_command_without_a_key_goes_under_an_id_of_its_own_too(bench: Bench) -> None:
    answer = await bench.ask({"clientId": "c1"}, key=None)
    [(_, command)] = bench.sent
    assert (command.caller_request_id, answer.request_id) == ("mine", "mine")
    assert command.request_id != "mine"
