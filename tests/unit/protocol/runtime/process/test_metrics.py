"""Figures in Prometheus' text format: https://prometheus.io/docs/instrumenting/exposition_formats/"""

import pytest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from protocol.runtime.process import metrics
from protocol.runtime.process.durations import Durations
from protocol.runtime.process.metrics import FIGURES, Figure, Metrics


def text_of(**counters: int) -> str:
    return Metrics("agentbridge-agent-api", lambda: counters).text()


def test_figures_have_a_help_a_type_and_a_value() -> None:
    assert text_of(auditWaiting=0, auditStored=3) == (
        "# HELP agentbridge_agent_api_audit_waiting Commands whose audit record waits to be stored\n"
        "# TYPE agentbridge_agent_api_audit_waiting gauge\n"
        "agentbridge_agent_api_audit_waiting 0.0\n"
        "# HELP agentbridge_agent_api_audit_stored_total Commands whose audit record is stored\n"
        "# TYPE agentbridge_agent_api_audit_stored_total counter\n"
        "agentbridge_agent_api_audit_stored_total 3.0\n"
    )


def test_figure_with_a_label_is_told_for_each_of_its_values() -> None:
    text = text_of(**{"connectionsRefused:origin": 2, "connectionsRefused:no_token": 1})
    assert text.splitlines()[2:] == [
        'agentbridge_agent_api_connections_refused_total{reason="origin"} 2.0',
        'agentbridge_agent_api_connections_refused_total{reason="no_token"} 1.0',
    ]


def test_histogram_is_cumulative_and_in_seconds() -> None:
    durations = Durations("commandDurationSeconds")
    for seconds in (0.004, 0.02, 400):
        durations.note(seconds)
    lines = text_of(**durations.counters()).splitlines()
    name = "agentbridge_agent_api_command_duration_seconds"
    cumulative = {"0.005": 1.0, "0.025": 2.0, "300.0": 2.0, "+Inf": 3.0}
    assert {f'{name}_bucket{{le="{bound}"}} {count}' for bound, count in cumulative.items()} <= {*lines}
    assert {f"{name}_count 3.0", f"{name}_sum 400.024"} <= {*lines}


def test_two_labels_are_told_apart() -> None:
    [_, _, line] = text_of(**{"httpRequests:/api/command 200": 7}).splitlines()
    assert line == 'agentbridge_agent_api_http_requests_total{route="/api/command",status="200"} 7.0'


def test_content_type_names_the_format() -> None:
    assert metrics.CONTENT_TYPE == "text/plain; version=0.0.4; charset=utf-8"


def test_help_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FIGURES, "odd", Figure(CounterMetricFamily, "one\ntwo \\ three"))
    assert text_of(odd=1).splitlines()[0] == r"# HELP agentbridge_agent_api_odd_total one\ntwo \\ three"


def test_large_counts_are_exact() -> None:
    [family] = text_string_to_metric_families(text_of(commandsAnswered=2**53 - 1))
    assert [sample.value for sample in family.samples] == [2**53 - 1]


def test_figures_are_those_of_the_moment() -> None:
    counters = {"sessions": 1}
    served = Metrics("agentbridge-gateway", lambda: counters)
    before = served.text()
    counters["sessions"] = 2
    assert "\nagentbridge_gateway_sessions 1.0\n" in before
    assert "\nagentbridge_gateway_sessions 2.0\n" in served.text()


def test_nothing_but_the_figures_is_told() -> None:
    assert text_of() == ""
