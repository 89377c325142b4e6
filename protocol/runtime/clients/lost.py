"""Clients that were lost a moment ago and are expected back: their gateway stopped or died, or their connection broke.

Until they are back, callers should repeat a command for one of them or for their targets. A client that closed its
connection is not expected back, and is forgotten at once.

Applications decide how many clients are lost and how much each offers. So the memory is shared among tenants and users,
and a client without room is forgotten. Clients with the same capabilities share one list, which is counted once.
Sans-I/O: `now` is monotonic, in seconds.
"""

from itertools import islice

import msgspec

from protocol import codec
from protocol.access import Principal, may, view_of
from protocol.discovery import Client, Query, matches
from protocol.errors import Overloaded
from protocol.records import EMPTY_CAPABILITIES, CapabilityList
from protocol.shares import Piece, Shares
from protocol.subjects import ClientAddress

LOST_SECONDS = 30.0
MAX_EXPIRED = 500
MAX_BYTES = 64 * 1024 * 1024
ENTRY_BYTES = 2048  # Python's memory for a client or for a list, roughly
DECODED = 8  # a decoded value needs about 8 times the memory of its JSON


class _LostList:
    """A list of capabilities, and the lost clients that offered it."""

    __slots__ = ("capabilities", "clients", "listed", "piece", "tenant")

    def __init__(self, tenant: str, capabilities: CapabilityList) -> None:
        self.tenant = tenant
        self.capabilities = capabilities
        self.clients: dict[str, _LostClient] = {}
        self.listed = True
        self.piece: Piece | None = None


class _LostClient:
    """A lost client, and its targets if there was room for them."""

    __slots__ = ("client", "offered", "piece", "until")

    def __init__(self, client: Client, offered: _LostList | None, until: float, piece: Piece) -> None:
        self.client = client
        self.offered = offered
        self.until = until
        self.piece = piece


class LostClients:
    """Remembers lost clients for 30 seconds, as far as there is room."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._clients: dict[ClientAddress, _LostClient] = {}  # in the order of their loss
        self._lists: dict[str, dict[bytes, _LostList]] = {}
        self._shares = Shares(max_bytes, "too many clients were lost to remember this one")

    def __len__(self) -> int:
        return len(self._clients)

    @property
    def held_bytes(self) -> int:
        """The used memory in bytes."""
        return self._shares.held

    def add(self, client: Client, now: float) -> None:
        """Remember a lost client. If there is no room for its capabilities, remember its id alone."""
        address = ClientAddress(client.record.tenant, client.record.client_id)
        self.forget(address)
        self.expire(now)
        offered = self._list_of(client)
        size = ENTRY_BYTES + DECODED * len(codec.encode(client.record.metadata))
        try:
            piece = self._shares.ask(_holder(client), size, lambda _: self._drop(self._clients.pop(address)))
        except Overloaded:
            self._end_if_unused(offered)
            return
        record = msgspec.structs.replace(client.record, capabilities=EMPTY_CAPABILITIES.raw)
        lost = _LostClient(Client(record, EMPTY_CAPABILITIES), offered, now + LOST_SECONDS, piece)
        self._clients[address] = lost
        if offered is not None:
            offered.clients[address.client_id] = lost

    def forget(self, address: ClientAddress) -> None:
        """Forget a client, because it is back."""
        lost = self._clients.pop(address, None)
        if lost is not None:
            self._drop(lost)
            lost.piece.release()

    def expire(self, now: float) -> None:
        """Forget clients that were lost too long ago. Do some at a time, because very many may be lost at once."""
        for address, lost in list(islice(self._clients.items(), MAX_EXPIRED)):
            if lost.until > now:
                return
            self.forget(address)

    def knows(self, principal: Principal, address: ClientAddress, now: float) -> bool:
        """Tell whether a client that the principal may see was lost a moment ago."""
        lost = self._clients.get(address)
        return lost is not None and lost.until > now and may(principal, view_of(lost.client.record))

    def offered(self, principal: Principal, target: str, action: str | None, query: Query, now: float) -> bool:
        """Tell whether a client with this target was lost a moment ago, if query and principal fit."""
        for each in self._lists.get(principal.tenant, {}).values():
            offer = each.capabilities.find(target)
            if offer is not None and offer.offers(action):
                clients = (lost.client for lost in each.clients.values() if lost.until > now)
                if any(may(principal, view_of(one.record), offer) and matches(one, query) for one in clients):
                    return True
        return False

    # --- their targets ---

    def _list_of(self, client: Client) -> _LostList | None:
        """Return the list that a client shares with others. It is charged to the first of them."""
        if not client.capabilities.offers:
            return None
        tenant, fingerprint = client.record.tenant, client.capabilities.fingerprint
        found = self._lists.get(tenant, {}).get(fingerprint)
        if found is not None:
            return found
        made = _LostList(tenant, client.capabilities)
        size = ENTRY_BYTES + DECODED * len(memoryview(client.capabilities.raw))
        try:
            made.piece = self._shares.ask(_holder(client), size, lambda _: self._drop_list(made))
        except Overloaded:
            return None
        self._lists.setdefault(tenant, {})[fingerprint] = made
        return made

    def _drop(self, lost: _LostClient) -> None:
        if lost.offered is not None:
            del lost.offered.clients[lost.client.record.client_id]
            self._end_if_unused(lost.offered)

    def _end_if_unused(self, each: _LostList | None) -> None:
        if each is not None and each.listed and not each.clients:
            self._drop_list(each)
            assert each.piece is not None
            each.piece.release()

    def _drop_list(self, each: _LostList) -> None:
        lists = self._lists[each.tenant]
        del lists[each.capabilities.fingerprint]
        each.listed, each.capabilities = False, EMPTY_CAPABILITIES
        if not lists:
            del self._lists[each.tenant]


def _holder(client: Client) -> tuple[str, str]:
    return client.record.tenant, client.record.user
