"""Packages of npm that tests use, installed where they are first needed."""

import fcntl
import shutil
import subprocess
from pathlib import Path

MISSING = not all(map(shutil.which, ("node", "npm")))
INSTALL_SECONDS = 120


def install(folder: Path) -> None:
    """Install what the folder's `package.json` names, unless that is done; tests in other processes wait."""
    done = folder / "node_modules/.package-lock.json"  # npm writes it last
    wanted = folder / "package.json"
    with wanted.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists() or done.stat().st_mtime < wanted.stat().st_mtime:
            command = ["npm", "install", "--silent", "--no-audit", "--no-fund"]
            subprocess.run(command, cwd=folder, check=True, timeout=INSTALL_SECONDS)
