from typing import Any

import pytest
from support.settings import settings_for

from gateway.settings import GatewaySettings
from protocol.errors import ConfigurationError


@pytest.mark.parametrize(
    ("values", "variable"),
    [
        ({"gateway_port": 65_536}, "GATEWAY_PORT"),
        ({"command_timeout_ms": 300_001}, "MAX_COMMAND_TIMEOUT_MS"),
        ({"auth": "off", "jwt_secret": None, "gateway_host": "0.0.0.0"}, "GATEWAY_HOST"),
    ],
)
def test_wrong_value_is_refused_with_its_variable(values: dict[str, Any], variable: str) -> None:
    with pytest.raises(ConfigurationError, match=f"AGENTBRIDGE_{variable}"):
        settings_for(GatewaySettings, **values)
