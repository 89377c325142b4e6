"""What a client sends, given to its session; tokens verified by a key set that takes its time."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from support.sessions import LIMITS, USER, session
from support.wait import until

from gateway.contracts import Contracts
from gateway.events import Events
from gateway.receiving import Receiving
from gateway.sessions import LiveSession, Sessions, Socket
from protocol.access import APP, Principal
from protocol.errors import Unauthenticated, Unavailable
from protocol.runtime.auth import Verifier
from protocol.runtime.nats import Connection

FRESH = Principal("user-1", APP, "default", 10**11)


class FakeSocket:
    """Keeps what is sent to the client."""

    def __init__(self) -> None:
        self.frames: list[dict[str, Any]] = []
        self.close_code: int | None = None

    def send_text(self, data: bytes) -> None:
        self.frames.append(json.loads(data))

    def send_ping(self, on_pong: Any) -> None:
        raise AssertionError("nobody pings here")

    def close_soon(self, code: int, reason: str) -> None:
        self.close_code = code


class FakeVerifier:
    """Verifies when the test lets it, with the outcome that it sets."""

    off = False

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.asked = 0
        self.outcome: Principal | Exception = FRESH

    async def verify(self, token: str | None) -> Principal:
        self.asked += 1
        await self.release.wait()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


class Stage:
    """A client behind `Receiving`."""

    def __init__(self, receiving: Receiving, live: LiveSession, verifier: FakeVerifier, changed: list[Any]) -> None:
        self.receiving = receiving
        self.live = live
        self.verifier = verifier
        self.changed = changed

    @property
    def socket(self) -> FakeSocket:
        return cast("FakeSocket", self.live.socket)

    def take(self, **frame: Any) -> None:
        self.receiving.take(self.live, json.dumps(frame).encode(), text=True)

    async def told(self, count: int = 1) -> list[tuple[Any, ...]]:
        """Wait for so many frames, and return them in short."""
        await until(lambda: len(self.socket.frames) >= count)
        return [(frame["type"], frame.get("id"), frame.get("code")) for frame in self.socket.frames]


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    verifier, changed = FakeVerifier(), list[Any]()
    async with asyncio.TaskGroup() as tasks:
        sessions = Sessions("gw", cast("Connection", None), tasks, LIMITS, changed.append, lambda live, why: None)
        live = LiveSession(session("add"), cast("Socket", FakeSocket()), sessions)
        receiving = Receiving(Contracts(), cast("Events", None), cast("Verifier", verifier), tasks)
        yield Stage(receiving, live, verifier, changed)
        verifier.release.set()
    live.end()


async def test_fresh_token_is_in_force_when_it_is_verified(stage: Stage) -> None:
    stage.take(type="auth", token="t", id="f1")
    assert stage.live.core.principal is USER
    stage.verifier.release.set()
    assert await stage.told() == [("ack", "f1", None)]
    assert stage.live.core.principal is FRESH


async def test_tokens_are_verified_one_at_a_time(stage: Stage) -> None:
    for number in range(100):
        stage.take(type="auth", token="t", id=f"f{number}")
    assert [code for _, _, code in await stage.told(99)] == ["overloaded"] * 99
    assert stage.verifier.asked <= 1
    stage.verifier.release.set()
    assert (await stage.told(100))[-1] == ("ack", "f0", None)
    stage.take(type="auth", token="t", id="again")
    assert (await stage.told(101))[-1] == ("ack", "again", None)


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (Unauthenticated("bad"), "unauthenticated"),
        (Unavailable("no key set"), "unavailable"),
        (Principal("user-2", APP, "default", 10**11), "permission_denied"),
        (Principal("user-1", "agent", "default", 10**11), "permission_denied"),
    ],
)
async def test_refused_token_leaves_the_former_in_force_and_another_may_follow(
    stage: Stage, outcome: Any, code: str
) -> None:
    stage.verifier.outcome = outcome
    stage.verifier.release.set()
    stage.take(type="auth", token="t", id="f1")
    assert await stage.told() == [("error", "f1", code)]
    assert stage.live.core.principal is USER
    stage.verifier.outcome = FRESH
    stage.take(type="auth", token="t", id="f2")
    assert (await stage.told(2))[1] == ("ack", "f2", None)


async def test_token_that_is_verified_after_the_end_arms_no_timer(stage: Stage) -> None:
    stage.take(type="auth", token="t", id="f1")
    await until(lambda: stage.verifier.asked)
    stage.live.end()
    stage.verifier.release.set()
    await until(lambda: not stage.live.refreshing)
    assert stage.live._expiry._timer is None
    assert stage.socket.frames == []


async def test_frames_after_the_end_are_dropped(stage: Stage) -> None:
    stage.live.end()
    stage.take(type="capability", capabilities=["late"])
    stage.take(type="metadata", metadata={"late": True})
    stage.take(type="what")
    assert stage.changed == []
    assert stage.socket.frames == []


async def test_fault_of_ours_is_internal_and_the_connection_goes_on(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """There are no events on this stage: publishing one fails as only a fault of ours does."""
    stage.take(type="event", event="x", id="f1")
    stage.take(type="ping")
    assert await stage.told(2) == [("error", "f1", "internal"), ("pong", None, None)]
    assert "a frame of the client's failed" in caplog.text
