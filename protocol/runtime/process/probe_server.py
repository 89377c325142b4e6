"""`GET /healthz`, `/readyz` and `/metrics` for a process that serves nothing else over HTTP.

Each connection has one request. Its head, its time and the number of connections are bounded, because anyone who
reaches the port may connect.
"""

import asyncio
import contextlib
import http
from collections.abc import AsyncIterator, Callable

from protocol.errors import ConfigurationError
from protocol.runtime.process.answer_counts import AnswerCounts
from protocol.runtime.process.metrics import CONTENT_TYPE, PATH, Metrics

PATHS = ("/healthz", "/readyz", PATH)
MAX_CONNECTIONS = 64
MAX_HEAD_BYTES = 8192
ANSWER_SECONDS = 5.0
_PLAIN = "text/plain; charset=utf-8"

Answer = tuple[http.HTTPStatus, str, str]


class ProbeServer:
    """Answers health checks. `missing` returns the parts that the process still needs for its work."""

    def __init__(self, metrics: Metrics, answers: AnswerCounts, missing: Callable[[], str]) -> None:
        self._metrics = metrics
        self._answers = answers
        self._missing = missing
        self._open = 0

    @contextlib.asynccontextmanager
    async def serving(self, host: str, port: int | None) -> AsyncIterator[int | None]:
        """Listen until the exit. Yield the port; with None do not listen. Raises `ConfigurationError`."""
        if port is None:
            yield None
            return
        try:
            server = await asyncio.start_server(self._serve, host, port, limit=MAX_HEAD_BYTES)
        except OSError as exc:
            raise ConfigurationError(f"cannot listen on {host} port {port}: {exc.strerror}") from exc
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= MAX_CONNECTIONS:
                async with asyncio.timeout(ANSWER_SECONDS):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(_encoded(*self._answer(head)))
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a malformed request gets no answer
        finally:
            self._open -= 1
            writer.close()

    def _answer(self, head: bytes) -> Answer:
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0].decode("latin-1")
        answer = self._answer_to(method, path)
        self._answers.count(path, answer[0])
        return answer

    def _answer_to(self, method: bytes, path: str) -> Answer:
        if method not in (b"GET", b"HEAD"):
            return http.HTTPStatus.METHOD_NOT_ALLOWED, "GET only\n", _PLAIN
        if path == "/healthz":
            return http.HTTPStatus.OK, "ok\n", _PLAIN
        if path == "/readyz":
            missing = self._missing()
            status = http.HTTPStatus.SERVICE_UNAVAILABLE if missing else http.HTTPStatus.OK
            return status, f"not ready: {missing}\n" if missing else "ready\n", _PLAIN
        if path == PATH:
            return http.HTTPStatus.OK, self._metrics.text(), CONTENT_TYPE
        return http.HTTPStatus.NOT_FOUND, "no such path\n", _PLAIN


def _encoded(status: http.HTTPStatus, text: str, content_type: str) -> bytes:
    body = text.encode()
    lines = (
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "Connection: close",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
