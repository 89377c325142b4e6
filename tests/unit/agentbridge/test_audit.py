"""What `agentbridge audit --follow` shows once, though it is both stored and told."""

import json

from agentbridge.commands.audit import Twice

STORED = b'{"outcome":"success", "parameters":{"a": 1.50, "b":[ ]}}'
OTHER = b'{"outcome":"success","parameters":{"a":2}}'


def test_what_was_shown_of_the_past_is_not_shown_again_however_its_parameters_are_spelled() -> None:
    twice = Twice([STORED])
    assert twice.take(json.loads(STORED))
    assert not twice.take(json.loads(OTHER))


def test_records_that_are_alike_are_all_shown() -> None:
    twice = Twice([STORED, STORED])
    assert [twice.take(json.loads(STORED)) for _ in range(3)] == [True, True, False]
