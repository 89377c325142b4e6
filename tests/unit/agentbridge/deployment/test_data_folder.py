import fcntl
import os
import stat
import threading
from pathlib import Path

import msgspec
import pytest

from agentbridge.deployment import data_folder
from agentbridge.deployment.data_folder import RunFile
from protocol.errors import ConfigurationError

RUNNING = RunFile(
    pid=os.getpid(), api_url="http://127.0.0.1:1", gateway_url="ws://127.0.0.1:2/ws", nats_url="nats://127.0.0.1:3"
)


def test_run_file_is_for_its_owner_alone_and_goes_with_up(tmp_path: Path) -> None:
    path = tmp_path / data_folder.RUN_FILE
    with data_folder.hold(tmp_path), data_folder.published(tmp_path, RUNNING):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert data_folder.read(tmp_path) == RUNNING
    assert not path.exists()


def test_run_file_left_by_a_killed_up_is_replaced(tmp_path: Path) -> None:
    (tmp_path / data_folder.RUN_FILE).write_bytes(msgspec.json.encode(RUNNING))
    (tmp_path / f"{data_folder.RUN_FILE}.new").touch(0o644)
    again = msgspec.structs.replace(RUNNING, nats_url="nats://127.0.0.1:4")
    with data_folder.hold(tmp_path), data_folder.published(tmp_path, again):
        assert stat.S_IMODE((tmp_path / data_folder.RUN_FILE).stat().st_mode) == 0o600
        found = data_folder.read(tmp_path)
    assert found is not None
    assert found.nats_url == "nats://127.0.0.1:4"


def test_run_file_left_by_a_killed_up_counts_for_nothing_though_its_pid_lives(tmp_path: Path) -> None:
    (tmp_path / data_folder.RUN_FILE).write_bytes(msgspec.json.encode(RUNNING))
    assert data_folder.read(tmp_path) is None
    with data_folder.hold(tmp_path):
        pass
    assert data_folder.read(tmp_path) is None


def test_folder_can_be_claimed_while_others_look_whether_it_is(tmp_path: Path) -> None:
    with data_folder.hold(tmp_path):
        pass
    looking, over = threading.Event(), threading.Event()

    def look() -> None:
        with (tmp_path / data_folder.LOCK_FILE).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            looking.set()
            over.wait(data_folder.LOCK_WAIT_SECONDS * 2)

    looker = threading.Thread(target=look)
    looker.start()
    looking.wait()
    with data_folder.hold(tmp_path):
        over.set()
    looker.join()


def test_no_run_file_means_that_nothing_runs(tmp_path: Path) -> None:
    assert data_folder.read(tmp_path) is None


def test_run_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / data_folder.RUN_FILE).write_text("{")
    with pytest.raises(ConfigurationError, match=r"run\.json"):
        data_folder.read(tmp_path)


def test_folder_belongs_to_one_up_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with data_folder.hold(folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        with pytest.raises(ConfigurationError, match="AGENTBRIDGE_DATA_DIR"), data_folder.hold(folder):
            pass
    with data_folder.hold(folder):
        pass


def test_folder_is_kept_out_of_version_control(tmp_path: Path) -> None:
    with data_folder.hold(tmp_path):
        assert (tmp_path / ".gitignore").read_text() == "*\n"


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="AGENTBRIDGE_DATA_DIR"), data_folder.hold(tmp_path / "file/data"):
        pass
