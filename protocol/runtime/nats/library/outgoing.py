"""The way out to NATS: what one turn of the event loop publishes leaves together, without a task or a future each.

In writes of sixteen messages: fewer would cost more time than they save, and where a whole turn's left in one, the next
process would have nothing to do until then. Sixteen give a tenth more commands a second where 32 or more are in flight.

This reaches into the library's buffer, for the sake of the hot path: its own publish makes a future, passes it through
a queue and wakes a task for each message, which a fifth of a command's time went into when measured. What is posted
here joins the same buffer, so the order with everything else that the library sends is kept.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from nats.aio.client import Client

from protocol.errors import PayloadTooLarge, Unavailable

MAX_UNSENT_BYTES = 16 * 1024 * 1024
MESSAGES_A_WRITE = 16
_PREAMBLE = "NATS/1.0\r\n"
_LINE_BREAKS = str.maketrans("\r\n", "  ")  # a value must not be able to end its line


class Outgoing:
    """Publishes over a connected client. Subjects are built by `protocol.subjects`, so they are not checked again."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self.posted_bytes = 0

    def post(self, client: Client, subject: str, payload: bytes, reply: str, headers: dict[str, str] | None) -> None:
        """Publish at the end of this turn of the event loop.

        Raises `Unavailable` where the server does not take what came before, `PayloadTooLarge` for more than its
        `max_payload`, headers included: a server that gets more closes the whole connection.
        """
        self._require_room(client)
        self._append(client, framed(subject, payload, reply, headers, client.max_payload))

    def post_framed(self, client: Client, frames: bytes) -> None:
        """Publish messages that are framed already, together. Raises `Unavailable` as `post` does: then none was."""
        self._require_room(client)
        self._append(client, frames)

    def write(self, client: Client) -> None:
        """Hand all that is pending to the socket; where the connection has just broken, it was forgotten with it."""
        transport = client._transport  # noqa: SLF001
        if transport is None or not client.is_connected or not client._pending or _is_closing(transport):  # noqa: SLF001
            return
        messages, client._pending = client._pending, []  # noqa: SLF001
        client._pending_data_size = 0  # noqa: SLF001
        transport.writelines(messages)

    def _require_room(self, client: Client) -> None:
        if not client.is_connected or self.unsent_bytes(client) > MAX_UNSENT_BYTES:
            raise Unavailable("NATS is away; try again in a moment")

    def _append(self, client: Client, message: bytes) -> None:
        client._pending.append(message)  # noqa: SLF001  see above
        client._pending_data_size += len(message)  # noqa: SLF001
        self.posted_bytes += len(message)
        if len(client._pending) >= MESSAGES_A_WRITE:  # noqa: SLF001
            self.write(client)
        elif not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._end_turn, client)

    def _end_turn(self, client: Client) -> None:
        self._scheduled = False
        self.write(client)

    def unsent_bytes(self, client: Client) -> int:
        """Return what waits in the library's buffer and in the socket's."""
        writer = getattr(client._transport, "_io_writer", None)  # noqa: SLF001
        in_socket = writer.transport.get_write_buffer_size() if writer is not None else 0
        return int(client.pending_data_size) + in_socket


def framed(subject: str, payload: bytes, reply: str, headers: dict[str, str] | None, max_payload: int) -> bytes:
    """Return a message as it travels. Raises `PayloadTooLarge` for more than `max_payload`, headers included."""
    block = header_block(headers) if headers else b""
    size = len(payload) + len(block)
    if size > max_payload:
        raise PayloadTooLarge("the message is larger than NATS takes")
    start = f"HPUB {subject} {reply} {len(block)} {size}\r\n" if block else f"PUB {subject} {reply} {size}\r\n"
    return b"%b%b%b\r\n" % (start.encode(), block, payload)


def framed_for_stream(subject: str, payload: bytes, reply: str, message_id: str, max_payload: int) -> bytes:
    """Return a message for a stream, which keeps one of each id and acknowledges it to `reply`, as `framed()` does.

    The id is ASCII without line breaks. By its own way, because every command's record takes it.
    """
    block = f"{_PREAMBLE}Nats-Msg-Id: {message_id}\r\n\r\n"
    size = len(block) + len(payload)
    if size > max_payload:
        raise PayloadTooLarge("the message is larger than NATS takes")
    return b"%b%b\r\n" % (f"HPUB {subject} {reply} {len(block)} {size}\r\n{block}".encode(), payload)


def size_of(frame: bytes) -> int:
    """Return how large the server finds a framed message: the last number of its first line."""
    return int(frame[: frame.index(b"\r\n")].rpartition(b" ")[2])


def write_at_once(client: Client) -> None:
    """Have a connected client's socket written when asked; uvloop keeps small writes until the end of the turn."""
    writer = getattr(client._transport, "_io_writer", None)  # noqa: SLF001
    if writer is not None:
        writer.transport.set_write_buffer_limits(0)


def _is_closing(transport: Any) -> bool:
    """Tell whether the socket is gone, which the library may learn a turn later."""
    writer = getattr(transport, "_io_writer", None)
    return writer is None or bool(writer.transport.is_closing())


def header_block(headers: Mapping[str, str]) -> bytes:
    """Return headers as they travel (ADR-4).

    To look for line breaks that are not there is as quick as a cache, which progress and message ids, new each time,
    would always miss.
    """
    block = _PREAMBLE
    for name, value in headers.items():
        if "\n" in value or "\r" in value:
            value = value.translate(_LINE_BREAKS)
        block += f"{name}: {value.strip()}\r\n"
    return (block + "\r\n").encode()
