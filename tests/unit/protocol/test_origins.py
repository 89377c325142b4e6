import pytest

from protocol.errors import ConfigurationError
from protocol.origins import LOOPBACK, Origins, names_loopback


@pytest.mark.parametrize(
    "origin",
    ["https://app.example.com", "https://APP.example.com:443", "http://localhost:5173", "http://localhost", None],
)
def test_listed_origin_is_allowed(origin: str | None) -> None:
    assert Origins("https://app.example.com, http://localhost:*").allows(origin)


@pytest.mark.parametrize(
    "origin",
    [
        "http://app.example.com",
        "https://app.example.com:8443",
        "https://app.example.com.evil.example",
        "http://localhost.evil.example:80",
        "http://localhost:5173.evil.example",
        "https://localhost:5173",
        "null",
        "",
    ],
)
def test_other_origin_is_refused(origin: str) -> None:
    assert not Origins("https://app.example.com, http://localhost:*").allows(origin)


def test_nothing_listed_refuses_every_browser() -> None:
    assert not Origins("").allows("http://localhost:3000")


def test_star_allows_every_origin() -> None:
    origins = Origins("*")
    assert origins.allows("https://anything.example")
    assert origins.allows("null")


@pytest.mark.parametrize(
    ("setting", "allowed"),
    [
        ("null", {"null"}),
        ("file://", {"file://"}),
        ("https://app.example.com, NULL", {"null", "https://app.example.com"}),
        ("null,file://", {"null", "file://"}),
        ("capacitor://localhost app://.", {"capacitor://localhost", "app://."}),
        ("https://null", {"https://null"}),
    ],
)
def test_origin_that_is_no_web_address_is_allowed_by_its_name_alone(setting: str, allowed: set[str]) -> None:
    origins, some = Origins(setting), ("null", "file://", "file:///", "capacitor://localhost", "app://.", "")
    assert {
        origin for origin in (*some, "https://app.example.com", "https://null") if origins.allows(origin)
    } == allowed


@pytest.mark.parametrize(
    "origin", ["http://localhost:3000", "http://127.0.0.1:8000", "https://[::1]:8443", "http://[::1]"]
)
def test_loopback_covers_every_local_port(origin: str) -> None:
    assert Origins(LOOPBACK).allows(origin)


@pytest.mark.parametrize(
    "entry",
    [
        "app.example.com",
        "https://",
        "https://app.example.com/path",
        "http://*:80",
        "a b",
        "file:",
        "file:///",
        "null:*",
        "file://:*",
    ],
)
def test_entry_that_is_no_origin_is_refused_with_the_variable(entry: str) -> None:
    with pytest.raises(ConfigurationError, match="AGENTBRIDGE_ALLOWED_ORIGINS"):
        Origins(entry)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]", "[::1]:8000"])
def test_host_of_this_machine(host: str) -> None:
    assert names_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost.evil.example:8000",
        "127.0.0.1@evil.example",
        "0.0.0.0:8000",
        "::1",
        "localhost:",
        "",
    ],
)
def test_host_of_others(host: str) -> None:
    assert not names_loopback(host)
