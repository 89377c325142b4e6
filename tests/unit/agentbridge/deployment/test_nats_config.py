"""The template of the NATS configuration; tests/nats/deployment/test_permissions.py tries what the permissions do."""

import json
import re
import subprocess
import sys

from support.paths import ROOT

from agentbridge.deployment.nats_config import DEPLOYED, Server, authorization, new_password, render, users

DEPLOY = ROOT / "deploy/nats.conf"


def test_deployed_file_is_what_the_template_renders() -> None:
    assert DEPLOY.read_text() == render(DEPLOYED), "python -m agentbridge.deployment.nats_config > deploy/nats.conf"


def test_file_names_the_command_that_renders_it() -> None:
    text = DEPLOY.read_text()
    named = re.search(r"`python -m ([\w.]+)`", text)
    assert named is not None
    assert (
        subprocess.run([sys.executable, "-m", named[1]], capture_output=True, text=True, timeout=30, check=True).stdout
        == text
    )


def test_no_password_stands_in_the_file() -> None:
    lines = [line for line in render(DEPLOYED).splitlines() if "password:" in line]
    assert len(lines) == len(users())
    assert all("password: $AGENTBRIDGE_NATS_PASSWORD_" in line for line in lines)


def test_each_user_listens_to_its_own_inbox_alone() -> None:
    for user in users():
        inboxes = [subject for subject in user.subscribe if subject.startswith("_INBOX")]
        assert inboxes == [f"_INBOX.{user.name}.>"]


def test_only_our_own_processes_have_users() -> None:
    assert [user.name for user in users()] == ["gateway", "registry", "api", "system"]


def test_no_user_of_ours_is_asked_about_at_a_registry() -> None:
    """A user who is missing in `auth_users` could not log in while no registry runs."""
    [named] = re.findall(r"auth_users: (\[.*\])", authorization())
    assert json.loads(named) == [user.name for user in users()]


def test_only_a_registry_answers_who_may_log_in() -> None:
    login = "$SYS.REQ.USER.AUTH"
    assert [user.name for user in users() if login in user.subscribe] == ["registry"]


def test_path_is_quoted() -> None:
    rendered = render(Server("127.0.0.1:-1", '/tmp/a "quoted" pläce'))
    assert r'store_dir: "/tmp/a \"quoted\" pläce"' in rendered


def test_passwords_begin_with_a_letter_and_differ() -> None:
    passwords = {new_password() for _ in range(100)}
    assert len(passwords) == 100
    assert all(password[0].isalpha() for password in passwords)
