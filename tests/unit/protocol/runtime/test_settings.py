"""Settings: each wrong value gives one line that names the variable and what it should be."""

from pathlib import Path

import pytest
from support.settings import SECRET

from protocol.errors import ConfigurationError
from protocol.runtime.settings import (
    Port,
    Replicas,
    ServingSettings,
    Settings,
    load,
    require_loopback,
    split_list,
    variable,
)

FAST_PATHS = "on, off, or those that are on, with commas between: nats_in, websocket_in, websocket_out, http_out"
GOOD = {"AGENTBRIDGE_JWT_SECRET": SECRET}


class Listening(Settings, frozen=True, kw_only=True):
    port: Port = 8000
    replicas: Replicas = 1


def refusal(values: dict[str, str], kind: type[Settings] = Listening) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(kind, {variable(name): value for name, value in values.items()})
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("name", "value", "should_be"),
    [
        ("port", "http", "a port from 0 to 65535; 0 takes any free one"),
        ("port", "-1", "a port from 0 to 65535; 0 takes any free one"),
        ("port", "65536", "a port from 0 to 65535; 0 takes any free one"),
        ("port", "80.5", "a port from 0 to 65535; 0 takes any free one"),
        ("replicas", "2", "1, 3 or 5 servers that keep each stream"),
        ("replicas", "0", "1, 3 or 5 servers that keep each stream"),
        ("drain_seconds", "0", "a number of seconds greater than 0"),
        ("drain_seconds", "nan", "a number of seconds greater than 0"),
        ("drain_seconds", "inf", "a number of seconds greater than 0"),
        ("drain_seconds", "ten", "a number of seconds greater than 0"),
        ("max_message_bytes", "1023", "bytes, from 1024 to 67108864"),
        ("max_message_bytes", "1MB", "bytes, from 1024 to 67108864"),
        ("nats_url", "localhost:4222", "nats://host:port or tls://host:port, several with commas between"),
        ("nats_url", "http://localhost", "nats://host:port or tls://host:port, several with commas between"),
        ("nats_url", "ws://a", "nats://host:port or tls://host:port, several with commas between"),
        ("nats_url", "nats://a,wss://b", "nats://host:port or tls://host:port, several with commas between"),
        ("nats_url", "nats://a,,nats://b", "nats://host:port or tls://host:port, several with commas between"),
        ("nats_url", "nats://a b", "nats://host:port or tls://host:port, several with commas between"),
        ("jwt_jwks_url", "file:///etc/passwd", "an http(s) URL"),
        ("fast_paths", "nats_in,", FAST_PATHS),
        ("fast_paths", "nats", FAST_PATHS),
        ("fast_paths", "off,nats_in", FAST_PATHS),
        ("auth", "OFF", "jwt, or off (loopback only)"),
        ("log_format", "xml", "console or json"),
        ("log_level", "loud", "debug, info, warning or error"),
        ("log_level", "in\nfo", "debug, info, warning or error"),
    ],
)
def test_wrong_value_is_told_in_one_line(name: str, value: str, should_be: str) -> None:
    assert refusal({"jwt_secret": SECRET, name: value}) == f"{variable(name)} is {value!r}, but should be {should_be}"


def test_short_secret_is_refused_without_printing_it() -> None:
    assert refusal({"jwt_secret": "hunter2"}) == "AGENTBRIDGE_JWT_SECRET should be a secret of at least 32 bytes"


def test_credentials_in_a_wrong_url_are_not_printed() -> None:
    for url in ("nats://bob:hunter2@a, nope://bob:hunter2@b", "bob:hunter2@a"):
        line = refusal({"jwt_secret": SECRET, "nats_url": url})
        assert "hunter2" not in line
        assert "bob" not in line
        assert "AGENTBRIDGE_NATS_URL" in line


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"jwt_secret": SECRET, "jwt_jwks_url": "http://k"},
        {"jwt_public_key_file": __file__, "jwt_secret": SECRET},
    ],
)
def test_exactly_one_key_is_needed_to_verify_tokens(keys: dict[str, str]) -> None:
    line = refusal(keys)
    assert line.startswith(
        "one of AGENTBRIDGE_JWT_SECRET, AGENTBRIDGE_JWT_PUBLIC_KEY_FILE and AGENTBRIDGE_JWT_JWKS_URL"
    )
    assert "AGENTBRIDGE_AUTH=off" in line
    assert SECRET not in line


