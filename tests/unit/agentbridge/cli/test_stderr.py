"""What is said beside the matter, and to a pipe that nobody reads."""

import os
import time

from agentbridge.cli.stderr import LAST_SECONDS, MAX_WAITING, stderr_writer


def test_all_is_written_in_order_before_the_end() -> None:
    ours, its = os.pipe()
    with stderr_writer(its) as said:
        for number in range(MAX_WAITING // 2):
            said.say(f"{number} é\n")
    assert os.read(ours, 10_000).decode().split("\n")[:-1] == [f"{number} é" for number in range(MAX_WAITING // 2)]
    os.close(ours)
    os.close(its)


def test_pipe_that_nobody_has_open_is_no_failure() -> None:
    ours, its = os.pipe()
    os.close(ours)
    with stderr_writer(its) as said:
        said.say("is anybody there?")
        said.say("nobody")
    os.close(its)


def test_full_pipe_holds_up_nobody_and_only_so_much_waits_for_it() -> None:
    ours, its = os.pipe()
    begun = time.monotonic()
    with stderr_writer(its) as said:
        for _ in range(3 * MAX_WAITING):
            said.say("x" * 70_000)
    assert time.monotonic() - begun < 2 * LAST_SECONDS + 1
    os.close(ours)  # ends the thread that still writes
    said.finish()
    os.close(its)
