"""Serve the to-do page on loopback: `python examples/todo/serve.py`, where `agentbridge up` runs.

The page asks `session.json` for the gateway's URL and a token. In a real application this is where your own server
knows who is logged in, and signs a short-lived token for that user; here it is always Ann.

The token goes neither into the page's URL nor into its HTML: a URL is printed, logged, copied and kept in the browser's
history, and a page is cached. A same-origin answer that nobody may store has none of these, and can give a fresh token
whenever the page connects again. Other web sites cannot read it: without CORS headers a browser keeps it from them, and
the check of `Host` stops names that were made to point to this machine (DNS rebinding).
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

from agentbridge import data_folder
from protocol.errors import ConfigurationError
from protocol.runtime.auth import mint
from protocol.runtime.settings import environment

HOST = "127.0.0.1"
DEFAULT_PORT = 8080
USER = "ann"
TOKEN_SECONDS = 3600
FOLDER = Path(__file__).parent
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/agentbridge.js": ("agentbridge.js", "text/javascript; charset=utf-8"),
    "/panel.js": ("panel.js", "text/javascript; charset=utf-8"),
    "/todos.js": ("todos.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
}
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; img-src data:; connect-src 'self' ws: wss:; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Session(NamedTuple):
    """Where the page connects, and as whom; a bridge without authentication needs no token."""

    url: str
    token: str | None


class Handler(BaseHTTPRequestHandler):
    """Answers the page's few requests. It logs nothing: there is nothing in them that anybody would want to know."""

    session: Callable[[], Session]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Send a file of the page, or its session."""
        if self.headers.get("Host") not in self._own_names():
            self._send_json(HTTPStatus.FORBIDDEN, {"message": "this server answers to its own address only"})
        elif self.path == "/session.json":
            self._send_session()
        elif self.path in FILES:
            name, content_type = FILES[self.path]
            self._send(HTTPStatus.OK, content_type, (FOLDER / name).read_bytes())
        else:
            self._send_json(HTTPStatus.NOT_FOUND, {"message": "no such page"})

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the library's name
        """Stay silent."""

    def _own_names(self) -> set[str]:
        port = self.connection.getsockname()[1]
        return {f"{HOST}:{port}", f"localhost:{port}"}

    def _send_session(self) -> None:
        try:
            self._send_json(HTTPStatus.OK, type(self).session()._asdict())
        except ConfigurationError as exc:
            self._send_json(HTTPStatus.SERVICE_UNAVAILABLE, {"message": str(exc)})

    def _send_json(self, status: HTTPStatus, value: object) -> None:
        self._send(status, "application/json", json.dumps(value).encode())

    def _send(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def session_of_running_bridge(folder: Path) -> Session:
    """Return a session with the `agentbridge up` of this folder; raise `ConfigurationError` where none runs."""
    running = data_folder.read(folder)
    if running is None:
        raise ConfigurationError("no bridge runs here: start `agentbridge up` in this folder")
    if running.jwt_secret is None:
        return Session(running.gateway_url, None)
    audience = running.jwt_audience or "agentbridge"
    token = mint(running.jwt_secret, USER, "app", TOKEN_SECONDS, audience=audience, issuer=running.jwt_issuer)
    return Session(running.gateway_url, token)


def listen(port: int | None) -> ThreadingHTTPServer:
    """Listen on this port; without one, on 8080 or any free one."""
    if port is not None:
        return ThreadingHTTPServer((HOST, port), Handler)
    with contextlib.suppress(OSError):
        return ThreadingHTTPServer((HOST, DEFAULT_PORT), Handler)
    return ThreadingHTTPServer((HOST, 0), Handler)


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Serve the to-do page on loopback.")
    parser.add_argument("--port", type=int, help="port to listen on (8080, or any free one)")
    parser.add_argument("--gateway", help="WebSocket URL of a gateway (that of a running `agentbridge up`)")
    parser.add_argument("--token", help="token of the role app, where --gateway is given")
    given = parser.parse_args()
    folder = Path(environment().get("AGENTBRIDGE_DATA_DIR") or "./.agentbridge")
    session = Session(given.gateway, given.token)
    Handler.session = staticmethod(lambda: session if given.gateway else session_of_running_bridge(folder))
    try:
        Handler.session()
        server = listen(given.port)
    except ConfigurationError as exc:
        sys.exit(f"serve: {exc}")
    except (OSError, OverflowError) as exc:
        sys.exit(f"serve: cannot listen on {HOST} port {given.port} ({exc}): give another --port")
    print(f"The to-do list is on http://{HOST}:{server.server_address[1]}/ (Ctrl-C stops it)", flush=True)
    with server, contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    main()
