"""The life of every process: settings, logs, NATS, serve until a signal, one shutdown order, exit code.

Shutdown order: linger if the settings say so, stop intake, wait (bounded) for work in flight, say goodbye, drain NATS,
exit. A second signal has no effect. Exit codes: 0 after a signal, 2 for a wrong setting, 1 for anything else.
"""

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

import uvloop

from protocol.errors import ConfigurationError
from protocol.runtime import logs, settings, variables
from protocol.runtime.nats.connection import Connection, connect
from protocol.runtime.process.faults import FileWatch, log_faults_of
from protocol.runtime.process.tuning import raise_open_file_limit, tune_garbage_collector
from protocol.runtime.settings import Settings

EXIT_CONFIGURATION = 2
EXIT_FAILURE = 1
GOODBYE_SECONDS = 6  # after the wait for work in flight, to close sockets and report to the registry

log = logging.getLogger(__name__)
R = TypeVar("R")
S = TypeVar("S", bound=Settings)


Serving = Callable[[S, Connection, asyncio.TaskGroup], AbstractAsyncContextManager[object]]


def run(name: str, kind: type[S], serving: Serving[S], *, user: str) -> None:
    """Run a process from settings to exit code.

    `serving` is a context that serves while it is entered. Its exit ends the parts in the reverse order of their entry:
    stop intake, wait (bounded) for work in flight, say goodbye. NATS is still connected then.
    """
    try:
        configured = settings.load(kind)
        logs.configure(name, configured.log_format, configured.log_level)
        for sentence in variables.unknown(settings.environment()):
            log.warning("%s", sentence)
        raise_open_file_limit()
        code = uvloop.run(_live(name, configured, serving, user))
        # A second Ctrl-C during the interpreter's exit would change the exit code.
        _ignore_signals()
    except ConfigurationError as exc:
        logs.say_why_it_ends(name, str(exc), settings.wants_json())
        code = EXIT_CONFIGURATION
    except BaseExceptionGroup as group:
        code = _exit_code_of(name, group)
    sys.exit(code)


async def _live(name: str, configured: S, serving: Serving[S], user: str) -> int:
    """Return the exit code: 0 if a signal ended the process, 1 if NATS closed the connection for good."""
    stop, code = _stop_signal(), 0
    log_faults_of(asyncio.get_running_loop())
    async with contextlib.AsyncExitStack() as stack:
        connection = await _unless(stop, stack.enter_async_context(connect(configured, name, user)))
        if connection is None:
            # A signal came before NATS answered: nothing serves yet, so there is nothing to drain.
            return 0
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(FileWatch().run(), name="watch files")
                code = await _serve(configured, serving, connection, tasks, stop)
                raise _Done
        except* _Done:
            pass
    return code


async def _serve(
    configured: S, serving: Serving[S], connection: Connection, tasks: asyncio.TaskGroup, stop: asyncio.Event
) -> int:
    async with contextlib.AsyncExitStack() as parts:
        if await _unless(stop, _entered(parts, serving(configured, connection, tasks))) is None:
            return 0
        await _unless(stop, connection.verify_permissions())
        tune_garbage_collector()
        code = await _until_stopped(stop, connection)
        await _drain(parts, configured.ending_seconds)
    return code


async def _entered(parts: contextlib.AsyncExitStack, serving: AbstractAsyncContextManager[object]) -> bool:
    await parts.enter_async_context(serving)
    return True


class _Done(Exception):
    """Ends the task group of a process when its work is done."""


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, R]) -> R | None:
    """Return the result of `work`, or None if a signal comes first."""
    task = asyncio.get_running_loop().create_task(work, name="start")
    waiter = asyncio.get_running_loop().create_task(stop.wait(), name="wait for a signal")
    await asyncio.wait([task, waiter], return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()
    # If both have ended, the result counts: what was entered must be left again.
    if task.done():
        return task.result()
    task.cancel()
    # Wait for the cancelled task, because it may still close what it has opened.
    await asyncio.wait([task])
    return None


def _stop_signal() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    return stop


def _ignore_signals() -> None:
    """Ignore signals while the interpreter ends, because the event loop has restored the default handlers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


async def _until_stopped(stop: asyncio.Event, connection: Connection) -> int:
    """Return the exit code: 0 after a signal to stop, 1 if NATS closed the connection for good."""
    # One event for both ends, so that a drain after a lost connection takes the same way as after a signal.
    connection.failed.add_done_callback(lambda _: stop.set())
    await stop.wait()
    if not connection.failed.done():
        return 0
    log.error("NATS closed the connection for good; exiting")
    return EXIT_FAILURE


async def _drain(parts: contextlib.AsyncExitStack, timeout_seconds: float) -> None:
    log.info("draining")
    try:
        async with asyncio.timeout(timeout_seconds + GOODBYE_SECONDS):
            await parts.aclose()
    except TimeoutError:
        log.warning("not all work in flight has ended within %g s", timeout_seconds)


def _exit_code_of(name: str, group: BaseExceptionGroup[BaseException]) -> int:
    configuration = group.subgroup(ConfigurationError)
    if configuration is not None:
        logs.say_why_it_ends(name, str(_first_leaf(configuration)), settings.wants_json())
        return EXIT_CONFIGURATION
    log.error("the process failed", exc_info=group)
    return EXIT_FAILURE


def _first_leaf(group: BaseExceptionGroup[Any]) -> BaseException:
    first = group.exceptions[0]
    return _first_leaf(first) if isinstance(first, BaseExceptionGroup) else first
