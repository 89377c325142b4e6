"""The query strings of `GET /api/tools`, of `POST /api/tools/{name}` and of `/mcp`."""

from collections.abc import Collection, Iterable
from urllib.parse import parse_qsl

from agent_api.tools.calls import timeout_ms_of, wrong_timeout
from agent_api.tools.formats import FORMATS
from agent_api.tools.views import MAX_SHOWN, Narrowing
from protocol.errors import InvalidRequest

FORMAT, TOOLS, APP, CLIENT_ID, TIMEOUT_MS = "format", "tools", "app", "clientId", "timeoutMs"
NARROWING = (TOOLS, APP)
MAX_DIGITS = 20


def read_parameters(query: bytes, known: Collection[str]) -> dict[str, str]:
    """Decode a query string. Raises `InvalidRequest` for an unknown parameter or a repeated one."""
    return single(parse_qsl(query.decode("latin-1"), keep_blank_values=True), known)


def single(parameters: Iterable[tuple[str, str]], known: Collection[str]) -> dict[str, str]:
    """Return parameters by name. Raises `InvalidRequest` as `read_parameters()` does."""
    found: dict[str, str] = {}
    for name, value in parameters:
        if name not in known:
            raise InvalidRequest(f"unknown query parameter `{name[:64]}`; known are {', '.join(known)}")
        if name in found:
            raise InvalidRequest(f"the query parameter `{name}` is repeated")
        found[name] = value
    return found


def narrowing_of(parameters: dict[str, str]) -> Narrowing:
    """Return the selection of tools. Raises `InvalidRequest` for more names than a list can have."""
    if TOOLS not in parameters:
        return Narrowing(parameters.get(APP))
    names = frozenset(name for name in parameters[TOOLS].split(",") if name)
    if not names or len(names) > MAX_SHOWN:
        raise InvalidRequest(f"`{TOOLS}`: must be 1 to {MAX_SHOWN} names of tools with commas between")
    return Narrowing(parameters.get(APP), names)


def format_of(parameters: dict[str, str]) -> str:
    """Return the format of the tools. Raises `InvalidRequest` for an unknown one."""
    name = parameters.get(FORMAT, "mcp")
    if name not in FORMATS:
        raise InvalidRequest(f"`{FORMAT}`: must be one of {', '.join(FORMATS)}")
    return name


def timeout_of(parameters: dict[str, str]) -> int | None:
    """Return how many milliseconds a caller waits; None if it does not say. Raises `InvalidRequest`."""
    text = parameters.get(TIMEOUT_MS)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > MAX_DIGITS:
        raise wrong_timeout(f"`{TIMEOUT_MS}`")
    return timeout_ms_of(int(text), f"`{TIMEOUT_MS}`")
