"""The stream's messages for readers: decoded once, and encoded once for all readers with the same format."""

import logging
from collections.abc import Callable
from typing import Literal

import msgspec

from protocol import codec, subjects
from protocol.access import ClientView
from protocol.errors import BridgeError, InvalidRequest
from protocol.runtime.streams.positions import Position

Kind = Literal["event", "client"]  # also the third token of the subject

log = logging.getLogger(__name__)


class Message:
    """An application's event or a change of a client. `name` is the event's name or the change, `data` its JSON."""

    __slots__ = ("_written", "client", "data", "kind", "name", "position")

    def __init__(self, position: Position, kind: Kind, name: str, client: ClientView, data: bytes) -> None:
        self.position = position
        self.kind = kind
        self.name = name
        self.client = client
        self.data = data
        self._written: dict[Callable[[Message], bytes], bytes] = {}

    def written(self, write: "Callable[[Message], bytes]") -> bytes:
        """Return this message encoded by `write`. It is encoded once for all readers."""
        found = self._written.get(write)
        if found is None:
            found = self._written[write] = write(self)
        return found


class _Body(msgspec.Struct, rename="camel"):
    client_id: str
    user: str
    app: str
    event: str = ""
    change: str = ""

    def name(self, kind: str) -> str:
        return self.event if kind == "event" else self.change

    def token(self, kind: str) -> str:
        """Return the required last token of the subject."""
        return subjects.event_token(self.event) if kind == "event" else self.change


_bodies = msgspec.json.Decoder(_Body)


def read_message(subject: str, position: Position, data: bytes) -> Message | None:
    """Decode the message at a position, or return None if it is not one of ours.

    The subject decides to which client it belongs. A body that contradicts it is forged or faulty.
    """
    match subject.split("."):
        case [subjects.ROOT, tenant, ("event" | "client") as kind, client_id, token]:
            pass
        case _:
            return None
    try:
        body = codec.decode(_bodies, data)
        if (body.client_id, body.token(kind)) != (client_id, token):
            raise InvalidRequest("its body contradicts its subject")
    except BridgeError as error:
        log.warning("left out the message %d on %s: %s", position.sequence, subject, error.message)
        return None
    return Message(position, kind, body.name(kind), ClientView(tenant, client_id, body.user, body.app), data)
