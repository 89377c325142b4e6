"""Sends a gateway's replies to callers: progress, and one answer for each command.

Each answer is kept for probes and written to the audit, because the reply itself may be lost.
"""

import asyncio
import logging

from gateway.sessions.audit import GatewayAudit
from gateway.sessions.core.effects import Answer
from gateway.sessions.core.progress import PublishProgress
from gateway.sessions.core.session import MESSAGE_TOO_LARGE
from gateway.sessions.recent_outcomes import RecentOutcomes
from protocol import codec
from protocol.access import ClientView
from protocol.audit import SUCCESS
from protocol.errors import PayloadTooLarge, Unavailable
from protocol.messages import CommandResponse, error_headers, failure
from protocol.runtime.nats.connection import Connection
from protocol.runtime.process.command_counts import CommandCounts

log = logging.getLogger(__name__)


class Replies:
    """Answers the callers of all sessions. All methods return at once."""

    def __init__(self, connection: Connection, audit: GatewayAudit | None = None) -> None:
        self.outcomes = RecentOutcomes()
        self.audit = audit or GatewayAudit()
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._answered = 0
        self._counts = CommandCounts()

    def answer(self, client: ClientView, effect: Answer) -> None:
        """Send a command's answer, write its audit record, and keep the answer for a probe.

        If the answer is larger than NATS takes, the caller gets `message_too_large` instead.
        """
        call, response = effect.call, effect.response
        self._answered += 1
        self._counts.note(_outcome(response), self._loop.time() - call.started)
        try:
            self._send(client, effect)
        except PayloadTooLarge:
            details = {"code": MESSAGE_TOO_LARGE, "maxMessageBytes": self._connection.client.max_payload}
            error = PayloadTooLarge("the application's answer is larger than NATS takes", details=details)
            failed = failure(call.request_id, error, client.client_id, response.duration_ms)
            self._send(client, effect._replace(response=failed))

    def progress(self, progress: PublishProgress) -> None:
        """Publish progress. If that fails, the caller sees a missing `seq`."""
        try:
            self._connection.publish_now(progress.subject, codec.encode(progress.message))
        except (Unavailable, PayloadTooLarge) as exc:
            log.debug("progress of request %s is lost: %s", progress.message.request_id, exc.message)

    def counters(self) -> dict[str, int]:
        """Return the counters since the start: answered commands, outcomes, audit records."""
        return {"commandsAnswered": self._answered, **self._counts.counters(), **self.audit.counters()}

    def count(self, response: CommandResponse) -> None:
        """Count a command that was refused before it was sent to an application."""
        self._counts.count(_outcome(response))

    def _send(self, client: ClientView, effect: Answer) -> None:
        """Write the audit record, then the answer, in one write to the socket.

        Raises `PayloadTooLarge` before anything is sent.
        """
        call, response = effect.call, effect.response
        body = codec.encode(response)
        headers = None if response.error is None else error_headers(response.error)
        answer = self._connection.framed(call.reply, body, headers=headers)
        # Keep the answer first: if NATS is away, a probe after the reconnect still finds it.
        self.outcomes.put((client.client_id, call.sub, call.request_id), body, self._loop.time())
        try:
            # The audit sends the answer behind the record. If the audit is off, send the answer alone.
            if not self.audit.publish(client, effect, answer):
                self._connection.publish_framed_now(answer)
        except Unavailable:
            log.info("kept the answer to request %s for the caller's probe: NATS is away", call.request_id)


def _outcome(response: CommandResponse) -> str:
    return SUCCESS if response.error is None else response.error.code
