"""Environment variables that nothing reads are named, with the setting that was probably meant."""

import pytest

from agent_api.settings import ApiSettings
from agentbridge.cli.credentials import CommandSettings
from agentbridge.up.settings import UpSettings
from gateway.settings import GatewaySettings
from protocol.runtime.settings import variable
from protocol.runtime.variables import OF_DEPLOYMENTS, known, unknown
from registry.settings import RegistrySettings

KINDS = (GatewaySettings, ApiSettings, RegistrySettings, UpSettings, CommandSettings)


def test_known_variables_are_those_of_all_processes() -> None:
    settings = {variable(name) for kind in KINDS for name in kind.__struct_fields__}
    assert known() == settings | set(map(variable, OF_DEPLOYMENTS))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("AGENTBRIDGE_MAX_MESAGE_BYTES", "; did you mean AGENTBRIDGE_MAX_MESSAGE_BYTES?"),
        ("AGENTBRIDGE_ALLOWED_ORIGIN", "; did you mean AGENTBRIDGE_ALLOWED_ORIGINS?"),
        ("AGENTBRIDGE_SOMETHING_ELSE_ENTIRELY", ""),
    ],
)
def test_mistyped_variable_is_named_with_the_nearest_setting_and_without_its_value(name: str, meant: str) -> None:
    assert unknown({name: "s3cret", "PATH": "/bin"}) == [f"{name} is not a setting, and has no effect{meant}"]


def test_settings_of_other_processes_and_of_deployments_are_no_mistake() -> None:
    others = dict.fromkeys([*known(), "AGENTBRIDGE_NATS_PASSWORD_GATEWAY", "AGENTBRIDGE_TEST_NATS_URL"], "")
    assert unknown(others) == []
