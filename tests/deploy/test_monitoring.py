"""Alert rules, the dashboard and what finds the processes: they speak of metrics and headings that there are."""

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
import yaml
from prometheus_client.core import HistogramMetricFamily
from support.paths import ROOT

from agent_api.service import SERVICE as AGENT_API
from gateway.administration import SERVICE as GATEWAY
from protocol.runtime.process import metrics
from protocol.runtime.process.durations import Durations
from protocol.runtime.process.metrics import FIGURES, Metrics
from registry.__main__ import SERVICE as REGISTRY

RULES = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((ROOT / "deploy/grafana/agentbridge.json").read_text())
OPERATIONS = (ROOT / "docs/operations.md").read_text()
TABLE = (ROOT / "docs/deployment.md").read_text().partition("## Metrics")[2]
OF_ALL = "all"


def expressions() -> Iterator[str]:
    yield from (rule["expr"] for rule in RULES)
    yield from (target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"])


def served() -> dict[str, set[str]]:
    """Return the names that each kind of process serves, with their labels, as docs/deployment.md's table says."""
    kinds = {"gateway": GATEWAY, "agent API": AGENT_API, "registry": REGISTRY}
    found: dict[str, set[str]] = {}
    for key, figure in FIGURES.items():
        [row] = [line for line in TABLE.splitlines() if line.startswith(f"| `{name_of(key)}` ")]
        of = row.split("|")[2].strip()
        for kind, service in kinds.items():
            if of in (OF_ALL, kind) or kind in of or (of == "both" and kind != "registry"):
                for name, labels in samples(service, key):
                    found[name] = labels | set(figure.labels)
    return found


def name_of(key: str) -> str:
    return Metrics("", lambda: counters_of(key)).text().splitlines()[1].split()[2].removeprefix("_")


def counters_of(key: str) -> dict[str, int]:
    if FIGURES[key].family is HistogramMetricFamily:
        return Durations(key).counters()
    return {f"{key}:{' '.join(FIGURES[key].labels)}" if FIGURES[key].labels else key: 0}


def samples(service: str, key: str) -> Iterator[tuple[str, set[str]]]:
    for line in Metrics(service, lambda: counters_of(key)).text().splitlines():
        if not line.startswith("#"):
            yield re.split(r"[{ ]", line)[0], set(re.findall(r'(\w+)="', line))


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_expressions_name_metrics_that_processes_serve(expression: str) -> None:
    known = served()
    named = re.findall(r"agentbridge_\w+", expression)
    assert named
    assert set(named) <= known.keys()
    labels = {label for name in named for label in known[name]} | {"instance"}
    used = {label for group in re.findall(r" by \(([^)]*)\)", expression) for label in re.split(r",\s*", group)}
    used |= set(re.findall(r"[{,](\w+)=", expression))
    assert used <= labels


def test_every_alarm_has_its_heading_in_the_operators_book() -> None:
    headings = {re.sub(r"[^a-z0-9 -]", "", line.lower()).strip().replace(" ", "-") for line in headings_of(OPERATIONS)}
    assert {rule["annotations"]["runbook"] for rule in RULES} <= headings
    assert len({rule["alert"] for rule in RULES}) == len(RULES)


def headings_of(text: str) -> list[str]:
    return re.findall(r"^### (.*)$", text, re.MULTILINE)


def test_pod_monitor_and_network_policies_find_the_pods_by_their_port() -> None:
    monitor = yaml.safe_load((ROOT / "deploy/kubernetes/monitoring/pod-monitor.yaml").read_text())
    policies = list(yaml.safe_load_all((ROOT / "deploy/kubernetes/network-policy.yaml").read_text()))
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("http", metrics.PATH)
    components = set[str]()
    for component in ("gateway", "agent-api", "registry"):
        deployment = next(yaml.safe_load_all((ROOT / f"deploy/kubernetes/{component}.yaml").read_text()))
        template: dict[str, Any] = deployment["spec"]["template"]
        labels = template["metadata"]["labels"]
        assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
        [container] = template["spec"]["containers"]
        [port] = container["ports"]
        assert port["name"] == "http"
        assert template["metadata"]["annotations"]["prometheus.io/port"] == str(port["containerPort"])
        components |= {component for policy in policies if selects(policy["spec"]["podSelector"], labels)}
    assert components == {"gateway", "agent-api", "registry"}
    assert {port["port"] for policy in policies for rule in policy["spec"]["ingress"] for port in rule["ports"]} == {
        "http"
    }


# What the operator's CustomResourceDefinition (monitoring.coreos.com/v1) says of the fields that stand there. Other
# fields are mistakes here: the operator would drop them without a word.
DURATION = "^(0|(([0-9]+)y)?(([0-9]+)w)?(([0-9]+)d)?(([0-9]+)h)?(([0-9]+)m)?(([0-9]+)s)?(([0-9]+)ms)?)$"
LABELS = {"type": "object", "additionalProperties": {"type": "string", "maxLength": 63}}
POD_MONITOR = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "kind": {"const": "PodMonitor"},
        "metadata": {
            "type": "object",
            "additionalProperties": False,
            "required": ["name"],
            "properties": {"name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}, "labels": LABELS},
        },
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["selector", "podMetricsEndpoints"],
            "properties": {
                "selector": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["matchLabels"],
                    "properties": {"matchLabels": LABELS},
                },
                "podMetricsEndpoints": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "port": {"type": "string"},
                            "path": {"type": "string", "pattern": "^/"},
                            "interval": {"type": "string", "pattern": DURATION},
                        },
                    },
                },
            },
        },
    },
}


def test_pod_monitor_is_valid_and_its_kustomization_names_it() -> None:
    folder = ROOT / "deploy/kubernetes/monitoring"
    jsonschema_rs.Draft202012Validator(POD_MONITOR).validate(yaml.safe_load((folder / "pod-monitor.yaml").read_text()))
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert (kustomization["apiVersion"], kustomization["kind"]) == ("kustomize.config.k8s.io/v1alpha1", "Component")
    assert set(kustomization["resources"]) == {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    wanted = selector["matchLabels"].items() <= labels.items()
    return wanted and all(labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", []))
