"""Which dialect the agents at a path speak."""

import time

from agent_api.http.connections import SDK_SOCKET_PATHS
from agent_api.socket.dialect import AgentDialect, NativeAgents
from agent_api.socket.published_sdk import SdkAgent

_native = NativeAgents()


def dialect_at(target: str) -> AgentDialect:
    """Return the dialect of a new connection by the target of its request."""
    return SdkAgent(time.time) if target.partition("?")[0] in SDK_SOCKET_PATHS else _native
