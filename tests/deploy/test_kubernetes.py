"""The manifests for Kubernetes: valid for every version there are schemas of, and true about the processes."""

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from kubernetes_validate.utils import all_versions, validate
from support.examples import Examples
from support.nats import nats_server
from support.nats.template import Template
from support.paths import ROOT
from support.processes.deployment import secrets_made
from support.processes.gateways import gateway_process
from support.processes.metrics import figures, of_gateway
from support.settings import default

from agent_api.http.connections import SDK_SOCKET_PATHS
from agent_api.settings import ApiSettings
from agentbridge.cli.credentials import CommandSettings, logs_in_by_token
from agentbridge.deployment import nats_config
from gateway.dialects.choice import DIALECTS
from gateway.settings import GatewaySettings
from protocol.runtime.process import metrics
from protocol.runtime.process.life import GOODBYE_SECONDS
from protocol.runtime.settings import Settings, load
from registry.settings import RegistrySettings

FOLDER = ROOT / "deploy/kubernetes"
KUSTOMIZATION = "kustomize.config.k8s.io/v1beta1"
VERSIONS = list(dict.fromkeys(version.rpartition(".")[0] for version in all_versions()))
KINDS: dict[str, type[Settings]] = {"gateway": GatewaySettings, "agent-api": ApiSettings, "registry": RegistrySettings}
PORTS = {"gateway": default(GatewaySettings, "gateway_port"), "agent-api": default(ApiSettings, "api_port")}
SESSIONS = "agentbridge_gateway_sessions"
PAGE = "docs/deployment.md"
COMMAND_LINE = Examples().take(PAGE, "kubectl run")
PROXY = (ROOT / "deploy/haproxy/haproxy.cfg").read_text()


class Manifest(NamedTuple):
    """One object, and the file that it stands in."""

    file: str
    body: dict[str, Any]

    @property
    def kind(self) -> str:
        return str(self.body["kind"])

    @property
    def name(self) -> str:
        return str(self.body["metadata"]["name"])


def manifests() -> Iterator[Manifest]:
    """Yield all objects."""
    for path in sorted(FOLDER.glob("*.yaml")):
        if path.name not in ("kustomization.yaml", "nats-values.yaml"):
            for body in yaml.safe_load_all(path.read_text()):
                yield Manifest(path.name, body)


ALL = list(manifests())
DEPLOYMENTS = {each.name.removeprefix("agentbridge-"): each.body for each in ALL if each.kind == "Deployment"}


def pod(component: str) -> dict[str, Any]:
    """Return the specification of a component's pods."""
    found: dict[str, Any] = DEPLOYMENTS[component]["spec"]["template"]["spec"]
    return found


def container(component: str) -> dict[str, Any]:
    """Return the one container of a component's pods."""
    [found] = pod(component)["containers"]
    assert isinstance(found, dict)
    return found


def environment(component: str) -> dict[str, str]:
    """Return a component's variables; what comes from the secret as a sentence that says from where."""
    return variables_of(container(component))


def variables_of(of: dict[str, Any]) -> dict[str, str]:
    """Return the variables of a container that has the settings."""
    [settings] = [each for each in ALL if each.kind == "ConfigMap"]
    variables = dict(settings.body["data"])
    for entry in of["env"]:
        variables[entry["name"]] = entry.get("value") or secret(entry["valueFrom"]["secretKeyRef"]["key"])
    return variables


def secret(key: str) -> str:
    """Return what stands here for the value of a key of the secret."""
    return f"{key} of agentbridge-secrets"


def values() -> dict[str, Any]:
    """Return the values of the chart that NATS is installed by."""
    found: dict[str, Any] = yaml.safe_load((FOLDER / "nats-values.yaml").read_text())
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_objects_are_valid(version: str) -> None:
    for each in ALL:
        validate(each.body, version, strict=True)


def test_kustomization_names_every_file() -> None:
    whole = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    assert whole["apiVersion"] == KUSTOMIZATION
    assert {*whole["resources"], "ingress.yaml"} == {each.file for each in ALL}
    assert {image["name"] for image in whole["images"]} == {container(component)["image"] for component in KINDS}


def test_autoscaler_can_go_by_sessions_instead_of_memory() -> None:
    sessions = yaml.safe_load((FOLDER / "sessions/kustomization.yaml").read_text())
    assert (sessions["kind"], "resources" in sessions) == ("Component", False), "a child cannot have its parent as base"
    [patch] = sessions["patches"]
    [operation] = yaml.safe_load(patch["patch"])
    [autoscaler] = [
        each for each in ALL if (each.kind, each.name) == (patch["target"]["kind"], patch["target"]["name"])
    ]
    metrics = autoscaler.body["spec"]["metrics"]
    assert (operation["op"], operation["path"]) == ("replace", "/spec/metrics/1")
    assert metrics[1]["resource"]["name"] == "memory"
    assert operation["value"]["pods"]["metric"]["name"] == SESSIONS
    metrics[1] = operation["value"]
    validate(autoscaler.body, VERSIONS[-1], strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("scaled_by_sessions", [False, True])
def test_kustomization_builds(tmp_path: Path, scaled_by_sessions: bool) -> None:
    folder = shutil.copytree(FOLDER, tmp_path / "kubernetes")
    if scaled_by_sessions:
        file = folder / "kustomization.yaml"
        file.write_text(file.read_text().replace("# components: [sessions, monitoring]", "components: [sessions]"))
    built = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, timeout=60, check=False)
    assert built.returncode == 0, built.stderr
    assert (SESSIONS in built.stdout) == scaled_by_sessions