@pytest.mark.parametrize("name", ["nats_creds", "nats_ca", "jwt_public_key_file"])
def test_file_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    line = refusal({"jwt_secret": SECRET, name: str(absent)})
    assert line == f"{variable(name)} is {str(absent)!r}, which cannot be read: No such file or directory"
    assert refusal({"jwt_secret": SECRET, name: str(tmp_path)}).endswith("cannot be read: Is a directory")


def test_defaults_stand_where_a_variable_is_absent_or_empty() -> None:
    assert load(Listening, GOOD | {"AGENTBRIDGE_PORT": " ", "AGENTBRIDGE_LOG_LEVEL": ""}) == load(Listening, GOOD)
    assert load(Settings, GOOD).nats_servers == ["nats://127.0.0.1:4222"]


def test_values_are_read() -> None:
    loaded = load(
        Listening,
        GOOD
        | {
            "AGENTBRIDGE_PORT": "0",
            "AGENTBRIDGE_REPLICAS": "3",
            "AGENTBRIDGE_DRAIN_SECONDS": "0.5",
            "AGENTBRIDGE_NATS_URL": "nats://a:4222 , tls://b",
            "AGENTBRIDGE_UNKNOWN": "x",
        },
    )
    assert (loaded.port, loaded.replicas, loaded.drain_seconds) == (0, 3, 0.5)
    assert loaded.nats_servers == ["nats://a:4222", "tls://b"]


def test_no_key_is_needed_where_authentication_is_off() -> None:
    assert load(Settings, {"AGENTBRIDGE_AUTH": "off"}).jwt_secret is None


def test_command_s_timeout_is_at_most_the_longest() -> None:
    line = refusal({"jwt_secret": SECRET, "command_timeout_ms": "300001"}, ServingSettings)
    assert line == (
        "AGENTBRIDGE_COMMAND_TIMEOUT_MS is 300001, but should be at most AGENTBRIDGE_MAX_COMMAND_TIMEOUT_MS, "
        "which is 300000"
    )
    assert load(ServingSettings, GOOD | {"AGENTBRIDGE_COMMAND_TIMEOUT_MS": "300000"}).command_timeout_ms == 300_000


def test_ill_origin_is_told_before_anything_starts() -> None:
    line = refusal({"jwt_secret": SECRET, "allowed_origins": "app.example.com"}, ServingSettings)
    assert line.startswith("AGENTBRIDGE_ALLOWED_ORIGINS holds 'app.example.com', but an origin is scheme://host")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.1", "example.com", "127.0.0.1.example.com"])
def test_authentication_is_never_off_beyond_loopback(host: str) -> None:
    off, on = load(Settings, {"AGENTBRIDGE_AUTH": "off"}), load(Settings, GOOD)
    with pytest.raises(ConfigurationError, match="AGENTBRIDGE_AUTH=off is for loopback only, but AGENTBRIDGE_API_HOST"):
        require_loopback(off, host, "API_HOST")
    require_loopback(on, host, "API_HOST")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_authentication_may_be_off_on_loopback(host: str) -> None:
    require_loopback(load(Settings, {"AGENTBRIDGE_AUTH": "off"}), host, "API_HOST")


@pytest.mark.parametrize(("text", "parts"), [("", []), (" , ", []), ("a", ["a"]), (" a ,b,, c ", ["a", "b", "c"])])
def test_list_is_split_without_blanks(text: str, parts: list[str]) -> None:
    assert split_list(text) == parts


@pytest.mark.parametrize("also", ["short", f"{'n' * 32},short", "n" * 31])
def test_more_secrets_are_as_long_as_the_first_and_never_shown(also: str) -> None:
    with pytest.raises(
        ConfigurationError, match=r"AGENTBRIDGE_JWT_SECRETS_ALSO should be secrets of at least 32 bytes"
    ) as told:
        load(Settings, {"AGENTBRIDGE_JWT_SECRET": "s" * 32, "AGENTBRIDGE_JWT_SECRETS_ALSO": also})
    assert also not in str(told.value)


def test_more_secrets_need_a_first_one() -> None:
    with pytest.raises(ConfigurationError, match="which is not set"):
        load(Settings, {"AGENTBRIDGE_JWT_JWKS_URL": "https://x.example.com", "AGENTBRIDGE_JWT_SECRETS_ALSO": "n" * 32})
