"""The one line on standard output with which a process announces that it serves, and its address.

It also has the fields of a log line in JSON, for collectors that read both.
"""

import json
import time

import msgspec

from protocol import codec
from protocol.errors import BridgeError
from protocol.messages import timestamp


class Announcement(msgspec.Struct, frozen=True, omit_defaults=True):
    """The name of the process, and its URL if it listens."""

    process: str
    url: str | None = None
    at: str = ""
    level: str = ""
    message: str = ""


_decoder = msgspec.json.Decoder(Announcement)


def announce(process: str, url: str | None = None) -> None:
    """Print the line."""
    line = Announcement(process, url, timestamp(time.time()), "info", "serving")
    print(json.dumps(msgspec.to_builtins(line)), flush=True)  # noqa: T201


def read_announcement(line: bytes) -> Announcement | None:
    """Decode the announcement, or return None for any other line."""
    try:
        return codec.decode(_decoder, line)
    except BridgeError:
        return None