async def test_metric_that_gateways_scale_by_is_one_that_they_serve(tmp_path: Path, shared_nats_url: str) -> None:
    [rule] = yaml.safe_load((FOLDER / "sessions/adapter-values.yaml").read_text())["rules"]["custom"]
    assert rule["seriesQuery"].partition("{")[0] == SESSIONS
    assert "name" not in rule, "the metric is called as the series is"
    async with gateway_process(tmp_path, shared_nats_url) as gateway, of_gateway(gateway) as http:
        assert SESSIONS in await figures(http)


@pytest.mark.parametrize("component", PORTS)
def test_collectors_are_led_to_the_figures(component: str) -> None:
    assert DEPLOYMENTS[component]["spec"]["template"]["metadata"]["annotations"] == {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(PORTS[component]),
        "prometheus.io/path": metrics.PATH,
    }


def test_ingress_leads_to_what_the_proxy_of_compose_gives_to_agents_and_to_no_figures() -> None:
    [ingress] = [each.body for each in ALL if each.kind == "Ingress"]
    paths = ingress["spec"]["rules"][0]["http"]["paths"]
    agents = {each["path"] for each in paths if each["backend"]["service"]["name"] == "agentbridge-agent-api"}
    assert agents == set(re.findall(r"acl of_agents path (.*)", PROXY)[0].split())
    of_dialects = {path for kind in DIALECTS for path in (kind.usual_path, *kind.other_paths)} - {"/"}
    applications = {each["path"] for each in paths if each["path"] not in agents}
    assert {path.rstrip("/") for path in of_dialects} <= applications
    assert set(re.findall(r"acl of_applications path (.*)", PROXY)[0].split()) <= applications
    assert not any(path.startswith("/api") for path in of_dialects), "the proxy sends these to agent APIs"
    assert [path for path in SDK_SOCKET_PATHS if path.startswith("/api/")], "agents need a way through the proxy"
    assert not [each for each in paths if each["path"] in ("/", metrics.PATH)]


@pytest.mark.parametrize("component", KINDS)
def test_pods_are_confined(component: str) -> None:
    assert pod(component)["securityContext"]["runAsNonRoot"]
    assert f"USER {pod(component)['securityContext']['runAsUser']}:" in (ROOT / "Dockerfile").read_text()
    assert pod(component)["automountServiceAccountToken"] is False
    assert container(component)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container(component)["resources"]["limits"]["memory"]


@pytest.mark.parametrize("component", KINDS)
def test_settings_are_those_of_the_process(component: str) -> None:
    variables = environment(component)
    user = variables["AGENTBRIDGE_NATS_USER"].upper()
    assert variables["AGENTBRIDGE_JWT_SECRET"] == secret("AGENTBRIDGE_JWT_SECRET")
    assert variables["AGENTBRIDGE_NATS_PASSWORD"] == secret(f"AGENTBRIDGE_NATS_PASSWORD_{user}")
    made = secrets_made()
    assert {"AGENTBRIDGE_JWT_SECRET", f"AGENTBRIDGE_NATS_PASSWORD_{user}"} <= made.keys()
    load(KINDS[component], variables | {name: made[name] for name in seeds_in(variables)})


def test_only_registries_can_sign_logins() -> None:
    signers = {component for component in KINDS if seeds_in(environment(component))}
    assert signers == {"registry"}
    assert seeds_in(environment("registry")) == {"AGENTBRIDGE_NATS_ACCOUNT_SEED", "AGENTBRIDGE_NATS_XKEY_SEED"}


def seeds_in(variables: dict[str, str]) -> set[str]:
    """Return the variables that hold seeds of agents' logins, each from its own key of the secret."""
    return {name for name, value in variables.items() if name.endswith("_SEED") and value == secret(name)}


@pytest.mark.parametrize("component", KINDS)
def test_no_service_overwrites_a_setting(component: str) -> None:
    """A service named agentbridge-gateway would set AGENTBRIDGE_GATEWAY_PORT to an URL."""
    assert pod(component)["enableServiceLinks"] is False


@pytest.mark.parametrize("component", KINDS)
def test_pods_have_the_time_to_drain(component: str) -> None:
    pause = container(component).get("lifecycle", {"preStop": {"exec": {"command": ["sleep", "0"]}}})
    besides = int(pause["preStop"]["exec"]["command"][1]) + GOODBYE_SECONDS
    drain_seconds = float(environment(component)["AGENTBRIDGE_DRAIN_SECONDS"])
    assert pod(component)["terminationGracePeriodSeconds"] > drain_seconds + besides
    [told] = re.findall(r"`AGENTBRIDGE_DRAIN_SECONDS`\s+plus (\d+)", (ROOT / PAGE).read_text())
    assert int(told) >= besides


