"""A web site of a test's own: pages by path, and tokens for whoever is logged in."""

import contextlib
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from support.paths import ROOT
from support.settings import app_token

STRICT = (
    "default-src 'self'; script-src 'self' {gateway}; connect-src 'self' {gateway} {socket}; "
    "require-trusted-types-for 'script'"
)
PAGE = """<!doctype html><html lang="en"><meta name="viewport" content="width=device-width">
<link rel="icon" href="/icon.svg">
<title>A page</title><h1>A page</h1>
{before}<script src="{library}" data-token-url="/token" data-app="page"{attributes}></script>
<script src="/app.js"></script></html>"""
LIBRARY = ROOT / "gateway/static/agentbridge.js"
Answer = tuple[int, object]


class Site:
    """What the site serves. `token` gives the status and the body of `/token`; every page is under a strict policy."""

    def __init__(self, url: str, gateway_url: str) -> None:
        self.url = url
        parts = urlsplit(gateway_url)
        self.socket = f"{parts.scheme}://{parts.netloc}"
        self.gateway = self.socket.replace("ws", "http", 1)
        self.asked = 0
        self.token: Callable[[], Answer] = lambda: (200, {"token": app_token("ann")})
        self.files = {"/icon.svg": ("<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml")}

    def page(self, script: str, attributes: str = "", before: str | None = None, path: str = "/") -> str:
        """Serve a page with the gateway's library and a script after it, and perhaps one before; return its URL."""
        return self._page(f"{self.gateway}/agentbridge.js", script, attributes, before, path)

    def page_with_library(self, script: str = "") -> str:
        """Serve a page and a copy of the library, for browsers that load none from the gateway; return its URL."""
        self.files["/agentbridge.js"] = (LIBRARY.read_text(), "text/javascript")
        return self._page("/agentbridge.js", script, f'data-gateway="{self.gateway}"', None, "/")

    def _page(self, library: str, script: str, attributes: str, before: str | None, path: str) -> str:
        first = "" if before is None else '<script src="/before.js"></script>'
        page = PAGE.format(library=library, attributes=f" {attributes}", before=first)
        self.files[path] = (page, "text/html; charset=utf-8")
        self.files["/app.js"] = (script, "text/javascript")
        self.files["/before.js"] = (before or "", "text/javascript")
        return self.url + path

    def answer(self, path: str) -> tuple[int, str, str]:
        """Return the status, body and type of what is at a path."""
        if path == "/token":
            self.asked += 1
            status, body = self.token()
            return status, json.dumps(body), "application/json"
        text, content_type = self.files.get(path, ("", ""))
        return (200 if content_type else 404), text, content_type or "text/plain"


@contextlib.contextmanager
def site(gateway_url: str, *, host: str = "127.0.0.1", certificate: tuple[Path, Path] | None = None) -> Iterator[Site]:
    """Serve on loopback, until the end: under a name if the browser knows one, by https if there is a certificate."""
    served: list[Site] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text, content_type = served[0].answer(self.path.partition("?")[0])
            body = text.encode()
            self.send_response(status)
            policy = STRICT.format(gateway=served[0].gateway, socket=served[0].socket)
            headers = {
                "Content-Type": content_type,
                "Content-Length": str(len(body)),
                "Content-Security-Policy": policy,
            }
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the library's name
            """Stay silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        scheme = "http" if certificate is None else "https"
        served.append(Site(f"{scheme}://{host}:{server.server_address[1]}", gateway_url))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield served[0]
        finally:
            server.shutdown()
            thread.join()
