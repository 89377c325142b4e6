"""Rate limits of commands: an agent's at this gateway, and a capability's for all agents together.

Both apply to this process alone. So an agent that calls clients at three gateways has three token buckets. A capability
has one, because its client is at one gateway.
"""

from protocol.access import Principal
from protocol.errors import AGENT_LIMIT, CAPABILITY_LIMIT, RateLimited
from protocol.records import Offer, Rate
from protocol.runtime.token_buckets import TokenBuckets

MAX_AGENTS = 10_000
MAX_CAPABILITIES = 50_000


class RateLimits:
    """The limits of one gateway; `per_agent` is None if agents have none."""

    def __init__(self, per_agent: Rate | None = None) -> None:
        self.per_agent = per_agent
        self._agents = TokenBuckets(MAX_AGENTS)
        self._capabilities = TokenBuckets(MAX_CAPABILITIES)

    def keep(self, caller: Principal, client_id: str, offer: Offer, now: float) -> None:
        """Count a command. Raises `RateLimited`, and counts nothing, if one of the two limits is used up."""
        agent = (caller.tenant, caller.sub)
        capability = (client_id, offer.target, offer.rate)  # another rate in a new registration begins anew
        if self.per_agent is not None and (wait := self._agents.wait(agent, self.per_agent, now)):
            told = f"this agent may send {_told(self.per_agent)} through this gateway"
            raise RateLimited.for_seconds(wait, told, AGENT_LIMIT)
        if offer.rate is not None and (wait := self._capabilities.wait(capability, offer.rate, now)):
            told = f"{offer.target!r} takes {_told(offer.rate)}, of all agents together"
            raise RateLimited.for_seconds(wait, told, CAPABILITY_LIMIT)
        if self.per_agent is not None:
            self._agents.take(agent, self.per_agent, now)
        if offer.rate is not None:
            self._capabilities.take(capability, offer.rate, now)


def _told(rate: Rate) -> str:
    return f"{rate.per_second:.6g} commands a second and {rate.burst:.6g} at once"
