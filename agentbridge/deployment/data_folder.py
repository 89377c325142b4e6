"""The folder of a running `agentbridge up`: a lock, and `run.json`, with which other commands reach it.

The lock ends with the process, however that ends. A killed process leaves `run.json` behind, so the file counts only
while the folder is locked.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import msgspec

from protocol.errors import ConfigurationError
from protocol.runtime.settings import variable

DATA_DIR = "./.agentbridge"
RUN_FILE = "run.json"
LOCK_FILE = "up.lock"
LOCK_ATTEMPTS = 20
LOCK_WAIT_SECONDS = 0.01


class RunFile(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """The addresses and secrets of a running `up`. Only its owner may read the file."""

    pid: int
    api_url: str
    gateway_url: str
    nats_url: str
    nats_user: str | None = None
    nats_password: str | None = None
    authentication: bool = True
    jwt_secret: str | None = None
    jwt_audience: str | None = None
    jwt_issuer: str | None = None


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Make the folder and lock it for this process. Raises `ConfigurationError` if another `up` has locked it."""
    with _open_lock(folder) as lock:
        if not _take(lock):
            raise ConfigurationError(
                f"`agentbridge up` already runs in {folder}: stop it, or set {variable('data_dir')} to another folder"
            )
        yield


def _take(lock: TextIO) -> bool:
    """Take the lock, and return whether that succeeded. Try for 0.2 s, because a check of the lock holds it briefly."""
    for _ in range(LOCK_ATTEMPTS):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(LOCK_WAIT_SECONDS)
    return False


def _open_lock(folder: Path) -> TextIO:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / ".gitignore").write_text("*\n")
        return (folder / LOCK_FILE).open("a")
    except OSError as exc:
        raise ConfigurationError(
            f"cannot keep data in {folder} ({exc.strerror}): set {variable('data_dir')} to another folder"
        ) from exc


@contextlib.contextmanager
def published(folder: Path, content: RunFile) -> Iterator[None]:
    """Write `run.json` into the folder, readable by its owner alone, and remove it on exit."""
    path, new = folder / RUN_FILE, folder / f"{RUN_FILE}.new"
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(content)) + b"\n")
    new.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def read(folder: Path) -> RunFile | None:
    """Return the run file of the `up` that runs in this folder, or None if none runs.

    Raises `ConfigurationError` if the file cannot be read.
    """
    path = folder / RUN_FILE
    try:
        content = msgspec.json.decode(path.read_bytes(), type=RunFile)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as exc:
        raise ConfigurationError(f"{path} cannot be read: remove it, or set {variable('data_dir')}") from exc
    return content if _held(folder) else None


def _held(folder: Path) -> bool:
    """Tell whether an `up` has locked the folder. A process id proves nothing, because ids are used again."""
    try:
        with (folder / LOCK_FILE).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
