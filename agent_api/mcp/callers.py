"""The caller of a request, and the headers of the protocol."""

from collections.abc import Iterable

import msgspec

from agent_api.http import sse
from agent_api.http.problems import JSON
from agent_api.tools.views import Narrowing
from protocol.access import Principal

VERSION, SESSION, ACCEPT = b"mcp-protocol-version", b"mcp-session-id", b"accept"
MAX_SESSION_CHARS = 128


class McpCaller(msgspec.Struct, frozen=True):
    """The caller and its selection of tools. `session` is the namespace of its request ids in the older era."""

    principal: Principal
    token: str | None
    narrowing: Narrowing
    session: str = ""


class McpHead(msgspec.Struct, frozen=True):
    """The headers of a request, by lower-case name. Of a repeated header it has the first."""

    headers: dict[str, str]
    names: tuple[str, ...]

    @property
    def version(self) -> str | None:
        """The revision of the protocol, or None if the request does not name it."""
        return self.headers.get(VERSION.decode())

    @property
    def session(self) -> str:
        """The session name that we gave this client; "" if it has none, or a malformed one."""
        given = self.headers.get(SESSION.decode(), "")
        return given if len(given) <= MAX_SESSION_CHARS and given.isprintable() else ""

    @property
    def takes_json(self) -> bool:
        """Whether the client reads JSON."""
        return self._takes(JSON.decode(), "application/*")

    @property
    def takes_events(self) -> bool:
        """Whether the client reads server-sent events."""
        return self._takes(sse.TYPE.decode(), "text/*")

    def _takes(self, *kinds: str) -> bool:
        accepted = self.headers.get(ACCEPT.decode(), "").lower().split(",")
        return not {"*/*", *kinds}.isdisjoint(kind.partition(";")[0].strip() for kind in accepted)


def read_mcp_head(headers: Iterable[tuple[bytes, bytes]]) -> McpHead:
    """Read the headers of a request."""
    found: dict[str, str] = {}
    names: list[str] = []
    for name, value in headers:
        key, text = name.decode("latin-1"), value.decode("latin-1")
        names.append(key)
        found[key] = f"{found[key]},{text}" if key == ACCEPT.decode() and key in found else found.get(key, text)
    return McpHead(found, tuple(names))
