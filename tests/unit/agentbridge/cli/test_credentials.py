"""Flags beat the environment, which beats the `run.json` of a running `up`."""

import os
from collections.abc import Iterator
from pathlib import Path

import jwt
import msgspec
import pytest
from support.settings import SECRET, agent_token

from agentbridge.cli.credentials import logs_in_by_token, resolve, tenant_of, token_of, user_of
from agentbridge.deployment import data_folder
from agentbridge.deployment.data_folder import RunFile
from protocol.errors import ConfigurationError
from protocol.runtime.nats.agent_login import user_name

RUNNING = RunFile(
    pid=os.getpid(),
    api_url="http://127.0.0.1:8000",
    gateway_url="ws://127.0.0.1:8001/ws",
    nats_url="nats://127.0.0.1:4999",
    jwt_secret=SECRET,
    jwt_audience="agentbridge",
)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of somebody in whose folder `up` runs."""
    with data_folder.hold(tmp_path), data_folder.published(tmp_path, RUNNING):
        yield {"AGENTBRIDGE_DATA_DIR": str(tmp_path)}


def test_running_up_gives_everything_and_commands_log_in_by_their_token(running: dict[str, str]) -> None:
    found = resolve({}, running)
    assert (found.nats_url, found.nats_user, found.nats_password) == ("nats://127.0.0.1:4999", None, None)
    assert found.jwt_secret == SECRET
    assert logs_in_by_token(found)


@pytest.mark.parametrize(
    "own",
    [
        {"AGENTBRIDGE_NATS_USER": "console"},
        {"AGENTBRIDGE_NATS_URL": "nats://console:secret@127.0.0.1:4222"},
    ],
)
def test_nats_user_of_ones_own_beats_the_token(running: dict[str, str], own: dict[str, str]) -> None:
    assert not logs_in_by_token(resolve({}, running | own))


OWN_NATS = msgspec.structs.replace(RUNNING, nats_user="mine", nats_password="p-of-mine")


@pytest.fixture
def beside_own_nats(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of somebody whose `up` was given a NATS with a user, which may know of no tokens."""
    with data_folder.hold(tmp_path), data_folder.published(tmp_path, OWN_NATS):
        yield {"AGENTBRIDGE_DATA_DIR": str(tmp_path)}


def test_user_of_a_nats_of_ones_own_is_taken_unless_a_token_is_given(beside_own_nats: dict[str, str]) -> None:
    found = resolve({}, beside_own_nats)
    assert (found.nats_user, found.nats_password) == ("mine", "p-of-mine")
    assert not logs_in_by_token(found)
    assert logs_in_by_token(resolve({"token": agent_token()}, beside_own_nats))


def test_token_names_the_user_that_it_leads_to() -> None:
    assert user_of(agent_token("ann", tenant="acme")) == user_name("acme", "ann")
    assert user_of(None) == user_name("default", "anonymous")


def test_environment_beats_the_running_up(running: dict[str, str]) -> None:
    other = "another-secret-that-only-tests-use-012345"
    found = resolve({}, running | {"AGENTBRIDGE_NATS_USER": "agent_default", "AGENTBRIDGE_JWT_SECRET": other})
    assert (found.nats_url, found.nats_user, found.jwt_secret) == ("nats://127.0.0.1:4999", "agent_default", other)


def test_flag_beats_the_environment(running: dict[str, str]) -> None:
    given = running | {"AGENTBRIDGE_NATS_URL": "nats://environment:4222", "AGENTBRIDGE_TOKEN": "environment"}
    found = resolve({"nats_url": "nats://flag:4222", "token": None}, given)
    assert (found.nats_url, found.token) == ("nats://flag:4222", "environment")


def test_password_of_up_is_not_sent_to_another_server(beside_own_nats: dict[str, str]) -> None:
    found = resolve({"nats_url": "nats://elsewhere:4222"}, beside_own_nats)
    assert (found.nats_user, found.nats_password) == (None, None)


def test_password_of_up_is_not_joined_to_another_user(beside_own_nats: dict[str, str]) -> None:
    assert resolve({"nats_user": "agent_default"}, beside_own_nats).nats_password is None


def test_folder_may_be_a_flag(running: dict[str, str]) -> None:
    assert resolve({"data_dir": running["AGENTBRIDGE_DATA_DIR"]}, {}).jwt_secret == SECRET


def test_nothing_given_and_nothing_running_is_the_default_server(tmp_path: Path) -> None:
    found = resolve({"data_dir": str(tmp_path)}, {"AGENTBRIDGE_NATS_URL": "  "})
    assert (found.nats_url, found.nats_user, found.jwt_secret) == ("nats://127.0.0.1:4222", None, None)


def test_run_file_of_an_up_that_was_killed_is_ignored(tmp_path: Path) -> None:
    (tmp_path / data_folder.RUN_FILE).write_bytes(msgspec.json.encode(RUNNING))
    assert resolve({}, {"AGENTBRIDGE_DATA_DIR": str(tmp_path)}).nats_url == "nats://127.0.0.1:4222"


def test_wrong_value_is_refused_with_the_variable() -> None:
    with pytest.raises(ConfigurationError, match="AGENTBRIDGE_NATS_URL"):
        resolve({"nats_url": "somewhere"}, {})


def test_given_token_is_used_as_it_is(running: dict[str, str]) -> None:
    assert token_of(resolve({"token": "given"}, running)) == "given"


def test_shared_secret_makes_a_token_of_our_own(running: dict[str, str]) -> None:
    token = token_of(resolve({}, running))
    assert token is not None
    claims = jwt.decode(token, SECRET, algorithms=["HS256"], audience="agentbridge")
    assert (claims["sub"], claims["role"], claims["permissions"]) == ("command-line", "admin", ["*"])


def test_without_a_secret_there_is_no_token(tmp_path: Path) -> None:
    assert token_of(resolve({"data_dir": str(tmp_path)}, {})) is None


def test_tenant_is_the_token_s() -> None:
    assert tenant_of(agent_token(tenant="acme")) == "acme"
    assert tenant_of(agent_token()) == "default"
    assert tenant_of(None) == "default"


@pytest.mark.parametrize("token", ["no token", agent_token(tenant="a.b")])
def test_token_without_a_usable_tenant_is_refused(token: str) -> None:
    with pytest.raises(ConfigurationError, match="token"):
        tenant_of(token)
