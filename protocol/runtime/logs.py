"""Logging. A line gets its client and request from the context (`about()`), and its format from the settings.

Console lines are for people (coloured only on a terminal), JSON lines for collectors. Tokens never reach a log, because
URLs with queries, headers and frames are not logged.
"""

import datetime
import logging
import sys
from contextvars import ContextVar
from typing import TextIO

import msgspec

client_id: ContextVar[str | None] = ContextVar("client_id", default=None)
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

_COLOURS = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m"}
_RESET = "\x1b[0m"


class about:  # noqa: N801  used like a function
    """Add a client, a request, or both to all log lines inside the `with`."""

    __slots__ = ("_client", "_marks", "_request")

    def __init__(self, client: str | None = None, request: str | None = None) -> None:
        self._client = client
        self._request = request

    def __enter__(self) -> None:
        self._marks = client_id.set(self._client), request_id.set(self._request)

    def __exit__(self, *failure: object) -> None:
        client_mark, request_mark = self._marks
        client_id.reset(client_mark)
        request_id.reset(request_mark)


def configure(process: str, log_format: str, level: str, stream: TextIO | None = None) -> None:
    """Send all logs of this process to `stream` (standard error) in the chosen format."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(process) if log_format == "json" else ConsoleFormatter(process, handler.stream))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for noisy in ("websockets", "uvicorn", "nats", "asyncio"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


def say_why_it_ends(process: str, why: str, as_json: bool) -> None:
    """Write one line that tells the operator which setting to mend, even if logs are not configured yet."""
    if not as_json:
        print(f"{process}: {why}", file=sys.stderr)  # noqa: T201  no log is configured yet
        return
    record = logging.LogRecord(process, logging.ERROR, "", 0, "%s", (why,), None)
    print(JsonFormatter(process).format(record), file=sys.stderr)  # noqa: T201  the same


class JsonFormatter(logging.Formatter):
    """Formats each record as a JSON object on one line."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON, without empty fields."""
        line = {
            "at": _instant(record).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "message": record.getMessage(),
            "clientId": client_id.get(),
            "requestId": request_id.get(),
            "exception": self.formatException(record.exc_info) if record.exc_info else None,
        }
        return msgspec.json.encode({key: value for key, value in line.items() if value is not None}).decode()


class ConsoleFormatter(logging.Formatter):
    """Formats one readable line, with the traceback, if any, below it."""

    def __init__(self, process: str, stream: TextIO) -> None:
        super().__init__()
        self._process = process
        self._coloured = stream.isatty()

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as time, process, level, message, and its client and request."""
        about = "".join(f" {name}={value}" for name, value in _context() if value)
        line = f"{_instant(record):%H:%M:%S} {self._process:9} {self._level(record)} {record.getMessage()}{about}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line

    def _level(self, record: logging.LogRecord) -> str:
        name = f"{record.levelname.lower():7}"
        colour = _COLOURS.get(record.levelname) if self._coloured else None
        return f"{colour}{name}{_RESET}" if colour else name


def _context() -> list[tuple[str, str | None]]:
    return [("client", client_id.get()), ("request", request_id.get())]


def _instant(record: logging.LogRecord) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(record.created, datetime.UTC)
