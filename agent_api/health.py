"""`/healthz`: the process lives. `/readyz`: it can do its work. `/metrics`: what it has counted."""

import asyncio
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from agent_api.http.responses import NO_STORE, json_response
from protocol.errors import Unavailable
from protocol.runtime.metrics import CONTENT_TYPE, PATH, Metrics
from protocol.runtime.nats import Connection


class Health:
    """Tells orchestrators how the process is. Losing the registry never makes it unready: commands go on without."""

    def __init__(self, connection: Connection, mirror_filled: asyncio.Event, metrics: Metrics) -> None:
        self._connection = connection
        self._mirror_filled = mirror_filled
        self._metrics = metrics
        self._leaving = False

    def leave(self) -> None:
        """Be not ready from now on, whatever else is served: who balances load is to send nothing new here."""
        self._leaving = True

    async def alive(self, request: Request) -> Response:
        """Tell that the process lives."""
        return json_response({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Tell whether the process can do its work; 503 says what is missing."""
        missing = self.missing()
        if missing:
            raise Unavailable(f"not ready: {', '.join(missing)}", details={"missing": missing})
        return json_response({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        """Tell what the process has counted, to whoever calls the path as it is written.

        A proxy that keeps this path from the public compares it, and may not see that `/%6detrics` is the same.
        """
        if request.scope["raw_path"] != PATH.encode():
            raise HTTPException(HTTPStatus.NOT_FOUND)
        return Response(self._metrics.text(), headers={**NO_STORE, "content-type": CONTENT_TYPE})

    def missing(self) -> list[str]:
        """Return what keeps the process from its work, as short phrases."""
        conditions = {
            "NATS is away": not self._connection.connected,
            "the list of clients has not been read yet": not self._mirror_filled.is_set(),
            "the process is shutting down": self._leaving,
        }
        return [phrase for phrase, holds in conditions.items() if holds]
