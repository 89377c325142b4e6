"""The agents that work at a client, and those that its user has stopped. Sans-I/O; `now` is monotonic, in seconds."""

import msgspec

from protocol.errors import PermissionDenied
from protocol.frames import ActiveAgent, AgentsFrame
from protocol.messages import timestamp

WORKING_SECONDS = 60.0  # how long after its last command an agent counts as working
TELL_SECONDS = 0.5
STOP_SECONDS = 60.0
MAX_STOP_SECONDS = 24 * 3600.0
MAX_AGENTS = 64  # of each kind; above that, those that were active last


class _Working(msgspec.Struct):
    name: str | None
    since: float
    in_flight: int = 0
    last: float = 0.0


class Presence:
    """The agents that have had a command within a minute, for a client that asked for them.

    `wall_offset` converts the times here to Unix seconds.
    """

    def __init__(self, wall_offset: float) -> None:
        self._wall_offset = wall_offset
        self._agents: dict[str, _Working] = {}
        self._changed = True
        self._told_at = float("-inf")

    def began(self, sub: str, name: str | None, now: float) -> None:
        """Note a command of an agent; the agent that was active last comes last."""
        agent = self._agents.pop(sub, None) or _Working(name, now)
        agent.in_flight += 1
        agent.name, agent.last = name, now
        self._agents[sub] = agent
        while len(self._agents) > MAX_AGENTS:
            del self._agents[next(iter(self._agents))]
        self._changed = True

    def ended(self, sub: str, now: float) -> None:
        """Note the end of a command."""
        agent = self._agents.get(sub)
        if agent is not None and agent.in_flight:
            agent.in_flight -= 1
            agent.last = now
            self._changed = True

    def tell_anew(self) -> None:
        """Send the list again, because the client has a new connection and may be a new page."""
        self._changed = True

    def due(self, now: float) -> AgentsFrame | None:
        """Return the agents at work if they have changed and half a second has passed since the last frame."""
        self._expire(now)
        if not self._changed or now - self._told_at < TELL_SECONDS:
            return None
        self._changed, self._told_at = False, now
        return AgentsFrame([self._told(sub, agent) for sub, agent in self._agents.items()])

    def _told(self, sub: str, agent: _Working) -> ActiveAgent:
        return ActiveAgent(sub, agent.in_flight, timestamp(self._wall_offset + agent.since), agent.name)

    def _expire(self, now: float) -> None:
        for sub, agent in list(self._agents.items()):
            if not agent.in_flight and now - agent.last >= WORKING_SECONDS:
                del self._agents[sub]
                self._changed = True


class StoppedAgents:
    """The stopped agents, each with the end of its stop. The key None means all agents."""

    def __init__(self) -> None:
        self._until: dict[str | None, float] = {}

    def stop(self, sub: str | None, seconds: float | None, now: float) -> None:
        """Refuse an agent's commands for `seconds`. Above 64 stopped agents, the first one is allowed again."""
        self._until.pop(sub, None)
        self._until[sub] = now + min(MAX_STOP_SECONDS, STOP_SECONDS if seconds is None else seconds)
        while len(self._until) > MAX_AGENTS:
            del self._until[next(iter(self._until))]

    def left(self, now: float) -> list[tuple[str | None, float]]:
        """Return the stopped agents with their remaining seconds, for the gateway to which the session moves."""
        return [(sub, until - now) for sub, until in self._until.items() if until > now]

    def allow(self, sub: str | None) -> None:
        """Accept commands of an agent again; without an id, of all agents."""
        if sub is None:
            self._until.clear()
        else:
            self._until.pop(sub, None)

    def require_allowed(self, sub: str, now: float) -> None:
        """Raise `PermissionDenied` for an agent that the user has stopped."""
        until = max(self._until.get(sub, 0.0), self._until.get(None, 0.0))
        if until <= now:
            return
        left_ms = round((until - now) * 1000)
        sentence = "the user of this client has stopped this agent; ask the user, or try again later"
        raise PermissionDenied(sentence, details={"by": "user", "retryAfterMs": left_ms})
