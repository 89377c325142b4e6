"""What the files of a deployment say agrees with the code."""

import json
import re
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.nats.template import Template
from support.paths import ROOT
from support.processes.deployment import secrets_made
from support.settings import default

from agent_api.settings import ApiSettings
from agentbridge.deployment import nats_config
from gateway.settings import GatewaySettings
from protocol.errors import MEANINGS, Code
from protocol.runtime.nats.login_keys import LoginKeys
from protocol.runtime.process.life import GOODBYE_SECONDS
from protocol.runtime.settings import Settings, variable
from registry.settings import RegistrySettings

PROXY = (ROOT / "deploy/haproxy/haproxy.cfg").read_text()
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
KINDS: dict[str, type[Settings]] = {"gateway": GatewaySettings, "agent_api": ApiSettings, "registry": RegistrySettings}
DECIDED = {
    "gateway_host",
    "gateway_port",
    "api_host",
    "api_port",
    "registry_host",
    "registry_port",
}  # by the image: the proxy looks for them there
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SEEDS = {"AGENTBRIDGE_NATS_ACCOUNT_SEED", "AGENTBRIDGE_NATS_XKEY_SEED"}
DEPENDENCIES = {
    "runtime.txt": PROJECT["dependencies"],
    "dev.txt": [
        *PROJECT["dependencies"],
        *(each for extra in PROJECT["optional-dependencies"].values() for each in extra),
    ],
}


@pytest.mark.parametrize("service", KINDS)
def test_every_setting_can_be_given_to_compose(service: str) -> None:
    wanted = {variable(name) for name in KINDS[service].__struct_fields__ if name not in DECIDED}
    assert wanted <= set(COMPOSE["services"][service]["environment"])


def test_one_command_makes_all_secrets() -> None:
    of_nats = set(Template().variables)
    assert secrets_made().keys() == {"AGENTBRIDGE_JWT_SECRET", *of_nats, *SEEDS}
    assert of_nats <= set(COMPOSE["services"]["nats"]["environment"])


def test_only_registries_can_sign_logins() -> None:
    told = {name for name, service in COMPOSE["services"].items() if SEEDS & set(service.get("environment", {}))}
    assert told == {"registry"}


def test_keys_of_logins_belong_together() -> None:
    made = secrets_made()
    keys = LoginKeys(made["AGENTBRIDGE_NATS_ACCOUNT_SEED"], made["AGENTBRIDGE_NATS_XKEY_SEED"])
    public = nats_config.public_keys(keys)
    assert public == {name: made[name] for name in public}


def test_proxy_answers_like_the_agent_api() -> None:
    before_gateways, gateways = PROXY.split("\nbackend gateways")
    assert 'set-status 503 reason "Service Unavailable" if { status 502 504 }' in gateways
    answers = re.compile(r"http-error status (\d+) .*string '(.*)'")
    assert [status for status, _ in answers.findall(gateways)] == ["502", "504"]
    replaced = [("503", body) for _, body in answers.findall(gateways)]
    for status, body in [*answers.findall(before_gateways), *replaced]:
        said = json.loads(body)
        meaning = MEANINGS[Code(said["code"])]
        assert said == {
            "error": meaning.phrase,
            "code": said["code"],
            "message": said["message"],
            "retryable": meaning.retryable,
        }
        assert int(status) == meaning.http_status


def test_proxy_waits_longer_than_a_command_may_take() -> None:
    [seconds] = re.findall(r"timeout server (\d+)s", PROXY)
    assert int(seconds) * 1000 > default(GatewaySettings, "max_command_timeout_ms")


def test_agent_apis_linger_until_the_proxy_has_noticed() -> None:
    """The first check begins an interval after the stop, at most, and on a busy machine each takes all of its time."""
    [(pause, failures)] = set(re.findall(r"check inter (\d+)s fall (\d+)", PROXY))
    [each] = re.findall(r"timeout check (\d+)s", PROXY)
    assert linger_seconds("agent_api") > (int(pause) + int(each)) * int(failures)


@pytest.mark.parametrize("service", KINDS)
def test_containers_have_the_time_to_end(service: str) -> None:
    grace = float(COMPOSE["services"][service]["stop_grace_period"].removesuffix("s"))
    assert grace > linger_seconds(service) + default(KINDS[service], "drain_seconds") + GOODBYE_SECONDS


@pytest.mark.parametrize("service", ["haproxy", "nats", *KINDS])
def test_containers_may_start_slowly(service: str) -> None:
    """`up --wait` fails at the first unhealthy container, such as a NATS that reads its streams for 20 seconds."""
    looked_at = COMPOSE["services"][service]["healthcheck"]
    assert {"start_period": "120s", "start_interval": "1s", "interval": "5s"}.items() <= looked_at.items()


def linger_seconds(service: str) -> float:
    """Return how long a service serves on unless it is told otherwise."""
    given = COMPOSE["services"][service]["environment"].get("AGENTBRIDGE_LINGER_SECONDS", "0")
    return float(given.rpartition(":-")[2].removesuffix("}"))


@pytest.mark.parametrize("name", DEPENDENCIES)
def test_locked_versions_are_those_that_the_project_allows(name: str) -> None:
    """Where this fails, requirements/refresh.sh has not been run since pyproject.toml was changed."""
    locked = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements" / name).read_text(), re.MULTILINE))
    for wanted in map(Requirement, DEPENDENCIES[name]):
        if wanted.name != PROJECT["name"]:
            assert locked[canonicalize_name(wanted.name)] in wanted.specifier, wanted


@pytest.mark.parametrize("name", ["build.txt", "runtime.txt", "dev.txt"])
def test_locked_versions_have_hashes_and_name_no_host(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text()
    entries = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    assert entries
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in text
    assert "index" not in text
