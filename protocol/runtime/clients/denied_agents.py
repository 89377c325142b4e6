"""Agents that an administrator has disconnected: their connections end, and they are refused for a while.

Each has an entry in the clients bucket. So every process with a mirror of the bucket knows them, even one that starts
later. Times are on the deployment's common clock, because the registry that wrote an entry is on another machine.
"""

import contextlib
from collections.abc import Callable, Iterator

import msgspec

from protocol import codec, subjects
from protocol.access import Principal
from protocol.errors import BridgeError, PermissionDenied
from protocol.messages import timestamp
from protocol.reports import AgentDenial
from protocol.runtime.clients.replica import ReplicaEntry

OnDenied = Callable[[BridgeError], None]
OnDenial = Callable[[AgentDenial], None]
_Whose = tuple[str, str]  # a tenant and a `sub`

_denials = msgspec.json.Decoder(AgentDenial)


class DeniedAgents:
    """The agents that are refused now. Pass `observe` to the mirror as a listener; `on_denial` gets each new entry."""

    def __init__(self, now_ms: Callable[[], int], on_denial: OnDenial = lambda denial: None) -> None:
        self._now_ms = now_ms
        self._on_denial = on_denial
        self._until_ms: dict[_Whose, int] = {}
        self._watchers: dict[_Whose, set[OnDenied]] = {}

    def observe(self, key: str, before: ReplicaEntry | None, after: ReplicaEntry | None) -> None:
        """Take a change from the mirror: refuse an agent and end its connections, or admit it again."""
        if not subjects.is_agent_key(key):
            return
        former, denial = _read(before), _read(after)
        if former is not None:
            self._until_ms.pop((former.tenant, former.sub), None)
        if denial is not None:
            self._take(denial)

    def of_tenant(self, tenant: str) -> int:
        """Return the number of refused agents of a tenant."""
        self._forget_past()
        return sum(whose[0] == tenant for whose in self._until_ms)

    def require_admitted(self, principal: Principal) -> None:
        """Raise `PermissionDenied` if an administrator has disconnected this agent."""
        if not self._until_ms:  # the usual case
            return
        until_ms = self._until_ms.get((principal.tenant, principal.sub))
        if until_ms is not None and until_ms > self._now_ms():
            raise _refusal(until_ms)

    @contextlib.contextmanager
    def watching(self, principal: Principal, on_denied: OnDenied) -> Iterator[None]:
        """Call `on_denied` if an administrator disconnects this agent meanwhile."""
        whose = (principal.tenant, principal.sub)
        self._watchers.setdefault(whose, set()).add(on_denied)
        try:
            yield
        finally:
            self._watchers[whose].discard(on_denied)
            if not self._watchers[whose]:
                del self._watchers[whose]

    def _take(self, denial: AgentDenial) -> None:
        whose = (denial.tenant, denial.sub)
        self._forget_past()
        if denial.until_ms > self._now_ms():
            self._until_ms[whose] = denial.until_ms
        refusal = _refusal(denial.until_ms)
        for on_denied in list(self._watchers.get(whose, ())):
            on_denied(refusal)
        self._on_denial(denial)

    def _forget_past(self) -> None:
        now = self._now_ms()
        for whose in [whose for whose, until_ms in self._until_ms.items() if until_ms <= now]:
            del self._until_ms[whose]


def _refusal(until_ms: int) -> PermissionDenied:
    return PermissionDenied(f"an administrator has disconnected this agent until {timestamp(until_ms / 1000)}")


def _read(entry: ReplicaEntry | None) -> AgentDenial | None:
    """Decode an entry. Return None if it cannot be read; then it refuses nobody."""
    try:
        return codec.decode(_denials, entry.data) if entry is not None else None
    except BridgeError:
        return None
