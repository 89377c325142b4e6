"""What a process says of faults that belong to no request."""

import asyncio
import logging
import resource

import nats.errors
import pytest

from protocol.errors import Unavailable
from protocol.runtime.connections.open_files import OpenFiles
from protocol.runtime.process import faults
from protocol.runtime.process.faults import FEW_FILES, LAST_FILES, FileWatch, log_faults_of


@pytest.mark.parametrize("error", [nats.errors.FlushTimeoutError(), Unavailable("NATS is away"), OSError("cut off")])
async def test_wait_that_an_outage_has_left_is_one_line(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    log_faults_of(loop)
    for _ in range(3):
        loop.call_exception_handler({"message": "Future exception was never retrieved", "exception": error})
    (line,) = caplog.records
    assert (line.levelno, line.exc_info) == (logging.WARNING, None)
    assert str(error) in line.getMessage()


async def test_fault_of_ours_keeps_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    log_faults_of(loop)
    loop.call_exception_handler({"message": "a callback failed", "exception": ValueError("ours")})
    (line,) = caplog.records
    assert (line.levelno, line.exc_info is not None) == (logging.ERROR, True)


async def test_running_out_of_files_is_said(caplog: pytest.LogCaptureFixture) -> None:
    watch = FileWatch()
    assert watch.look()
    former = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, former[1]))  # standard input, output and error
    try:
        assert not watch.look()
        assert not watch.look()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, former)
    assert watch.look()
    (line,) = caplog.records
    assert (line.levelno, "ulimit -n" in line.getMessage()) == (logging.ERROR, True)


class Transport(asyncio.BaseTransport):
    def __init__(self, number: int) -> None:
        super().__init__({"socket": self})
        self._number = number

    def fileno(self) -> int:
        return self._number


@pytest.mark.parametrize(("number", "lines"), [(5000 - LAST_FILES, 1), (5000 - LAST_FILES - 1, 0)])
async def test_files_that_were_all_in_use_between_two_looks_are_said(
    number: int, lines: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (5000, 5000))
    watch, files = FileWatch(), OpenFiles()
    monkeypatch.setattr(faults, "OPEN_FILES", files)
    for each in (7, number, 8):
        files.note(Transport(each))
    assert watch.look() is (lines == 0)
    assert watch.look()
    assert ["for a moment" in record.getMessage() for record in caplog.records] == [True] * lines


@pytest.mark.parametrize(("limit", "lines"), [(FEW_FILES - 1, 1), (FEW_FILES, 0)])
async def test_low_limit_of_files_is_said_before_a_burst_reaches_it(
    limit: int, lines: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit, limit))
    FileWatch().look_at_limit()
    assert [str(limit) in record.getMessage() for record in caplog.records] == [True] * lines
