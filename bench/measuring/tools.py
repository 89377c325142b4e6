"""The programs that a bench needs from the machine, and those that it builds itself."""

import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
PEERS = HERE / "peers"
INSTALLED = PEERS / "node_modules/.package-lock.json"  # npm writes it last
BUILD_SECONDS = 120
DEBIAN_PACKAGES = {"gcc": "gcc libc6-dev", "node": "nodejs", "npm": "npm", "redis-server": "redis-server"}


class Missing(Exception):
    """The bench cannot run here; the text is a sentence with the remedy."""


def require(program: str, instead: str = "") -> str:
    """Return the absolute path of a program. Raises `Missing` with a sentence about how to get it or do without."""
    found = shutil.which(program)
    if found is None:
        remedy = f"install it (Debian: apt-get install {DEBIAN_PACKAGES[program]})"
        raise Missing(f"{program} is not on this machine: {remedy}{instead and ', or '}{instead}")
    return str(Path(found).absolute())


def build(folder: Path) -> None:
    """Compile the load generator and the simulated clients into `folder`."""
    compiler = require("gcc")
    for name in ("clients", "load"):
        command = [compiler, "-O2", "-o", str(folder / name), str(HERE / f"{name}.c")]
        subprocess.run(command, check=True, timeout=BUILD_SECONDS)


def install_peers(instead: str) -> str:
    """Install the peers' packages if they are missing, and return the path of node."""
    node, npm = require("node", instead), require("npm", instead)
    if not INSTALLED.exists():
        command = [npm, "install", "--silent", "--no-audit", "--no-fund"]
        try:
            subprocess.run(command, cwd=PEERS, check=True, timeout=BUILD_SECONDS)
        except (subprocess.SubprocessError, OSError) as exc:
            raise Missing(f"npm could not install the peers' packages in {PEERS}: mend that, or {instead}") from exc
    return node
