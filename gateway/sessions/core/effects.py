"""The effects of a session's core, which the shell performs in the order in which it gets them."""

from typing import NamedTuple

from gateway.sessions.core.calls import Call
from gateway.sessions.core.progress import PublishProgress, RemindProgress
from protocol.frames import ServerFrame
from protocol.messages import CommandResponse
from protocol.reports import EndReason


class Send(NamedTuple):
    """Send a frame to the client."""

    frame: ServerFrame


class Answer(NamedTuple):
    """Give a call its one terminal answer.

    `wire_id` is the command's id at the client. A `reservation` is answered to all its waiters. `confirmed` says that
    the application asked its user first.
    """

    call: Call
    response: CommandResponse
    wire_id: str = ""
    reservation: str = ""
    confirmed: bool = False


class Arm(NamedTuple):
    """Call `deadline_passed` at this time, unless the command is answered before."""

    wire_id: str
    at: float


class Changed(NamedTuple):
    """The client's record has changed. `focused`: the client has just reported that its user sees it."""

    focused: bool = False


class Ping(NamedTuple):
    """Send a WebSocket ping, and call `heard` when its pong comes."""


class Close(NamedTuple):
    """Close the socket with a sentence for people; `end` is the reason for programs."""

    code: int
    reason: str
    end: EndReason


Effect = Send | Answer | Arm | Changed | Ping | Close | PublishProgress | RemindProgress
