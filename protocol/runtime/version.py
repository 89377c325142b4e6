"""The version of AgentBridge that runs here, and which versions of libraries its fast paths were tested with.

A fast path uses private parts of a library, which any new version may change. With a version that was not tested, or
with `AGENTBRIDGE_FAST_PATHS=off`, the library's own path runs instead.
"""

import logging
import re
from functools import cache
from importlib import metadata

DISTRIBUTION = "agentbridge-nats"
NOT_INSTALLED = "0.0.0+not-installed"  # processes may run from a checkout beside their installed dependencies
NATS, UVICORN, WEBSOCKETS = "nats-py", "uvicorn", "websockets"
TESTED = {NATS: "2.16", UVICORN: "0.54", WEBSOCKETS: "17.4"}  # major and minor version

log = logging.getLogger(__name__)


def _installed() -> str:
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return NOT_INSTALLED


SERVICE_VERSION = _installed()


def allows_fast_paths(library: str, setting: str) -> bool:
    """Tell whether fast paths through a library may run. `setting` is `on` or `off`.

    If the installed version was not tested, the answer is no, and one line of the log says so.
    """
    return setting == "on" and _is_tested(library)


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
