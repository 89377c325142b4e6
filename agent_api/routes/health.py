"""`/healthz`: the process is alive. `/readyz`: it can do its work. `/metrics`: its metrics."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from agent_api.http.responses import NO_STORE, json_response
from protocol.errors import Unavailable
from protocol.runtime.nats.connection import Connection
from protocol.runtime.process.metrics import CONTENT_TYPE, PATH, Metrics


class HealthRoutes:
    """The health routes. The process stays ready without a registry, because commands do not need one."""

    def __init__(self, connection: Connection, mirror_filled: asyncio.Event, metrics: Metrics) -> None:
        self._connection = connection
        self._mirror_filled = mirror_filled
        self._metrics = metrics
        self._leaving = False

    @contextlib.asynccontextmanager
    async def lingering(self, linger_seconds: float) -> AsyncIterator[None]:
        """On a regular exit become unready, and serve on for the linger time, until the load balancer has noticed.

        A load balancer may send a request on a connection that we are just closing, and then cut its caller off. So
        nothing is closed before it has found this process unready.
        """
        yield
        self._leaving = True
        await asyncio.sleep(linger_seconds)

    async def alive(self, request: Request) -> Response:
        """Answer 200: the process is alive."""
        return json_response({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Answer 200 if the process can do its work, else 503 with a list of the missing parts."""
        missing = self.missing()
        if missing:
            raise Unavailable(f"not ready: {', '.join(missing)}", details={"missing": missing})
        return json_response({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        """Return the metrics, but only if the path has exactly this spelling.

        A proxy that hides this path compares its text, and may not notice that `/%6detrics` is the same path.
        """
        if request.scope["raw_path"] != PATH.encode():
            raise HTTPException(HTTPStatus.NOT_FOUND)
        return Response(self._metrics.text(), headers={**NO_STORE, "content-type": CONTENT_TYPE})

    def missing(self) -> list[str]:
        """Return a short phrase for each missing part."""
        conditions = {
            "NATS is away": not self._connection.connected,
            "the list of clients has not been read yet": not self._mirror_filled.is_set(),
            "the process is shutting down": self._leaving,
        }
        return [phrase for phrase, holds in conditions.items() if holds]
