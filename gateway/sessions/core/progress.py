"""One command's progress, reduced from the application's rate to twenty messages a second. Sans-I/O.

A command has it only if its caller asked for progress. In any second nineteen messages leave at intervals, each the
newest at that time, and one more directly before the answer.
"""

from typing import NamedTuple

from gateway.sessions.core.snapshots import MovingProgress
from protocol.errors import InvalidRequest
from protocol.frames import ProgressFrame
from protocol.messages import PROGRESS_HEADER, ProgressMessage
from protocol.subjects import MAX_REPLY_CHARS, is_safe_reply

INTERVAL_SECONDS = 0.054  # nineteen in any window of a second


class PublishProgress(NamedTuple):
    """Publish a progress message to the caller of a command."""

    subject: str
    message: ProgressMessage


class RemindProgress(NamedTuple):
    """Call `progress_due` at this time. It does nothing if the command has ended."""

    wire_id: str
    at: float


class Progress:
    """The progress of one command. `now` is a monotonic time in seconds."""

    __slots__ = ("_client_id", "_kept", "_open_at", "_request_id", "_seq", "_subject")

    def __init__(self, subject: str, client_id: str, request_id: str, seq: int = 0) -> None:
        self._subject = subject
        self._client_id = client_id
        self._request_id = request_id
        self._kept: ProgressFrame | None = None
        self._open_at = 0.0
        self._seq = seq

    def report(self, frame: ProgressFrame, now: float) -> list[PublishProgress | RemindProgress]:
        """Take a progress message: send it, or keep it in place of the waiting one."""
        if self._kept is not None:
            self._kept = frame
            return []
        if now >= self._open_at:
            return [self._tell(frame, now)]
        self._kept = frame
        return [RemindProgress(frame.request_id, self._open_at)]

    def due(self, now: float) -> list[PublishProgress | RemindProgress]:
        """Send the waiting progress, or if the reminder came too early, ask for another."""
        if self._kept is None:
            return []
        if now < self._open_at:
            return [RemindProgress(self._kept.request_id, self._open_at)]
        return [self._tell(self._kept, now)]

    def moving(self) -> MovingProgress:
        """Return the state of the progress for another gateway. Waiting progress is sent after it, or left out."""
        return MovingProgress(self._subject, self._request_id, self._seq)

    def last(self) -> list[PublishProgress]:
        """Send the waiting progress, because the command ends now."""
        return [] if self._kept is None else [self._tell(self._kept, self._open_at)]

    def _tell(self, frame: ProgressFrame, now: float) -> PublishProgress:
        self._kept = None
        self._open_at = now + INTERVAL_SECONDS
        self._seq += 1
        message = ProgressMessage(
            request_id=self._request_id,
            seq=self._seq,
            progress=frame.progress,
            total=frame.total,
            message=frame.message,
            data=frame.data,
            client_id=self._client_id,
        )
        return PublishProgress(self._subject, message)


def wanted_subject(headers: dict[str, str] | None, reply: str) -> str | None:
    """Return the progress subject from a command's headers; None if they do not ask for progress.

    Raises `InvalidRequest` for a subject that is no inbox, and for the reply subject, because a requester would take
    the first message for the answer.
    """
    subject = headers.get(PROGRESS_HEADER) if headers else None
    if subject is None:
        return None
    if not is_safe_reply(subject) or subject == reply:
        raise InvalidRequest(
            f"`{PROGRESS_HEADER}`: must be a subject below `_INBOX.` of at most {MAX_REPLY_CHARS} characters, without "
            "wildcards, and not the one that the answer goes to"
        )
    return subject
