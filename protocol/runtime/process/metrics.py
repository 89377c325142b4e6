"""The metrics of a process, in Prometheus' text format, for `/metrics`; `$SRV.STATS` gives the same on NATS.

That path needs no token, so it shows only numbers, without ids and names. The library's own registry, with metrics of
Python and the operating system, is not used.
"""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple, cast

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from protocol.runtime.nats.responder import Counters
from protocol.runtime.process.durations import SUM

PATH: Final = "/metrics"
CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4


class Figure(NamedTuple):
    """One metric and its description. A counter only grows, and its name ends in `_total`.

    With labels it has one series for each combination of their values. The values follow the counter's name:
    `requests:/api 200` becomes `requests{route="/api",status="200"}`. A histogram has its bounds in seconds there, and
    its sum in milliseconds.
    """

    family: type[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]
    help: str
    labels: tuple[str, ...] = ()


FIGURES: Final = {
    "sessions": Figure(GaugeMetricFamily, "Sessions of applications; some may be detached"),
    "sessionsDetached": Figure(GaugeMetricFamily, "Sessions that wait for their application to connect again"),
    "sessionsResumed": Figure(CounterMetricFamily, "Sessions whose application has connected again"),
    "sessionsClaimed": Figure(CounterMetricFamily, "Sessions that were taken over from another gateway, or a dead one"),
    "sessionsGranted": Figure(CounterMetricFamily, "Sessions that were handed to another gateway or connection"),
    "claimsForged": Figure(CounterMetricFamily, "Messages about sessions that no gateway of ours has signed"),
    "listsUnread": Figure(
        GaugeMetricFamily, "Sessions that came from other gateways, and whose capabilities could not be read yet"
    ),
    "commandsNotKept": Figure(CounterMetricFamily, "Messages that found no room while a session moved"),
    "commandsInFlight": Figure(GaugeMetricFamily, "Commands that wait for an application"),
    "commands": Figure(CounterMetricFamily, "Commands by outcome: `success`, or the code of an error", ("outcome",)),
    "commandDurationSeconds": Figure(
        HistogramMetricFamily, "Durations of commands; at a gateway, of those that were sent to an application"
    ),
    "httpRequests": Figure(
        CounterMetricFamily,
        "Requests over HTTP by route and status, also for WebSockets (status 101)",
        ("route", "status"),
    ),
    "connectionsOpened": Figure(CounterMetricFamily, "Connections of applications that were admitted"),
    "connectionsOpen": Figure(GaugeMetricFamily, "Open connections, including those without a session"),
    "sharesUsedPercent": Figure(GaugeMetricFamily, "Used part of what tenants share, in per cent", ("of",)),
    "commandsAnswered": Figure(CounterMetricFamily, "Commands that were answered, with a result or an error"),
    "lateResponses": Figure(CounterMetricFamily, "Responses that came after their command was answered"),
    "lateProgress": Figure(CounterMetricFamily, "Progress that came after its command was answered"),
    "eventsRateLimited": Figure(CounterMetricFamily, "Events of applications that were refused for their rate"),
    "eventsOverloaded": Figure(CounterMetricFamily, "Events that were refused because too many waited before them"),
    "progressRateLimited": Figure(CounterMetricFamily, "Progress that was dropped for its rate"),
    "registrationsRateLimited": Figure(
        CounterMetricFamily, "Registrations that were refused for their rate, metadata included"
    ),
    "keyedCommands": Figure(CounterMetricFamily, "Commands with an idempotency key that were executed"),
    "replayedAnswers": Figure(CounterMetricFamily, "Commands that were answered with the outcome kept for their key"),
    "outcomesNotRecorded": Figure(CounterMetricFamily, "Outcomes that could not be kept for their idempotency key"),
    "auditStored": Figure(CounterMetricFamily, "Commands whose audit record is stored"),
    "auditFailed": Figure(CounterMetricFamily, "Commands whose audit record is lost"),
    "auditWaiting": Figure(GaugeMetricFamily, "Commands whose audit record waits to be stored"),
    "auditSummed": Figure(CounterMetricFamily, "Refusals that share an audit record with others"),
    "storeWritesRefused": Figure(CounterMetricFamily, "Messages that a stream refused, or did not answer"),
    "storesRefusing": Figure(GaugeMetricFamily, "Streams that do not take messages of this process now"),
    "messagesDropped": Figure(CounterMetricFamily, "Messages dropped: without a good token, or above a share"),
    "subjectsLeft": Figure(
        CounterMetricFamily,
        "Times that a subject was unsubscribed for a while, because it was flooded",
    ),
    "loginsAdmitted": Figure(CounterMetricFamily, "Logins of agents to NATS that were admitted"),
    "loginsRefused": Figure(CounterMetricFamily, "Refused logins of agents to NATS, by reason", ("reason",)),
    "loginsUnreadable": Figure(CounterMetricFamily, "Logins for which NATS has other keys than the registry"),
    "loginsDropped": Figure(CounterMetricFamily, "Logins that could not be answered in time"),
    "unauthenticated": Figure(CounterMetricFamily, "Requests without a good token"),
    "connectionsRefused": Figure(CounterMetricFamily, "Refused connections, by reason", ("reason",)),
    "agentsDisconnected": Figure(CounterMetricFamily, "Times that an administrator has disconnected an agent"),
    "natsConnected": Figure(GaugeMetricFamily, "Whether NATS is there: 1, or 0"),
    "eventsConnected": Figure(GaugeMetricFamily, "Whether NATS is there for events of applications: 1, or 0"),
    "questionsConnected": Figure(GaugeMetricFamily, "Whether NATS is there for questions of agents: 1, or 0"),
    "natsReconnects": Figure(CounterMetricFamily, "Times that NATS came back"),
    "clockSkewMs": Figure(GaugeMetricFamily, "Milliseconds that the clock is ahead of the registry's"),
    "natsUnsentBytes": Figure(GaugeMetricFamily, "Bytes that wait to be written to NATS"),
}


class Metrics(Collector):
    """The metrics of one process, named after its service: `agentbridge_gateway_sessions`."""

    def __init__(self, service: str, counters: Counters) -> None:
        self._prefix = service.replace("-", "_")
        self._counters = counters
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> str:
        """Return the present metrics as text of the type `CONTENT_TYPE`."""
        return generate_latest(self._registry).decode()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics to the library."""
        told: dict[str, dict[str, int]] = {}
        for key, value in self._counters().items():
            name, _, of = key.partition(":")
            told.setdefault(name, {})[of] = value
        for name, values in told.items():
            yield _family(f"{self._prefix}_{_snake(name)}", FIGURES[name], values)


def _family(name: str, figure: Figure, values: dict[str, int]) -> Metric:
    if figure.family is HistogramMetricFamily:
        buckets = [(bound, count) for bound, count in values.items() if bound != SUM]
        return HistogramMetricFamily(name, figure.help, buckets=buckets, sum_value=values[SUM] / 1000)
    family = cast("type[CounterMetricFamily | GaugeMetricFamily]", figure.family)
    metric = family(name, figure.help, labels=figure.labels)
    for of, value in values.items():
        metric.add_metric(of.split(" ") if figure.labels else [], value)
    return metric


def _snake(key: str) -> str:
    """Convert a counter's name to a metric's: `lateResponses` to `late_responses`."""
    return re.sub("[A-Z]", lambda capital: f"_{capital[0].lower()}", key)
