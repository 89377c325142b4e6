"""Serves the library for applications, and tells pages whether they may connect.

`Origin` is not checked here, because a page of any origin may load the library. It is checked when the page connects.
To a script in a browser a refused origin looks like a dead gateway, so `/agentbridge.json` tells the difference.
"""

import gzip
import hashlib
import http
from importlib import resources
from typing import NamedTuple

import msgspec
from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from protocol.origins import Origins

ABOUT_PATH = "/agentbridge.json"
CONTENT_TYPES = {
    "/agentbridge.js": "text/javascript; charset=utf-8",
    "/agentbridge.mjs": "text/javascript; charset=utf-8",
    "/agentbridge.d.mts": "text/plain; charset=utf-8",
}
PATHS = frozenset({ABOUT_PATH, *CONTENT_TYPES})
OPEN_TO_ALL = {"Access-Control-Allow-Origin": "*", "Cross-Origin-Resource-Policy": "cross-origin"}


class Representation(NamedTuple):
    """The bytes of a file in one encoding, and their entity tag."""

    body: bytes
    etag: str


class LibraryFile(NamedTuple):
    """A file, plain and gzipped."""

    content_type: str
    plain: Representation
    gzipped: Representation


class LibraryFiles:
    """Answers requests for the library. The files are read once, at the start."""

    def __init__(self, origins: Origins, version: str) -> None:
        self._origins = origins
        self._version = version
        self._files = {path: _read(path, content_type) for path, content_type in CONTENT_TYPES.items()}

    def answer(self, connection: ServerConnection, request: Request, path: str) -> Response:
        """Return the answer for a path of `PATHS`."""
        return self._about(connection, request) if path == ABOUT_PATH else self._file(connection, request, path)

    def _about(self, connection: ServerConnection, request: Request) -> Response:
        allowed = all(map(self._origins.allows, request.headers.get_all("Origin")))
        about = {"origin": "allowed" if allowed else "refused", "version": self._version}
        body = msgspec.json.encode(about)
        headers = {"Content-Type": "application/json", "Cache-Control": "no-store", "Vary": "Origin"}
        return _response(connection, http.HTTPStatus.OK, body, headers)

    def _file(self, connection: ServerConnection, request: Request, path: str) -> Response:
        """Return a file, or 304 if the browser has it. `no-cache` makes the browser ask each time."""
        file = self._files[path]
        zipped = _accepts_gzip(request)
        body, etag = file.gzipped if zipped else file.plain
        headers = {"ETag": etag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        if _has_current(request, etag):
            return _response(connection, http.HTTPStatus.NOT_MODIFIED, b"", headers)
        if zipped:
            headers["Content-Encoding"] = "gzip"
        headers |= {"Content-Type": file.content_type, "X-Content-Type-Options": "nosniff"}
        return _response(connection, http.HTTPStatus.OK, body, headers)


def _read(path: str, content_type: str) -> LibraryFile:
    body = (resources.files("gateway.static") / path[1:]).read_bytes()
    tag = hashlib.sha256(body).hexdigest()[:16]
    zipped = gzip.compress(body, mtime=0)
    return LibraryFile(content_type, Representation(body, f'"{tag}"'), Representation(zipped, f'"{tag}-gzip"'))


def _accepts_gzip(request: Request) -> bool:
    """Tell whether `Accept-Encoding` names gzip without `q=0`. Other weights are ignored: browsers send none."""
    codings = ",".join(request.headers.get_all("Accept-Encoding")).lower().split(",")
    return any(
        coding.strip() == "gzip" and not weight.replace(" ", "").rstrip("0.").endswith("q=")
        for coding, _, weight in (each.partition(";") for each in codings)
    )


def _has_current(request: Request, etag: str) -> bool:
    """Tell whether `If-None-Match` names this tag, compared weakly (RFC 9110 section 13.1.2)."""
    tags = {tag.strip().removeprefix("W/") for tag in ",".join(request.headers.get_all("If-None-Match")).split(",")}
    return etag in tags or "*" in tags


def _response(
    connection: ServerConnection, status: http.HTTPStatus, body: bytes, more_headers: dict[str, str]
) -> Response:
    response = connection.respond(status, "")
    headers = Headers(response.headers)
    for name in ("Content-Type", "Content-Length"):
        del headers[name]
    if status is not http.HTTPStatus.NOT_MODIFIED:
        headers["Content-Length"] = str(len(body))
    headers.update(OPEN_TO_ALL | more_headers)
    response.headers, response.body = headers, body
    return response
