"""What a client sends, given to its session; tokens verified by a key set that takes its time."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import msgspec
import pytest
from support.played.sessions import USER, live_session, session
from support.settings import settings_for
from support.wait import until

from gateway.capabilities.contracts import Contracts
from gateway.client_frames import ClientFrames
from gateway.dialects.native import Native
from gateway.events import Events
from gateway.sessions.live import LiveSession, Socket
from gateway.settings import GatewaySettings
from protocol.access import APP, Principal
from protocol.errors import Unauthenticated, Unavailable
from protocol.frames import ClientFrame, PingFrame
from protocol.reports import EndReason
from protocol.runtime.connections.turns import Turns
from protocol.runtime.tokens import Verifier

LARGE_DATA = 14_000
FRESH = Principal("user-1", APP, "default", 10**11)
RATES: dict[str, Any] = {
    "events_per_session": 3,
    "registrations_per_session": 2,
    "progress_per_session": 200,
    "bytes_per_session": 2_000_000,
}


class FakeSocket:
    """Keeps what is sent to the client."""

    def __init__(self) -> None:
        self.frames: list[dict[str, Any]] = []
        self.close_code: int | None = None
        self.held = False

    def hold(self) -> None:
        self.held = True

    def go_on(self) -> None:
        self.held = False

    def send_text(self, data: bytes) -> None:
        self.frames.append(json.loads(data))

    def send_ping(self, on_pong: Any) -> None:
        raise AssertionError("nobody pings here")

    def close_soon(self, code: int, reason: str) -> None:
        self.close_code = code

    def require_room(self, size: int) -> None:
        pass

    def count_queued(self, size: int) -> None:
        raise AssertionError("nothing waits here")

    def check_reading(self) -> bool:
        return False


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
    """A client behind `ClientFrames`."""

    def __init__(
        self,
        client_frames: ClientFrames,
        live: LiveSession,
        verifier: FakeVerifier,
        changed: list[Any],
        pumps: list[Callable[[], None]],
    ) -> None:
        self.client_frames = client_frames
        self.live = live
        self.verifier = verifier
        self.changed = changed
        self.pumps = pumps

    def pump(self) -> int:
        """Let the loop turn until nothing waits; return how often it had to."""
        turns = 0
        while self.pumps:
            self.pumps.pop()()
            turns += 1
        return turns

    @property
    def socket(self) -> FakeSocket:
        return cast("FakeSocket", self.live.socket)

    def take(self, **frame: Any) -> None:
        self.client_frames.take(self.live, json.dumps(frame).encode(), text=True)

    async def told(self, count: int = 1) -> list[tuple[Any, ...]]:
        """Wait for so many frames, and return them in short."""
        await until(lambda: len(self.socket.frames) >= count)
        return [(frame["type"], frame.get("id"), frame.get("code")) for frame in self.socket.frames]


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    verifier, changed, pumps = FakeVerifier(), list[Any](), list[Callable[[], None]]()
    rates = settings_for(GatewaySettings, **RATES).client_rates()
    async with asyncio.TaskGroup() as tasks:
        live = live_session(session("add"), cast("Socket", FakeSocket()), changed.append)
        client_frames = ClientFrames(
            Contracts(),
            cast("Events", None),
            rates,
            cast("Verifier", verifier),
            tasks,
            Turns(pumps.append, itertools.count().__next__),  # a second for each look at the clock: a slice a turn
        )
        yield Stage(client_frames, live, verifier, changed, pumps)
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


async def test_token_that_is_verified_after_the_end_is_not_watched(stage: Stage) -> None:
    stage.verifier.outcome = msgspec.structs.replace(FRESH, expires_at=1.0)
    stage.take(type="auth", token="t", id="f1")
    await until(lambda: stage.verifier.asked)
    stage.live.end()
    stage.verifier.release.set()
    await until(lambda: not stage.live.refreshing)
    assert (stage.socket.frames, stage.socket.close_code) == ([], None)


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
    assert "a client's frame failed" in caplog.text


async def test_frames_above_their_rate_are_refused_and_may_be_sent_again(stage: Stage) -> None:
    for number in range(3):
        stage.take(type="metadata", metadata={}, id=f"m{number}")
    told = await stage.told(3)
    assert told == [("ack", "m0", None), ("ack", "m1", None), ("error", "m2", "rate_limited")]
    details = stage.socket.frames[-1]["details"]
    assert (details["limit"], 0 < details["retryAfterMs"] <= 500) == ("client", True)
    assert stage.socket.close_code is None


async def test_event_above_its_rate_is_refused_with_its_id(stage: Stage) -> None:
    """The first three find no events on this stage."""
    for number in range(4):
        stage.take(type="event", event="x", id=f"e{number}")
    assert (await stage.told(4))[-1] == ("error", "e3", "rate_limited")


async def test_progress_above_its_rate_is_dropped_without_a_word(stage: Stage) -> None:
    for _ in range(210):
        stage.take(type="progress", requestId="r1", progress=1)
    assert stage.socket.frames == []
    assert 200 <= stage.live.core.late_progress < 210


def large_list(title: str) -> list[dict[str, Any]]:
    """Return a list whose reading takes many steps."""
    properties = {f"p{number}": {"type": "string"} for number in range(100)}
    parameters = {"type": "object", "title": title, "properties": properties}
    return [{"name": f"f{number}", "parameters": parameters | {"description": str(number)}} for number in range(20)]


async def test_large_new_list_is_read_in_turns_and_what_follows_waits_for_it(stage: Stage) -> None:
    stage.take(type="capability", capabilities=large_list("new"), id="f1")
    stage.take(type="metadata", metadata={"a": 1}, id="f2")
    assert stage.socket.held
    assert stage.live.core.contract.capabilities.find("f19") is None
    turns = stage.pump()
    assert turns > 2
    assert await stage.told(2) == [("ack", "f1", None), ("ack", "f2", None)]
    assert stage.live.core.contract.capabilities.find("f19") is not None
    assert (stage.live.core.metadata, stage.socket.held) == ({"a": 1}, False)


async def test_large_list_that_another_client_sent_is_taken_at_once(stage: Stage) -> None:
    stage.take(type="capability", capabilities=large_list("known"), id="f1")
    stage.pump()
    stage.take(type="capability", capabilities=large_list("known"), id="f2")
    assert not stage.socket.held
    assert [ident for _, ident, _ in await stage.told(2)] == ["f1", "f2"]


async def test_large_list_with_an_odd_one_at_its_end_is_registered_without_it(stage: Stage) -> None:
    bad = {"name": "last", "parameters": {"type": "nonsense"}}
    stage.take(type="capability", capabilities=[*large_list("bad"), bad], id="f1")
    stage.pump()
    assert await stage.told() == [("error", "f1", "invalid_frame")]
    details = stage.socket.frames[-1]["details"]
    assert (details["registered"], [one["name"] for one in details["refused"]]) == (20, ["last"])
    assert stage.live.core.contract.capabilities.find("f19") is not None
    assert not stage.socket.held


async def test_session_that_ends_while_its_list_is_read_is_left_alone(stage: Stage) -> None:
    stage.take(type="capability", capabilities=large_list("late"), id="f1")
    stage.live.end()
    stage.pump()
    assert stage.socket.frames == []


async def test_bytes_above_their_rate_are_left_in_the_network_for_a_while(stage: Stage) -> None:
    held = []
    for _ in range(2 * 2_000_000 // LARGE_DATA):
        stage.take(type="progress", requestId="none", progress=1, data="x" * LARGE_DATA)
        held.append(stage.socket.held)
    assert (held[0], held[-1]) == (False, True)
    assert stage.socket.frames == []
    await until(lambda: not stage.socket.held)


async def test_large_new_list_does_not_end_the_slowing_of_a_socket(stage: Stage) -> None:
    while not stage.live.is_slowed_down:
        stage.take(type="progress", requestId="none", progress=1, data="x" * LARGE_DATA)
    stage.take(type="capability", capabilities=large_list("slowed"), id="f1")  # of the same slice
    assert stage.pump() > 2
    assert stage.socket.held
    await until(lambda: not stage.socket.held)


async def test_frames_above_their_rate_do_not_slow_the_socket(stage: Stage) -> None:
    for number in range(4):
        stage.take(type="metadata", metadata={}, id=f"m{number}")
    assert (await stage.told(4))[-1] == ("error", "m3", "rate_limited")
    assert not stage.socket.held


class Several(Native):
    """Reads every message as two pings."""

    def decode(self, data: bytes, *, text: bool) -> tuple[ClientFrame, ...]:  # type: ignore[override]
        return (PingFrame(), PingFrame())


class Closing(list[dict[str, Any]]):
    """Closes the session at the first frame that it is sent."""

    def __init__(self, live: LiveSession) -> None:
        super().__init__()
        self._live = live

    def append(self, frame: dict[str, Any]) -> None:
        super().append(frame)
        self._live.close(1008, "enough", EndReason.BAD_FRAMES)


async def test_frames_behind_one_that_ends_the_session_are_dropped(stage: Stage) -> None:
    stage.live.dialect = Several()
    stage.socket.frames = Closing(stage.live)
    stage.take(type="ping")
    assert [frame["type"] for frame in stage.socket.frames] == ["pong"]
    assert stage.socket.close_code == 1008
