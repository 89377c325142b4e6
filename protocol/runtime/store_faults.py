"""Streams that refuse this process's writes, each with the reason and the operator's remedy. Sans-I/O.

A stream is faulty from its first refusal until it takes a message again. Without another refusal for five seconds it is
forgotten, because then this process no longer writes to it. Silence counts as a refusal if NATS itself answers: after a
failed write to its disk NATS keeps a stream dead, which answers everything except publishes.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

from protocol.runtime.log_throttle import LogThrottle

FORGOTTEN_AFTER_SECONDS = 5.0
SILENCES = 2
CREDIBLE_AFTER_SECONDS = 4.5  # of an unbroken connection, because by then a frozen server has been noticed
LOG_SECONDS = 1.0
LASTING_LOG_SECONDS = 60.0
MAX_TOLD = 20
JETSTREAM = "JetStream"  # in the place of a stream, if JetStream as a whole is unavailable
_STORAGE = "free space on its disk, or raise max_file_store in its jetstream settings"
_CURES = {
    10002: "raise the limits of the NATS account",
    10023: f"NATS has no storage left: {_STORAGE}",
    10028: "raise the storage limit of the NATS account",
    10047: f"NATS has no storage left: {_STORAGE}",
}
_OTHERWISE = "look into the log of nats-server"

log = logging.getLogger(__name__)


class _StoreFault(NamedTuple):
    sentence: str
    last_at: float


class StoreFaults:
    """Tracks the accepted and refused writes of a process, by stream. `clock` returns seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._refused_writes = 0
        self._faults: dict[str, _StoreFault] = {}
        self._silences: dict[str, int] = {}
        self._new_lines = LogThrottle(LOG_SECONDS, clock)
        self._single_lines = LogThrottle(LOG_SECONDS, clock)
        self._lasting_lines = LogThrottle(LASTING_LOG_SECONDS, clock)

    def took(self, stream: str) -> None:
        """Note that a stream has taken a message."""
        if self._silences:
            self._silences.pop(stream, None)
        if self._faults and self._faults.pop(stream, None) is not None:
            log.info("the stream %s takes messages again", stream)

    def refused(self, stream: str, err_code: int, why: str) -> None:
        """Note that a stream has refused a message, with JetStream's error."""
        self._refused_writes += 1
        cure = f"raise its limits: nats stream edit {stream}" if "exceeded" in why and err_code not in _CURES else None
        cure = cure or _CURES.get(err_code, _OTHERWISE)
        self._note(stream, f"the stream {stream} refuses messages ({why}); {cure}")

    def refused_one(self, stream: str, why: str) -> None:
        """Note that a stream has refused one message for its content or size. The stream itself is not at fault."""
        self._refused_writes += 1
        if count := self._single_lines.due():
            log.warning("the stream %s refused %d messages, the last because: %s", stream, count, why)

    def silent(self, stream: str, unbroken_seconds: float) -> None:
        """Note that a stream has not answered within two seconds. The connection has been up for `unbroken_seconds`."""
        if unbroken_seconds < CREDIBLE_AFTER_SECONDS:
            return
        self._silences[stream] = self._silences.get(stream, 0) + 1
        if self._silences[stream] >= SILENCES:
            self._refused_writes += 1
            self._note(
                stream,
                f"the stream {stream} takes no messages, though NATS answers: NATS keeps a stream dead once its disk "
                "was full; free space there, then restart nats-server",
            )

    def not_ready(self, why: str) -> None:
        """Note that JetStream as a whole is unavailable although NATS is there. `took(JETSTREAM)` ends that."""
        self._note(JETSTREAM, f"JetStream is not available ({why}); {_OTHERWISE}, and at its disk")

    def sentences(self) -> list[str]:
        """Return a sentence for each faulty stream, 20 at most, and one with the number of the others."""
        self._forget_old()
        told = [fault.sentence for fault in self._faults.values()]
        more = len(told) - MAX_TOLD
        return told if more <= 0 else [*told[:MAX_TOLD], f"{more} more streams refuse messages"]

    def counters(self) -> dict[str, int]:
        """Return the counters of `/metrics`: refused messages since the start, and streams that refuse messages now."""
        self._forget_old()
        return {"storeWritesRefused": self._refused_writes, "storesRefusing": len(self._faults)}

    def _note(self, stream: str, sentence: str) -> None:
        is_new = stream not in self._faults
        self._faults[stream] = _StoreFault(sentence, self._clock())
        lines = self._new_lines if is_new else self._lasting_lines
        if count := lines.due():
            log.error("%s%s", sentence, f" ({count} refusals since the last such line)" if count > 1 else "")

    def _forget_old(self) -> None:
        oldest = self._clock() - FORGOTTEN_AFTER_SECONDS
        self._faults = {stream: fault for stream, fault in self._faults.items() if fault.last_at >= oldest}
