"""The packets of Socket.IO 5, read and written as bytes; their JSON is decoded elsewhere.

    TYPE [ATTACHMENTS "-"] [NAMESPACE ","] [ACK-ID] [JSON]        github.com/socketio/socket.io-protocol, version 5

Heads are bounded: three digits of attachments, 128 characters of a namespace, 15 digits of an id, which is as much as
a number of JavaScript's can count.
"""

import enum
import re
from typing import NamedTuple

from protocol.errors import InvalidFrame

_HEAD = re.compile(rb"([0-6])(?:([0-9]{1,3})-)?(?:(/[^,]{0,127})(?:,|\Z))?([0-9]{0,15})(?=[\[{]|\Z)")
MAIN = "/"


class PacketType(enum.IntEnum):
    """The type of a packet."""

    CONNECT = 0
    DISCONNECT = 1
    EVENT = 2
    ACK = 3
    CONNECT_ERROR = 4
    BINARY_EVENT = 5
    BINARY_ACK = 6


class Packet(NamedTuple):
    """A packet. `ack` is the id by which its sender knows the answer, `json` the text of the rest, empty if none."""

    type: PacketType
    json: bytes = b""
    namespace: str = MAIN
    ack: int | None = None
    attachments: int = 0


def read_packet(data: bytes) -> Packet:
    """Return a packet without decoding its JSON. Raises `InvalidFrame` for a malformed head."""
    head = _HEAD.match(data)
    if head is None:
        raise InvalidFrame("not a packet of Socket.IO: type, namespace, id and JSON are expected")
    kind, attachments, namespace, ack = head.groups()
    try:
        name = MAIN if namespace is None else namespace.decode()
    except UnicodeDecodeError as exc:
        raise InvalidFrame("the namespace is not valid UTF-8") from exc
    return Packet(PacketType(int(kind)), data[head.end() :], name, int(ack) if ack else None, int(attachments or 0))


def write_packet(packet: Packet) -> bytes:
    """Return the bytes of a packet."""
    return b"%d%b%b%b%b" % (
        packet.type,
        b"%d-" % packet.attachments if packet.attachments else b"",
        b"" if packet.namespace == MAIN else packet.namespace.encode() + b",",
        b"" if packet.ack is None else b"%d" % packet.ack,
        packet.json,
    )
