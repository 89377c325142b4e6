"""A send window: bounds the bytes of large messages that are on their way, and shares them among tenants. Sans-I/O.

NATS delivers in order, so a small message waits behind all large ones that were sent before it to the same process.

- A message leaves while less than the window is on its way. So the window is exceeded by one message at most.
- A tenant has half of the window. With nothing on its way it may send one message of any size.
- If messages wait, tenants take turns, then the users of a tenant. A user's messages leave in order.
"""

from collections import OrderedDict
from collections.abc import Callable

from protocol.shares import Holder


class Place:
    """The place of one message, which waits or is on its way until `release()`."""

    __slots__ = ("_window", "holder", "is_waiting", "size", "start")

    def __init__(self, window: "SendWindow", holder: Holder, size: int, start: Callable[[], None]) -> None:
        self._window: SendWindow | None = window
        self.holder = holder
        self.size = size
        self.start = start
        self.is_waiting = True

    def release(self) -> None:
        """Note that the message has arrived, or need not leave any more. Does nothing the second time."""
        window, self._window = self._window, None
        if window is not None:
            window.let_go(self)


class SendWindow:
    """The window of one process, in bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.on_the_way = 0
        self._max_bytes = max_bytes
        self._of_tenant: dict[str, int] = {}  # on the way
        self._waiting: OrderedDict[str, OrderedDict[str, dict[Place, None]]] = OrderedDict()

    def ask(self, holder: Holder, size: int, start: Callable[[], None]) -> Place:
        """Return the place of a message. `start` is called when the message may leave, at once if there is room."""
        place = Place(self, holder, size, start)
        tenant, user = holder
        self._waiting.setdefault(tenant, OrderedDict()).setdefault(user, {})[place] = None
        self._start_all()
        return place

    def let_go(self, place: Place) -> None:
        """See `Place.release()`."""
        if place.is_waiting:
            self._remove(place)
        else:
            self._arrived(place)
        self._start_all()

    def _arrived(self, place: Place) -> None:
        tenant = place.holder[0]
        self.on_the_way -= place.size
        self._of_tenant[tenant] -= place.size
        if not self._of_tenant[tenant]:
            del self._of_tenant[tenant]

    def _start_all(self) -> None:
        while (place := self._next()) is not None:
            tenant, user = place.holder
            self._waiting.move_to_end(tenant)
            self._waiting[tenant].move_to_end(user)
            self._remove(place)
            place.is_waiting = False
            self.on_the_way += place.size
            self._of_tenant[tenant] = self._of_tenant.get(tenant, 0) + place.size
            place.start()

    def _next(self) -> Place | None:
        """Return the message that may leave next. It passes over the tenants that have used up their halves."""
        if self.on_the_way >= self._max_bytes:
            return None
        for tenant, users in self._waiting.items():
            place = next(iter(next(iter(users.values()))))
            held = self._of_tenant.get(tenant, 0)
            if not held or held + place.size <= self._max_bytes // 2:
                return place
        return None

    def _remove(self, place: Place) -> None:
        """Take a place from its queue."""
        tenant, user = place.holder
        users = self._waiting[tenant]
        del users[user][place]
        if not users[user]:
            del users[user]
        if not users:
            del self._waiting[tenant]
