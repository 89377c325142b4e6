"""What a process has counted, in Prometheus' text format, for `/metrics`; `$SRV.STATS` tells the same on NATS.

There is no token at that door, so there are numbers only: no ids, no names. The library's own registry, which tells of
Python and the operating system besides, is left alone.
"""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from protocol.runtime.responder import Counters

PATH: Final = "/metrics"
CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4


class Figure(NamedTuple):
    """What a figure says; a counter only ever grows, and its name ends in `_total`."""

    family: type[CounterMetricFamily | GaugeMetricFamily]
    help: str


FIGURES: Final = {
    "sessions": Figure(GaugeMetricFamily, "Applications that are connected"),
    "commandsInFlight": Figure(GaugeMetricFamily, "Commands that wait for an application"),
    "commandsAnswered": Figure(CounterMetricFamily, "Commands that were answered, with a result or an error"),
    "lateResponses": Figure(CounterMetricFamily, "Responses that came after their command was answered"),
    "lateProgress": Figure(CounterMetricFamily, "Progress that came after its command was answered"),
    "keyedCommands": Figure(CounterMetricFamily, "Commands with an idempotency key that were executed"),
    "replayedAnswers": Figure(CounterMetricFamily, "Commands that were answered with the outcome kept for their key"),
    "outcomesNotRecorded": Figure(CounterMetricFamily, "Outcomes that could not be kept for their idempotency key"),
    "auditStored": Figure(CounterMetricFamily, "Audit records that were stored"),
    "auditFailed": Figure(CounterMetricFamily, "Audit records that may not have been stored"),
    "auditWaiting": Figure(GaugeMetricFamily, "Audit records that wait to be stored"),
    "unauthenticated": Figure(CounterMetricFamily, "Requests for which no good token spoke"),
}


class Metrics(Collector):
    """The figures of one process, named after its service: `agentbridge_gateway_sessions`."""

    def __init__(self, service: str, counters: Counters) -> None:
        self._prefix = service.replace("-", "_")
        self._counters = counters
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> str:
        """Return all figures of this moment, to be sent as `CONTENT_TYPE`."""
        return generate_latest(self._registry).decode()

    def collect(self) -> Iterator[Metric]:
        """Yield the figures to the library."""
        for key, value in self._counters().items():
            figure = FIGURES[key]
            yield figure.family(f"{self._prefix}_{_snake(key)}", figure.help, value)


def _snake(key: str) -> str:
    """Return a counter's name as metrics are named: `lateResponses` is `late_responses`."""
    return re.sub("[A-Z]", lambda capital: f"_{capital[0].lower()}", key)
