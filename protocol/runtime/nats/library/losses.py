"""Clears the library's state of a broken connection: unsent messages, and requests whose reply cannot come."""

import nats.errors
from nats.aio.client import Client


def forget_unsent(client: Client) -> None:
    """Drop the unwritten messages of a broken connection, because the library would send them seconds too late.

    Their senders get an error or time out. The library repeats its subscriptions from a table of its own.
    """
    client._pending = []  # noqa: SLF001
    client._pending_data_size = 0  # noqa: SLF001


def fail_requests(client: Client) -> None:
    """Fail the requests whose replies were lost with the connection. They may have been served.

    Raises `ConnectionReconnectingError` in the tasks that wait for them.
    """
    for waiting in list(client._resp_map.values()):  # noqa: SLF001
        if not waiting.done():
            waiting.set_exception(nats.errors.ConnectionReconnectingError())
            waiting.exception()  # mark it as seen: for requests that were given up nobody else reads the error
