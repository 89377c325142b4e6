"""`/healthz`: the process lives. `/readyz`: it can do its work. `/metrics`: its metrics."""

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
    """Tells orchestrators how the process is. Losing the registry never makes it unready: commands go on without."""

    def __init__(self, connection: Connection, mirror_filled: asyncio.Event, metrics: Metrics) -> None:
        self._connection = connection
        self._mirror_filled = mirror_filled
        self._metrics = metrics
        self._leaving = False

    @contextlib.asynccontextmanager
    async def lingering(self, linger_seconds: float) -> AsyncIterator[None]:
        """At the orderly end be not ready, and serve on until a load balancer in front has noticed.

        It has put its next request on a connection before it can see that one closed, and then cuts its caller off. So
        nothing is closed before it has had the time to find this process not ready.
        """
        yield
        self._leaving = True
        await asyncio.sleep(linger_seconds)

    async def alive(self, request: Request) -> Response:
        """Tell that the process lives."""
        return json_response({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Tell whether the process can do its work; the body of a 503 lists the missing parts."""
        missing = self.missing()
        if missing:
            raise Unavailable(f"not ready: {', '.join(missing)}", details={"missing": missing})
        return json_response({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        """Return the metrics, if the path is written exactly like this.

        A proxy that hides this path from the public compares the text, and may not see that `/%6detrics` is the same
        path.
        """
        if request.scope["raw_path"] != PATH.encode():
            raise HTTPException(HTTPStatus.NOT_FOUND)
        return Response(self._metrics.text(), headers={**NO_STORE, "content-type": CONTENT_TYPE})

    def missing(self) -> list[str]:
        """Return short phrases for the parts that the process still lacks."""
        conditions = {
            "NATS is away": not self._connection.connected,
            "the list of clients has not been read yet": not self._mirror_filled.is_set(),
            "the process is shutting down": self._leaving,
        }
        return [phrase for phrase, holds in conditions.items() if holds]