@pytest.fixture(scope="module")
def console() -> dict[str, Any]:
    """The pod of the command line, as `kubectl run` makes it of what the documentation says."""
    words = shlex.split(COMMAND_LINE.code.replace("\\\n", ""))
    options = dict(word.partition("=")[::2] for word in words if word.startswith("--"))
    assert options["--overrides"] == "$(cat deploy/kubernetes/console.json)"
    body = json.loads((FOLDER / "console.json").read_text())
    [only] = body["spec"]["containers"]
    assert only["name"] == words[words.index("run") + 1], "or it would be a second container"
    only |= {"image": options["--image"], "args": ["clients"]}
    return {**body, "kind": "Pod", "metadata": {"name": only["name"]}}


def test_command_line_runs_in_a_pod_like_the_others(console: dict[str, Any]) -> None:
    validate(console, VERSIONS[-1], strict=True)
    [image] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["images"]
    [only] = console["spec"]["containers"]
    assert only["image"] == f"{image['newName']}:{image['newTag']}"
    assert only["securityContext"] == container("registry")["securityContext"]
    for name in ("enableServiceLinks", "automountServiceAccountToken", "securityContext"):
        assert console["spec"][name] == pod("registry")[name]


def test_command_line_has_the_settings_and_signs_its_own_token(console: dict[str, Any]) -> None:
    [only] = console["spec"]["containers"]
    assert only["envFrom"] == container("registry")["envFrom"]
    variables = variables_of(only)
    settings = load(CommandSettings, variables)
    assert settings.nats_url == variables["AGENTBRIDGE_NATS_URL"]
    assert settings.jwt_secret == secret("AGENTBRIDGE_JWT_SECRET")
    assert logs_in_by_token(settings)


@pytest.mark.parametrize("component", PORTS)
def test_probes_and_services_lead_to_the_port(component: str) -> None:
    [port] = container(component)["ports"]
    assert port == {"name": "http", "containerPort": PORTS[component]}
    probes = {name: container(component)[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/healthz",
        "liveness": "/healthz",
        "readiness": "/readyz",
    }
    [service] = [each.body for each in ALL if (each.kind, each.name) == ("Service", f"agentbridge-{component}")]
    assert {*(probe["port"] for probe in probes.values()), service["spec"]["ports"][0]["targetPort"]} == {"http"}


def test_everything_refers_to_what_is_there() -> None:
    labels = {name: deployment["spec"]["template"]["metadata"]["labels"] for name, deployment in DEPLOYMENTS.items()}
    for each in ALL:
        component = each.name.removeprefix("agentbridge-")
        spec = each.body.get("spec", {})
        match each.kind:
            case "Service":
                assert spec["selector"] == labels[component]
            case "PodDisruptionBudget" | "Deployment":
                assert spec["selector"]["matchLabels"] == labels[component]
            case "HorizontalPodAutoscaler":
                assert spec["scaleTargetRef"]["name"] == f"agentbridge-{component}"
                assert "replicas" not in DEPLOYMENTS[component]["spec"]  # or every apply would undo the scaling
            case "Ingress":
                backends = {path["backend"]["service"]["name"] for path in spec["rules"][0]["http"]["paths"]}
                assert backends == {each.name for each in ALL if each.kind == "Service"}


def test_streams_are_kept_by_all_servers_of_nats() -> None:
    cluster = values()["config"]["cluster"]
    assert (cluster["enabled"], str(cluster["replicas"])) == (True, environment("registry")["AGENTBRIDGE_REPLICAS"])
    assert values()["config"]["jetstream"]["enabled"]


def test_nats_has_the_same_users_as_everywhere() -> None:
    text = values()["configMap"]["merge"]["data"]["agentbridge.conf"]
    assert text.strip() == nats_config.authorization(), "see the end of deploy/nats.conf"
    told = {name for name in values()["container"]["env"] if name.startswith("AGENTBRIDGE_")}
    assert told == set(Template().variables)


def test_nats_has_the_same_limits_as_everywhere() -> None:
    merged = values()["config"]["merge"]
    limits = dict(line.split(": ") for line in nats_config.LIMITS)
    assert {name: str(merged[name]).removeprefix("<< ").removesuffix(" >>") for name in limits} == limits


def test_nats_accepts_what_the_chart_makes_of_the_values(tmp_path: Path) -> None:
    """The chart writes `merge` as JSON, an `$include` as a directive, and what stands in `<< >>` without quotes."""
    config = values()["config"]["merge"]
    include = config.pop("$include")
    (tmp_path / include).write_text(values()["configMap"]["merge"]["data"][include])
    lines = [f"{name}: {str(value).removeprefix('<< ').removesuffix(' >>')}" for name, value in config.items()]
    file = tmp_path / "nats.conf"
    file.write_text("\n".join([*lines, f"include {include}"]))
    variables = Template().variables
    command = [nats_server.binary(), "-t", "-c", str(file)]
    checked = subprocess.run(
        command,
        env=os.environ | variables,  # noqa: TID251
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
