"""The core of an agent's socket, fed as its shell feeds it."""

import json
from typing import Any

import msgspec

from agent_api.socket import frames
from agent_api.socket.effects import (
    AgentEffect,
    OfferToAgent,
    OpenStream,
    OrderInFlight,
    SendToAgent,
    StartOrder,
    Stream,
)
from agent_api.socket.session import (
    AgentLimits,
    AgentSession,
)
from protocol.access import AGENT, Principal
from protocol.messages import CommandResponse, ProgressMessage

ANN = Principal("ann", AGENT, "default", float("inf"))
LIMITS = AgentLimits(30_000, 300_000, ping_interval_seconds=25, ping_timeout_seconds=8)
Frame = dict[str, Any]


def socket() -> AgentSession:
    return AgentSession(ANN, LIMITS, now=0)


def taken(core: AgentSession, frame: Frame, now: float = 0, size: int = 10) -> list[AgentEffect]:
    """Have the core take a frame as its shell does; what it raises is raised."""
    return core.take(frames.decode(json.dumps(frame).encode(), text=True), size, now)


def command(ident: str = "a", **fields: Any) -> Frame:
    return {"type": "command", "id": ident, "clientId": "c1", "command": {"target": "f", "requestId": "r"}, **fields}


def started(core: AgentSession, ident: str = "a", now: float = 0, **fields: Any) -> OrderInFlight:
    [effect] = taken(core, command(ident, **fields), now)
    assert isinstance(effect, StartOrder)
    return effect.command


def opened(core: AgentSession, frame: Frame) -> Stream:
    [effect] = taken(core, frame)
    assert isinstance(effect, OpenStream)
    return effect.stream


def success(*, replayed: bool = False) -> CommandResponse:
    return CommandResponse(
        request_id="r", status="success", result=msgspec.Raw(b"1"), client_id="c1", duration_ms=5, replayed=replayed
    )


def sent(effects: list[AgentEffect]) -> list[Any]:
    return [effect.frame for effect in effects if isinstance(effect, SendToAgent | OfferToAgent)]


def codes(effects: list[AgentEffect]) -> list[str]:
    return [getattr(frame, "error", frame).code for frame in sent(effects)]


def progress(seq: int) -> ProgressMessage:
    return ProgressMessage(request_id="r", seq=seq, progress=float(seq))
