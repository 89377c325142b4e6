"""JavaScript of the documentation, run by Node with the packages that it imports."""

import asyncio
import json
import subprocess
from pathlib import Path

from support.paths import ROOT
from support.processes import npm

PACKAGES = ROOT / "tests/support/node"
RUN_SECONDS = 60


async def run(code: str, names: dict[str, str], folder: Path) -> str:
    """Return what a module prints that takes these names for granted; it must end by itself and well."""
    await asyncio.to_thread(npm.install, PACKAGES)
    (folder / "node_modules").symlink_to(PACKAGES / "node_modules")
    module = folder / "example.mjs"
    given = [f"const {name} = {json.dumps(value)};" for name, value in names.items()]
    module.write_text("\n".join([*given, code]))
    ended = await asyncio.to_thread(_run, ["node", str(module)], folder, RUN_SECONDS)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def _run(command: list[str], folder: Path, seconds: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=seconds, check=False)
