"""Fast paths through the insides of libraries: each process says once if a library's version was not tested."""

import re
from pathlib import Path

import pytest
from support.processes.child import Process
from support.settings import environment

NEWER = {"nats-py": "2.17.0", "uvicorn": "0.55.1", "websockets": "17.5"}


def pretend(folder: Path) -> dict[str, str]:
    """Have Python find newer versions of the libraries in `folder` first; return the variable for it."""
    for name, version in NEWER.items():
        distribution = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        distribution.mkdir()
        (distribution / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return {"PYTHONPATH": str(folder)}


def warned(process: Process) -> list[str]:
    return sorted(re.findall(r"\S+ \S+ was not tested with AGENTBRIDGE_FAST_PATHS=on", process.log))


@pytest.mark.parametrize(
    ("module", "libraries"),
    [
        ("registry", ["nats-py"]),
        ("gateway", ["nats-py", "websockets"]),
        ("agent_api", ["nats-py", "uvicorn", "websockets"]),
    ],
)
async def test_process_with_newer_libraries_serves_and_warns_once_of_each(
    module: str, libraries: list[str], nats_url: str, tmp_path: Path
) -> None:
    process = Process(module, tmp_path / "logs", environment(nats_url, fast_paths="on") | pretend(tmp_path))
    try:
        await process.start()
        assert await process.terminate() == 0
    finally:
        process.end()
    assert warned(process) == [
        f"{name} {NEWER[name]} was not tested with AGENTBRIDGE_FAST_PATHS=on" for name in libraries
    ]


async def test_process_without_fast_paths_warns_of_no_version(nats_url: str, tmp_path: Path) -> None:
    process = Process("gateway", tmp_path / "logs", environment(nats_url, fast_paths="off") | pretend(tmp_path))
    try:
        await process.start()
        assert await process.terminate() == 0
    finally:
        process.end()
    assert warned(process) == []
