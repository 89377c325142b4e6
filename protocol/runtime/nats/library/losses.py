"""What the library keeps of a connection that broke, and would deliver or leave waiting long after."""

import nats.errors
from nats.aio.client import Client


def forget_unsent(client: Client) -> None:
    """Drop what was not written when the connection broke: its senders have been told, or will give up.

    Without this the library would send stale requests seconds later. Subscriptions are replayed from its own table.
    """
    client._pending = []  # noqa: SLF001
    client._pending_data_size = 0  # noqa: SLF001


def fail_requests(client: Client) -> None:
    """End the waits of requests whose replies died with the connection; whether they were served is not known.

    The library also keeps those that were given up or failed before they were sent. Nobody reads what becomes of them,
    which would be logged as a fault: hence the look at each.
    """
    for waiting in list(client._resp_map.values()):  # noqa: SLF001
        if not waiting.done():
            waiting.set_exception(nats.errors.ConnectionReconnectingError())
            waiting.exception()
