"""Session cores without sockets, and what effects come to."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import msgspec

from gateway.capabilities.contracts import Contracts
from gateway.dialects.native import NATIVE
from gateway.limits.rate_limits import RateLimits
from gateway.sessions.core.calls import call_of
from gateway.sessions.core.effects import Answer, Arm, Changed, Close, Effect, Ping, Send
from gateway.sessions.core.limits import SessionLimits
from gateway.sessions.core.progress import PublishProgress, RemindProgress
from gateway.sessions.core.session import Session
from gateway.sessions.live import Handlers, LiveContext, LiveSession, Socket
from gateway.sessions.replies import Replies
from protocol.access import AGENT, APP, Principal
from protocol.frames import CommandFrame, ResponseFrame
from protocol.messages import CommandRequest
from protocol.runtime.alarms import Alarms
from protocol.runtime.nats.connection import Connection

LIMITS = SessionLimits(
    command_timeout_ms=30_000,
    max_command_timeout_ms=300_000,
    max_in_flight=64,
    ping_interval_seconds=25,
    ping_timeout_seconds=8,
    max_message_bytes=960 * 1024,
)
REPLY = "_INBOX.agent.1"
EVER = float("inf")
USER = Principal("user-1", APP, "default", EVER)
AGENT_1 = Principal("agent-1", AGENT, "default", EVER)
AGENT_2 = Principal("agent-2", AGENT, "default", EVER)
STRANGER = Principal("agent-1", AGENT, "elsewhere", EVER)
CLIENT_ID = "01234567-client"
OWNER = ("default", "user-1")  # of capability lists


def session(
    *capabilities: Any,
    rate_limits: RateLimits | None = None,
    require_room: Callable[[int], None] = lambda size: None,
    **limits: Any,
) -> Session:
    """Return an active session that offers these capabilities, born at 0."""
    core = Session(CLIENT_ID, USER, LIMITS._replace(**limits), 0, rate_limits, require_room)
    contract = Contracts().read([msgspec.Raw(msgspec.json.encode(one)) for one in capabilities], OWNER, 0)
    core.register(contract, None, None, None)
    return core


def live_session(
    core: Session, socket: Socket, on_changed: Callable[[LiveSession], None], replies: Replies | None = None
) -> LiveSession:
    """Return the shell around a session, without NATS: nothing that it answers arrives anywhere but at `replies`."""
    loop = asyncio.get_running_loop()
    handlers = Handlers(lambda *_: None, lambda *_: False, lambda _: None, on_changed, lambda *_: None, lambda _: None)
    replies = replies or Replies(cast("Connection", None))
    context = LiveContext("gw-1", LIMITS.told, replies, handlers, Alarms(), loop.time, loop.call_at, lambda *_: None)
    return LiveSession(core, socket, NATIVE.make(), context)


def command(target: str = "add", **fields: Any) -> CommandRequest:
    """Return a command; `parameters` are plain Python."""
    parameters = msgspec.Raw(msgspec.json.encode(fields.pop("parameters", {})))
    return CommandRequest(target=target, parameters=parameters, **fields)


def call(
    core: Session,
    caller: Principal,
    sent: CommandRequest,
    request_id: str,
    reply: str,
    now: float,
    progress_to: str | None = None,
    reservation: str = "",
    limits: SessionLimits = LIMITS,
) -> list[Effect]:
    """Have a session take a command that has just come, as a gateway does."""
    begun = call_of(caller, sent, request_id, reply, limits, now, progress_to)
    return core.call(caller, sent, begun, now, reservation)


def response(wire_id: str, result: Any = None) -> ResponseFrame:
    """Return a client's good answer."""
    return ResponseFrame(wire_id, "success", msgspec.Raw(msgspec.json.encode(result)))


def dispatched(effects: list[Effect]) -> str:
    """Return the wire id of the one command that these effects send."""
    send, arm = effects
    assert isinstance(send, Send)
    assert isinstance(arm, Arm)
    assert isinstance(send.frame, CommandFrame)
    assert send.frame.request_id == arm.wire_id
    return arm.wire_id


def codes(effects: list[Effect]) -> list[str]:
    """Return what effects come to, one word each: a frame's type, an answer's status or code, a close code."""
    return [_word(effect) for effect in effects]


def _word(effect: Effect) -> str:
    match effect:
        case Send(frame=frame):
            return str(frame.__struct_config__.tag)
        case Answer(response=answer):
            return answer.error.code if answer.error else answer.status
        case Close(code=code):
            return f"close {code}"
        case Arm():
            return "arm"
        case Changed():
            return "changed"
        case Ping():
            return "ping!"
        case PublishProgress(message=message):
            return f"progress {message.seq}: {message.progress}"
        case RemindProgress():
            return "remind"
