"""What bounds every test, and what its processes inherit: a pytest plugin.

Each phase of a test (its fixtures, itself, the end of its fixtures) has a time limit, so that a wait that nobody has
bounded fails one test, with the stacks of all threads, instead of stopping the suite.
"""

import faulthandler
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import pytest

PHASE_SECONDS = "180"
DOCKER_SECONDS = 1200  # images are built


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let `-o phase_seconds=N` set the limit of each phase of a test."""
    parser.addini("phase_seconds", "seconds that each phase of a test may take", default=PHASE_SECONDS)


def pytest_configure(config: pytest.Config) -> None:
    """Have children end by Ctrl-C, even if whoever started the suite had it ignore that, as shells do behind `&`.

    What is ignored stays so in children; what is handled is not. The suite itself goes on ignoring it.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    """Limit the fixtures of a test."""
    with _limited(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Limit a test."""
    with _limited(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    """Limit the end of a test's fixtures."""
    with _limited(item):
        return (yield)


@contextmanager
def _limited(item: pytest.Item) -> Iterator[None]:
    seconds = DOCKER_SECONDS if item.get_closest_marker("docker") else float(item.config.getini("phase_seconds"))

    def end(*_: object) -> None:
        faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr)
        pytest.fail(f"took more than {seconds:g} s; something waits without a bound")

    former = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
