"""Protects an agent API without authentication from web pages: only requests to this machine's own names are served."""

from starlette.types import ASGIApp, Receive, Scope, Send

from agent_api.http.asgi import write_answer
from agent_api.http.problems import http_answer_of
from protocol.errors import PermissionDenied
from protocol.origins import Origins, names_loopback


class LoopbackOnly:
    """Middleware for `AUTH=off`: refuses requests whose `Host` is not this machine."""

    def __init__(self, app: ASGIApp, origins: Origins) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it with 403 before anything is done for it."""
        refusal = self._refusal(scope["headers"])
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await write_answer(send, receive, http_answer_of(refusal))

    def _refusal(self, headers: list[tuple[bytes, bytes]]) -> PermissionDenied | None:
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        if not all(map(names_loopback, hosts)):
            return PermissionDenied("without authentication this serves localhost, 127.0.0.1 and [::1] only")
        own = {f"http://{host}" for host in hosts}
        for name, value in headers:
            if (
                name == b"origin"
                and (origin := value.decode("latin-1")) not in own
                and not self._origins.allows(origin)
            ):
                return PermissionDenied("this origin is not in AGENTBRIDGE_ALLOWED_ORIGINS")
        return None
