"""Counts the answers to HTTP requests by route and status, around the whole application."""

from collections.abc import Awaitable
from functools import partial

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent_api.http.writing import EXTENSION, WriteWhole
from protocol.runtime.process.answer_counts import OTHER, series_of

TOOL_PATH = "/api/tools/"
OF_ONE = {
    "/api/clients/": "/api/clients/{id}",
    "/api/agents/": "/api/agents/{sub}",
    TOOL_PATH: f"{TOOL_PATH}{{name}}",
}
COUNTED = "agentbridge.counted"  # in the extensions of a connection whose answers are counted


class RequestCounts:
    """An ASGI application around another. `paths` are those that are told apart.

    Counts are plain integers by path and status: this runs for every command. Only known paths have one, so an unknown
    one, or the first answer of its kind, takes the longer way.
    """

    def __init__(self, app: ASGIApp, paths: frozenset[str]) -> None:
        self._app = app
        self._paths = paths
        self._answers: dict[tuple[str, int], int] = {}

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Return the serving of one request, to be awaited."""
        extensions = scope.get("extensions")
        if extensions and COUNTED not in extensions:  # once, because the requests of a connection share them
            extensions[COUNTED] = True
            if EXTENSION in extensions:
                extensions[EXTENSION] = self._counting(extensions[EXTENSION])
        return self._app(scope, receive, partial(self._send, scope["path"], send))

    def count(self, path: str, status: int) -> None:
        """Count an answer."""
        key = self._route_of(path), status
        self._answers[key] = self._answers.get(key, 0) + 1

    def counters(self) -> dict[str, int]:
        """Return how many were answered since the start."""
        return series_of(self._answers)

    async def _send(self, path: str, send: Send, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.count(path, message["status"])
        await send(message)

    def _counting(self, whole: WriteWhole) -> WriteWhole:
        """Return the connection's function that writes whole answers, with counting."""
        answers = self._answers

        def write(scope: Scope, status: int, body: bytes) -> bool:
            taken = whole(scope, status, body)
            if taken:
                try:
                    answers[scope["path"], status] += 1
                except KeyError:
                    self.count(scope["path"], status)
            return taken

        return write

    def _route_of(self, path: str) -> str:
        if path in self._paths:
            return path
        return next((route for start, route in OF_ONE.items() if path.startswith(start)), OTHER)
