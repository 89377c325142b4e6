"""The filters that a reader chooses. They do not decide about access; `may()` does."""

import msgspec

from agent_api.events.messages import Message
from protocol import subjects
from protocol.access import Principal, may

WILDCARD = "*"
MAX_NAMES = 32
MAX_TEXT_CHARS = 256


class Filters(msgspec.Struct, frozen=True):
    """Selects messages by client, user, app and event name (`*` matches any text), and changes of clients.

    `names` None selects all events, `()` none.
    """

    client_id: str | None = None
    user: str | None = None
    app: str | None = None
    names: tuple[str, ...] | None = None
    changes: bool = True

    def wants(self, message: Message) -> bool:
        """Tell whether a message passes the filters."""
        client = message.client
        return (
            (self.client_id is None or self.client_id == client.client_id)
            and (self.user is None or self.user == client.user)
            and (self.app is None or self.app == client.app)
            and (self._wants_event(message.name) if message.kind == "event" else self.changes)
        )

    def subject(self, tenant: str) -> str:
        """Return the narrowest subject that covers all messages for these filters."""
        client_id = self.client_id or WILDCARD
        if self.names == ():
            return subjects.client_changes_of(tenant, client_id)
        if self.changes:
            return subjects.news_of(tenant, client_id)
        if self.names is not None and len(self.names) == 1 and WILDCARD not in self.names[0]:
            return subjects.event(tenant, client_id, self.names[0])
        return subjects.events_of(tenant, client_id)

    def _wants_event(self, name: str) -> bool:
        return self.names is None or any(matches(name, pattern) for pattern in self.names)


def visible(message: Message, principal: Principal, filters: Filters) -> bool:
    """Tell whether a reader may see a message and wants it."""
    return filters.wants(message) and may(principal, message.client)


def matches(name: str, pattern: str) -> bool:
    """Tell whether a name fits a pattern with `*` for any text. It takes linear time for any pattern."""
    first, *between = pattern.split(WILDCARD)
    if not between:
        return name == pattern
    last = between.pop()
    if len(name) < len(first) + len(last) or not (name.startswith(first) and name.endswith(last)):
        return False
    at, end = len(first), len(name) - len(last)
    for part in between:
        found = name.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True
