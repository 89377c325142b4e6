"""Log lines: for people on a terminal, for collectors as JSON, always with what they are about."""

import contextlib
import io
import json
import logging
from collections.abc import Iterator

import pytest

from protocol.runtime import logs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@contextlib.contextmanager
def configured(log_format: str, stream: io.StringIO, level: str = "info") -> Iterator[logging.Logger]:
    """Configure logs as a process does, and give the root logger back to pytest afterwards."""
    root = logging.getLogger()
    handlers, former = root.handlers, root.level
    noisy = {name: logging.getLogger(name).level for name in ("websockets", "uvicorn", "nats", "asyncio")}
    logs.configure("gateway", log_format, level, stream)
    try:
        yield logging.getLogger("tests")
    finally:
        root.handlers = handlers
        root.setLevel(former)
        for name, was in noisy.items():
            logging.getLogger(name).setLevel(was)


def test_json_line_says_what_it_is_about() -> None:
    stream = io.StringIO()
    with configured("json", stream) as log:
        with logs.about(client="c1", request="r1"):
            log.warning("late by %d ms\nand more", 7)
        log.info("after")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first.pop("at").endswith("+00:00")
    assert first == {
        "level": "warning",
        "process": "gateway",
        "message": "late by 7 ms\nand more",
        "clientId": "c1",
        "requestId": "r1",
    }
    assert set(second) == {"at", "level", "process", "message"}


def test_json_line_holds_the_traceback() -> None:
    stream = io.StringIO()
    with configured("json", stream) as log:
        _fail(log)
    (line,) = stream.getvalue().splitlines()
    assert "ZeroDivisionError" in json.loads(line)["exception"]


def test_console_line_is_plain_off_a_terminal() -> None:
    stream = io.StringIO()
    with configured("console", stream) as log, logs.about(client="c1"):
        log.error("lost")
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().endswith(" gateway   error   lost client=c1\n")


def test_console_line_is_coloured_on_a_terminal() -> None:
    stream = Terminal()
    with configured("console", stream) as log:
        log.error("lost")
        log.info("back")
    first, second = stream.getvalue().splitlines()
    assert "\x1b[31merror  \x1b[0m" in first
    assert "\x1b" not in second


def test_console_shows_the_traceback_below_its_line() -> None:
    stream = io.StringIO()
    with configured("console", stream) as log:
        _fail(log)
    assert stream.getvalue().splitlines()[-1] == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize(("level", "shown"), [("debug", ["d", "i", "w"]), ("info", ["i", "w"]), ("error", [])])
def test_level_decides_what_is_shown(level: str, shown: list[str]) -> None:
    stream = io.StringIO()
    with configured("json", stream, level) as log:
        log.debug("d")
        log.info("i")
        log.warning("w")
        logging.getLogger("websockets").info("noise")
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == shown


def test_marks_nest_and_end() -> None:
    with logs.about("outer", "r"), logs.about("inner"):
        assert (logs.client_id.get(), logs.request_id.get()) == ("inner", None)
    assert (logs.client_id.get(), logs.request_id.get()) == (None, None)


def _fail(log: logging.Logger) -> None:
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError:
        log.exception("it failed")
