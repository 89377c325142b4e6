"""The version of AgentBridge that runs here, and which versions of libraries its fast paths were tested with.

A fast path uses private parts of a library, which any new version may change. With a version that was not tested, or
if `AGENTBRIDGE_FAST_PATHS` leaves it out, the library's own path runs instead.
"""

import logging
import re
from functools import cache
from importlib import metadata

DISTRIBUTION = "agentbridge-nats"
NOT_INSTALLED = "0.0.0+not-installed"  # processes may run from a checkout beside their installed dependencies
NATS, UVICORN, WEBSOCKETS = "nats-py", "uvicorn", "websockets"
TESTED = {NATS: "2.16", UVICORN: "0.54", WEBSOCKETS: "17.4"}  # major and minor version
FAST_PATHS = {  # each with the library that it goes through
    "nats_in": NATS,
    "websocket_in": WEBSOCKETS,
    "websocket_out": WEBSOCKETS,
    "http_out": UVICORN,
}

log = logging.getLogger(__name__)


def _installed() -> str:
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return NOT_INSTALLED


SERVICE_VERSION = _installed()


def allows_fast_path(name: str, setting: str) -> bool:
    """Tell whether a fast path may run. `setting` is `on`, `off`, or the names of those that are on, with commas.

    If the installed version of its library was not tested, the answer is no, and one line of the log says so.
    """
    return (setting == "on" or name in setting.split(",")) and _is_tested(FAST_PATHS[name])


@cache  # one line per process
def _is_tested(library: str) -> bool:
    installed = metadata.version(library)
    if _minor(installed) == _minor(TESTED[library]):
        return True
    log.warning(
        "%s %s was not tested with AGENTBRIDGE_FAST_PATHS=on, but %s was: its fast paths are off",
        library,
        installed,
        TESTED[library],
    )
    return False


def _minor(version: str) -> tuple[str, ...]:
    """Return the major and the minor version."""
    return tuple(re.findall(r"\d+", version)[:2])
