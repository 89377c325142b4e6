"""How far one command has come: what the application says, thinned out to what its caller is told. Sans-I/O.

A command has this only where its caller asked for it. At most twenty messages leave in any second: nineteen at
intervals, for which the newest word is kept and older ones are forgotten, and the last one, which goes before the
answer.
"""

from typing import NamedTuple

from protocol.errors import InvalidRequest
from protocol.frames import ProgressFrame
from protocol.messages import PROGRESS_HEADER, ProgressMessage
from protocol.subjects import MAX_REPLY_CHARS, is_safe_reply

INTERVAL_SECONDS = 0.054  # nineteen in any second, wherever it begins


class Tell(NamedTuple):
    """Publish how far a command has come."""

    subject: str
    message: ProgressMessage


class Remind(NamedTuple):
    """Call `progress_due` at this time; it does no harm where the command has ended."""

    wire_id: str
    at: float


class Progress:
    """The progress of one command. `now` is a monotonic time in seconds."""

    __slots__ = ("_client_id", "_kept", "_open_at", "_request_id", "_seq", "_subject")

    def __init__(self, subject: str, client_id: str, request_id: str) -> None:
        self._subject = subject
        self._client_id = client_id
        self._request_id = request_id
        self._kept: ProgressFrame | None = None
        self._open_at = 0.0
        self._seq = 0

    def report(self, frame: ProgressFrame, now: float) -> list[Tell | Remind]:
        """Take the application's word: tell it, or keep it in the place of one that waits already."""
        if self._kept is not None:
            self._kept = frame
            return []
        if now >= self._open_at:
            return [self._tell(frame, now)]
        self._kept = frame
        return [Remind(frame.request_id, self._open_at)]

    def due(self, now: float) -> list[Tell | Remind]:
        """Tell what waits, or ask again for a reminder that came early."""
        if self._kept is None:
            return []
        if now < self._open_at:
            return [Remind(self._kept.request_id, self._open_at)]
        return [self._tell(self._kept, now)]

    def last(self) -> list[Tell]:
        """Tell what waits, for the command ends now."""
        return [] if self._kept is None else [self._tell(self._kept, self._open_at)]

    def _tell(self, frame: ProgressFrame, now: float) -> Tell:
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
        return Tell(self._subject, message)


def wanted_subject(headers: dict[str, str] | None, reply: str) -> str | None:
    """Return where a command's headers want its progress; None where they do not ask for it.

    Raises `InvalidRequest` for a subject that is no inbox, or that the answer goes to: a requester would take the first
    message for it.
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
