"""The template of the NATS configuration; what the permissions do is tried in tests/nats/test_permissions.py."""

from pathlib import Path

import pytest

from agentbridge import nats_config
from agentbridge.nats_config import DEPLOYED, Server, authorization, new_password, render, users
from protocol.errors import ConfigurationError

DEPLOY = Path(__file__).parents[3] / "deploy/nats.conf"


def test_deployed_file_is_what_the_template_renders() -> None:
    assert DEPLOY.read_text() == render(DEPLOYED), "python -m agentbridge.nats_config > deploy/nats.conf"


def test_no_password_stands_in_the_file() -> None:
    lines = [line for line in render(DEPLOYED).splitlines() if "password:" in line]
    assert len(lines) == len(users(("default",)))
    assert all("password: $AGENTBRIDGE_NATS_PASSWORD_" in line for line in lines)


def test_each_user_listens_to_its_own_inbox_alone() -> None:
    for user in users(("default", "acme")):
        inboxes = [subject for subject in user.subscribe if subject.startswith("_INBOX")]
        assert inboxes == [f"_INBOX.{user.name}.>"]


def test_each_tenant_has_agents_of_its_own() -> None:
    names = [user.name for user in users(("default", "acme"))]
    assert names == ["gateway", "registry", "api", "agent_default", "agent_acme", "console"]
    assert "agentbridge.acme.command.*" in authorization(("default", "acme"))


def test_password_variable_can_be_exported_by_a_shell() -> None:
    assert nats_config.users(("my-shop",))[3].password_variable == "AGENTBRIDGE_NATS_PASSWORD_AGENT_MY_SHOP"


@pytest.mark.parametrize("tenant", ["", "a.b", "*", ">", "a b", 'a"', "_registry"])
def test_tenant_that_would_widen_a_subject_is_refused(tenant: str) -> None:
    with pytest.raises(ConfigurationError, match="is no tenant"):
        render(DEPLOYED, (tenant,))


def test_two_tenants_that_would_share_a_password_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="AGENTBRIDGE_NATS_PASSWORD_AGENT_A_B"):
        render(DEPLOYED, ("a-b", "a_b"))


def test_path_is_quoted() -> None:
    rendered = render(Server("127.0.0.1:-1", '/tmp/a "quoted" pläce'))
    assert r'store_dir: "/tmp/a \"quoted\" pläce"' in rendered


def test_passwords_begin_with_a_letter_and_differ() -> None:
    passwords = {new_password() for _ in range(100)}
    assert len(passwords) == 100
    assert all(password[0].isalpha() for password in passwords)
