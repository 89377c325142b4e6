"""Serve the to-do page on loopback: `python examples/todo/serve.py`, where `agentbridge up` runs.

`--page react` and `--page webmcp` serve the pages beside this folder, with its style and its list; the former is built
first, by npm.

The page loads the library from the gateway by one script tag, which asks `token.json` for a token. In a real
application this is where your own server knows who is logged in, and signs a short-lived token for that user; here it
is always Ann.

The token goes neither into the page's URL nor into its HTML: a URL is printed, logged, copied and kept in the browser's
history, and a page is cached. A same-origin answer that nobody may store has none of these, and can give a fresh token
whenever the page connects again. Other web sites cannot read it: without CORS headers a browser keeps it from them, and
the check of `Host` stops names that were made to point to this machine (DNS rebinding).
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import urlsplit

from agentbridge.deployment import data_folder
from protocol.errors import ConfigurationError
from protocol.runtime.settings import environment
from protocol.runtime.tokens import mint

HOST = "127.0.0.1"
DEFAULT_PORT = 8080
USER = "ann"
TOKEN_SECONDS = 3600
FOLDER = Path(__file__).parent
PAGES = {"todo": FOLDER, "react": FOLDER.parent / "todo-react", "webmcp": FOLDER.parent / "todo-webmcp"}
FILES = {
    "/app.js": "text/javascript; charset=utf-8",
    "/dist/app.js": "text/javascript; charset=utf-8",
    "/panel.js": "text/javascript; charset=utf-8",
    "/todos.js": "text/javascript; charset=utf-8",
    "/style.css": "text/css; charset=utf-8",
}
POLICY = (
    "default-src 'self'; img-src data:; script-src 'self' {gateway}; connect-src 'self' {gateway} {socket}; "
    "require-trusted-types-for 'script'; frame-ancestors 'none'"
)
USUAL_GATEWAY = "ws://127.0.0.1:8001"
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
NO_MORE: Mapping[str, str] = MappingProxyType({})


class Session(NamedTuple):
    """Where the page connects, and as whom; a bridge without authentication needs no token."""

    url: str
    token: str | None

    @property
    def socket_origin(self) -> str:
        """The gateway as the page's policy names it for WebSockets."""
        return "{0.scheme}://{0.netloc}".format(urlsplit(self.url))

    @property
    def gateway(self) -> str:
        """The gateway as the script tag names it."""
        return self.socket_origin.replace("ws", "http", 1)


class Handler(BaseHTTPRequestHandler):
    """Answers the page's few requests. It logs nothing: there is nothing in them that anybody would want to know."""

    session: Callable[[], Session]
    page = FOLDER
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Send a file of the page, or its session."""
        if self.headers.get("Host") not in self._own_names():
            self._send_json(HTTPStatus.FORBIDDEN, {"message": "this server answers to its own address only"})
        elif self.path == "/":
            self._send_page()
        elif self.path == "/token.json":
            self._send_token()
        elif self.path in FILES:
            self._send_file(self.path)
        else:
            self._send_json(HTTPStatus.NOT_FOUND, {"message": "no such page"})

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the library's name
        """Stay silent."""

    def _own_names(self) -> set[str]:
        port = self.connection.getsockname()[1]
        return {f"{HOST}:{port}", f"localhost:{port}"}

    def _send_file(self, path: str) -> None:
        """Send a file of the page, or else of this folder."""
        found = next((file for file in (self.page / path[1:], FOLDER / path[1:]) if file.exists()), None)
        if found is None:
            self._send_json(HTTPStatus.NOT_FOUND, {"message": "no such file"})
        else:
            self._send(HTTPStatus.OK, FILES[path], found.read_bytes())

    def _send_page(self) -> None:
        """Send the page, with the gateway in its script tag and its policy; without a bridge, the usual one."""
        try:
            session = type(self).session()
        except ConfigurationError:
            session = Session(USUAL_GATEWAY, None)
        page = (self.page / "index.html").read_text().replace("GATEWAY", session.gateway)
        policy = POLICY.format(gateway=session.gateway, socket=session.socket_origin)
        self._send(HTTPStatus.OK, "text/html; charset=utf-8", page.encode(), {"Content-Security-Policy": policy})

    def _send_token(self) -> None:
        try:
            self._send_json(HTTPStatus.OK, {"token": type(self).session().token})
        except ConfigurationError as exc:
            self._send_json(HTTPStatus.SERVICE_UNAVAILABLE, {"message": str(exc)})

    def _send_json(self, status: HTTPStatus, value: object) -> None:
        self._send(status, "application/json", json.dumps(value).encode())

    def _send(self, status: HTTPStatus, content_type: str, body: bytes, more: Mapping[str, str] = NO_MORE) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, **more}.items():
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


def build(page: Path) -> None:
    """Install and build a page by npm if it is one for that. Raises `ConfigurationError` if that is not possible."""
    if not (page / "package.json").exists():
        return
    npm = shutil.which("npm")
    if npm is None:
        raise ConfigurationError("this page is built by npm, which is not here")
    for command in (["install", "--silent", "--no-audit", "--no-fund"], ["run", "--silent", "build"]):
        if subprocess.run([npm, *command], cwd=page, check=False).returncode:
            raise ConfigurationError(f"`npm {command[0]}` has failed in {page}")


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Serve the to-do page on loopback.")
    parser.add_argument("--port", type=int, help="port to listen on (8080, or any free one)")
    parser.add_argument("--page", choices=PAGES, default="todo", help="which page (todo)")
    parser.add_argument("--gateway", help="WebSocket URL of a gateway (that of a running `agentbridge up`)")
    parser.add_argument("--token", help="token of the role app, where --gateway is given")
    given = parser.parse_args()
    folder = Path(environment().get("AGENTBRIDGE_DATA_DIR") or "./.agentbridge")
    session = Session(given.gateway, given.token)
    Handler.session = staticmethod(lambda: session if given.gateway else session_of_running_bridge(folder))
    Handler.page = PAGES[given.page]
    try:
        Handler.session()
        build(Handler.page)
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
