from typing import Any

import pytest
from support.settings import settings_for

from agent_api.settings import ApiSettings
from protocol.errors import ConfigurationError


def test_defaults_are_loopback_and_thirty_seconds() -> None:
    settings = settings_for(ApiSettings, api_port=None)
    assert (settings.api_host, settings.api_port) == ("127.0.0.1", 8000)
    assert (settings.command_timeout_ms, settings.max_command_timeout_ms) == (30_000, 300_000)


def test_lingering_takes_nothing_from_the_time_to_drain() -> None:
    assert settings_for(ApiSettings, linger_seconds=3.5, drain_seconds=10).ending_seconds == 13.5


@pytest.mark.parametrize(
    ("values", "variable"),
    [
        ({"api_port": 65_536}, "API_PORT"),
        ({"command_timeout_ms": 300_001}, "MAX_COMMAND_TIMEOUT_MS"),
        ({"linger_seconds": -1}, "LINGER_SECONDS"),
        ({"linger_seconds": 60.1}, "LINGER_SECONDS"),
        ({"linger_seconds": "nan"}, "LINGER_SECONDS"),
        ({"auth": "off", "jwt_secret": None, "api_host": "0.0.0.0"}, "API_HOST"),
    ],
)
def test_wrong_value_is_refused_with_its_variable(values: dict[str, Any], variable: str) -> None:
    with pytest.raises(ConfigurationError, match=f"AGENTBRIDGE_{variable}"):
        settings_for(ApiSettings, **values)
