"""Shares of the send buffer to NATS for events: each tenant has one, and each user a part of the tenant's.

Without shares one tenant's events could fill the buffer, and then nobody could publish. Counting begins at 256 KiB, so
events cost nothing here while NATS keeps up. Sans-I/O: an event is identified by its position in the stream of written
bytes, and released when NATS has read up to there.
"""

from collections import deque
from typing import NamedTuple

from protocol.errors import Overloaded

UNCOUNTED_BYTES = 256 * 1024  # a few writes of a turn of the loop, counted for nobody
EVENT_BYTES = 4 * 1024 * 1024  # of events, shared by the tenants whose events wait
MAX_UNSENT_BYTES = 8 * 1024 * 1024  # of all messages; events stay below it, because the rest is for answers
ALONE = 0.75  # the share of a single holder, so that the next one finds room


class _Unsent(NamedTuple):
    ends_at: int
    tenant: str
    user: str
    size: int


class UnsentShares:
    """The events that wait to be written to NATS, by tenant and user."""

    def __init__(self) -> None:
        self._waiting: deque[_Unsent] = deque()
        self._tenants: dict[str, dict[str, int]] = {}

    def take(self, owner: tuple[str, str], size: int, written: int, unsent: int) -> None:
        """Count an event of a tenant's user. `written` bytes were published before it, and `unsent` of them still wait.

        Raises `Overloaded` if that exceeds a share. A user without a waiting event may add one of any size.
        """
        self._release(written - unsent)
        if unsent < UNCOUNTED_BYTES:
            return
        tenant, user = owner
        self._require_share(self._tenants.get(tenant, {}), tenant, user, size)
        if unsent + size > MAX_UNSENT_BYTES:
            raise Overloaded("too much waits to be written to NATS; send the event again in a moment")
        users = self._tenants.setdefault(tenant, {})
        users[user] = users.get(user, 0) + size
        self._waiting.append(_Unsent(written + size, tenant, user, size))

    def _require_share(self, users: dict[str, int], tenant: str, user: str, size: int) -> None:
        of_tenant = _share(EVENT_BYTES, len(self._tenants) + (tenant not in self._tenants))
        of_user = _share(of_tenant, len(users) + (user not in users))
        for held, share in ((sum(users.values()), of_tenant), (users.get(user, 0), of_user)):
            if held and held + size > share:
                raise Overloaded("too many of your events wait to be written to NATS; send this one again in a moment")

    def _release(self, taken_up_to: int) -> None:
        """Forget the events that NATS has read."""
        while self._waiting and self._waiting[0].ends_at <= taken_up_to:
            gone = self._waiting.popleft()
            users = self._tenants[gone.tenant]
            users[gone.user] -= gone.size
            if not users[gone.user]:
                del users[gone.user]
            if not users:
                del self._tenants[gone.tenant]


def _share(capacity: float, holders: int) -> float:
    return capacity * ALONE if holders == 1 else capacity / holders
