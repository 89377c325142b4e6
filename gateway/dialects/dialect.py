"""The seam between the frames of a connection and our messages: one dialect object a connection, sans-I/O.

A dialect may hold state: namespaces, acknowledgement ids, queues for components. It never awaits, logs or reads a
clock. It returns frames to write at once, and the session's shell writes them.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from msgspec import Raw

from protocol.errors import CloseCode
from protocol.frames import CapabilityFrame, ClientFrame, ConnectionLimits, ServerFrame

Clock = Callable[[], float]
_FINAL = frozenset(
    {CloseCode.NORMAL, CloseCode.POLICY, CloseCode.NO_CREDENTIALS, CloseCode.REFUSED, CloseCode.REPLACED}
)


class Reply(NamedTuple):
    """A text frame to send at once, such as an acknowledgement that only the dialect knows of."""

    data: bytes


class Farewell(NamedTuple):
    """How a dialect ends a connection: the text frames before the closing handshake, and its code and reason."""

    frames: Sequence[bytes]
    code: int
    reason: str


class Introduction(NamedTuple):
    """The content of a message before there is a session: frames to answer it with, and the token if it brings one.

    `is_over` tells that the client has said all that its session needs; `token` may be None even then.
    """

    frames: Sequence[bytes] = ()
    is_over: bool = False
    token: str | None = None


class Entry(Protocol):
    """The part of a dialect that talks to a client before it has a session, if clients bring their token in a frame."""

    def hello(self, limits: ConnectionLimits) -> Iterable[bytes]:
        """Return the frames to send as soon as the connection is open."""

    def introduce(self, data: bytes, *, text: bool) -> Introduction:
        """Take one message of the client. Raises `InvalidFrame` for one that has no place here, which ends it."""


class Heartbeat(Protocol):
    """The part of a dialect that sends frames at regular times, because its clients take silence for death."""

    seconds: float

    def beat(self, at: float) -> bytes:
        """Return the frame to send; `at` is the time in seconds since 1970."""


class CapabilityChange(NamedTuple):
    """Capabilities that join the client's list; one with the same name or id takes the place of the former."""

    capabilities: Sequence[Raw]


class Switch(NamedTuple):
    """The client speaks another dialect from this message on, which is the first for the other one.

    `make` gets the clock of the wall, in seconds since 1970, for dialects that tell the time in their frames.
    """

    make: "Callable[[Clock], Dialect]"
    data: bytes


class CommandQueue(Protocol):
    """The commands that a dialect holds back, because the client may have one at a time."""

    waiting_bytes: int

    def require_room(self, size: int) -> None:
        """Raise `Overloaded` if a command of so many bytes may not wait."""


class MessageIds(NamedTuple):
    """The ids in a refused message: its own, and those of the commands that it would have answered."""

    id: str | None = None
    answers: Sequence[str] = ()


class Dialect(Protocol):
    """The translator of one connection. All bytes are the payloads of text frames.

    `entry` is None if the opening handshake brings the token, `heartbeat` if clients wait for no regular frames,
    `queue` if the dialect holds no commands back.
    """

    @property
    def entry(self) -> Entry | None:
        """The part that speaks before there is a session."""

    @property
    def heartbeat(self) -> Heartbeat | None:
        """The part that speaks at regular times."""

    @property
    def queue(self) -> CommandQueue | None:
        """The commands that wait here; None if commands are sent at once."""

    @property
    def documented(self) -> "Callable[[CapabilityFrame, Clock], Dialect] | None":
        """Makes the dialect of a client whose list has an id and a timestamp; None if that changes nothing."""

    def opening(self, client_id: str, limits: ConnectionLimits) -> Iterable[bytes]:
        """Return the first frames to a client whose session has just begun."""

    def decode(self, data: bytes, *, text: bool) -> Sequence["Said"]:
        """Return the client's frames and immediate replies that one message holds, in their order.

        A `Farewell` among them ends the session: the client has said that it leaves.

        None of them counts if one cannot be read. Those of one message are handled in one turn, 64 at the most: a
        dialect that can read more from a message counts them first. Raises `InvalidFrame` or `PayloadTooLarge` with a
        sentence that names the field; the connection goes on.
        """

    def identify(self, data: bytes) -> MessageIds:
        """Return a refused message's own id, if it is a good one, and the ids of the commands it would have answered.

        These commands, at most 64, end at once, because their callers would otherwise wait until their deadlines.
        Raises nothing.
        """

    def encode(self, frame: ServerFrame) -> bytes | None:
        """Return the bytes of a frame to the client; None if the dialect has no word for it.

        Every dialect has one for `CommandFrame` and `CancelFrame`.
        """

    def ping(self) -> bytes | None:
        """Return a frame that the client answers with a frame of its own; None to use the WebSocket's own ping."""

    def close(self, code: int, reason: str) -> Farewell:
        """Return how to end the connection, for a code of the protocol's own table (`CloseCode`)."""


class RefusedRequest(NamedTuple):
    """The answer to a request that may not open a connection: HTTP's status, and a JSON body."""

    status: int
    body: bytes


class DialectKind(NamedTuple):
    """A dialect as a gateway offers it: on which paths, under which subprotocol if it has one, and its maker.

    `screen` looks at a request's query before a connection is opened. `resumes` tells that its clients may resume their
    sessions.
    """

    name: str
    usual_path: str
    make: Callable[[], Dialect]
    subprotocol: str | None = None
    other_paths: frozenset[str] = frozenset()
    screen: Callable[[str], RefusedRequest | None] = lambda query: None
    resumes: bool = False


Wish = Reply | Farewell | CapabilityChange | Switch
Said = ClientFrame | Wish


def may_return(code: int) -> bool:
    """Tell whether a client that is sent away by this code should connect again by itself."""
    return code not in _FINAL
