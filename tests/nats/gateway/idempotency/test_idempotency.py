"""Commands under idempotency keys over NATS, to applications behind real gateways."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats.errors
import pytest
from support.nats.nats_server import NatsServer
from support.nats.stores import KEYS_STREAM, make_store
from support.played.app import App, AppFault, application, never
from support.played.slow_app import slow_application
from support.processes.child import Process
from support.processes.gateways import Agent, agent, gateway_process
from support.settings import agent_token, settings_for
from support.wait import until

from gateway.freeze_detector import FROZEN_SECONDS
from protocol.runtime.nats.connection import connect
from protocol.runtime.streams.stores import keys_of
from registry.settings import RegistrySettings

STREAM = KEYS_STREAM
ADD = {"name": "add", "parameters": {"required": ["a"]}}


class Surroundings:
    """A gateway, its application and an agent. `release` lets the handler `slow` answer."""

    def __init__(self, nats: NatsServer, gateway: Process, caller: Agent) -> None:
        self.nats = nats
        self.gateway = gateway
        self.caller = caller
        self.release = asyncio.Event()
        self.app: App

    async def slow(self, parameters: dict[str, Any]) -> dict[str, Any]:
        await self.release.wait()
        return parameters

    async def executed(self, app: App | None = None) -> int:
        """How many commands the application has got."""
        return len(await (app or self.app).commands())

    async def call(self, target: str = "echo", key: str = "k1", **more: Any) -> dict[str, Any]:
        """Send a command under a key."""
        return await self.caller.call(self.app.client_id, target, idempotencyKey=key, **more)

    async def refused(self, body: dict[str, Any], **how: Any) -> str:
        return await self.caller.refused(self.app.client_id, {"target": "echo", "idempotencyKey": "k1", **body}, **how)

    async def stored(self) -> list[dict[str, Any]]:
        """Return the last message of each key, with its headers as `headers`."""
        manager = self.caller.nats.jsm()
        found = await manager.stream_info(STREAM, subjects_filter=">")
        return [await self._last(subject) for subject in found.state.subjects or {}]

    async def _last(self, subject: str) -> dict[str, Any]:
        body = json.dumps({"last_by_subj": subject}).encode()
        reply = await self.caller.nats.request(f"$JS.API.STREAM.MSG.GET.{STREAM}", body, timeout=5)
        message = json.loads(reply.data)["message"]
        data = base64.b64decode(message.get("data", ""))
        headers = base64.b64decode(message.get("hdrs", "")).decode()
        return {"subject": subject, "entry": json.loads(data) if data else None, "headers": headers}

    async def ended(self) -> dict[str, Any]:
        """Wait until the one entry has its outcome, and return it."""

        async def outcome() -> dict[str, Any] | None:
            entries = [each["entry"] for each in await self.stored() if each["entry"]]
            return next((entry for entry in entries if "outcome" in entry), None)

        found = await until(outcome)
        assert found is not None
        return found


async def make_bucket(url: str) -> None:
    """Make the bucket as the registry does."""
    async with connect(settings_for(RegistrySettings, url), "registry", "registry") as connection:
        await make_store(connection.client, keys_of("default"))


@pytest.fixture
async def here(tmp_path: Path, private_nats: NatsServer) -> AsyncIterator[Surroundings]:
    await make_bucket(private_nats.url)
    async with gateway_process(tmp_path / "gateway", private_nats.url) as gateway, agent(private_nats.url) as caller:
        surroundings = Surroundings(private_nats, gateway, caller)
        handlers = {"echo": echo, "fail": fail, "slow": surroundings.slow, "never": never, "add": echo}
        offered = [ADD, "echo", "fail", "slow", "never", {"name": "guarded", "permissions": ["todo"]}]
        async with application(gateway.url, handlers | {"guarded": echo}, capabilities=offered) as app:
            surroundings.app = app
            yield surroundings
        assert "Traceback" not in gateway.log


def echo(parameters: dict[str, Any]) -> dict[str, Any]:
    return parameters


def fail(parameters: dict[str, Any]) -> None:
    raise AppFault("no such task", "E_TASK")


# --- once ---


async def test_answer_is_replayed_and_the_command_executed_once(here: Surroundings) -> None:
    first = await here.call(parameters={"a": 1, "b": 2}, requestId="r1", timeoutMs=5000)
    assert (first["status"], first["result"], first.get("replayed")) == ("success", {"a": 1, "b": 2}, None)
    again = await here.call(parameters={"b": 2, "a": 1}, requestId="r2", timeoutMs=9000)
    assert again == {**first, "requestId": "r2", "replayed": True}
    await here.ended()
    assert await here.call(parameters={"a": 1, "b": 2}, requestId="r3") == {
        **first,
        "requestId": "r3",
        "replayed": True,
    }
    assert await here.executed() == 1


async def test_twin_that_a_freeze_held_up_gets_what_its_key_has_and_begins_nothing(here: Surroundings) -> None:
    """`retryable` says that nothing was executed: of an executed key it would be untrue."""
    first = await here.call(parameters={"a": 1})
    await here.ended()
    here.gateway.freeze()
    try:
        async with asyncio.TaskGroup() as tasks:
            twin = tasks.create_task(here.call(parameters={"a": 1}, requestId="r2", seconds=20))
            new = tasks.create_task(here.call(parameters={"a": 1}, key="k2", seconds=20))
            await asyncio.sleep(FROZEN_SECONDS + 0.5)  # how long the freeze is, not how long something may take
            here.gateway.thaw()
    finally:
        here.gateway.thaw()
    assert twin.result() == {**first, "requestId": "r2", "replayed": True}
    assert (new.result()["error"]["code"], new.result()["error"]["retryable"]) == ("unavailable", True)
    assert await here.executed() == 1


@pytest.mark.parametrize(
    ("target", "timeout_ms", "code"), [("fail", 5000, "command_failed"), ("never", 300, "timeout")]
)
async def test_error_of_an_executed_command_is_replayed(
    here: Surroundings, target: str, timeout_ms: int, code: str
) -> None:
    first = await here.call(target, timeoutMs=timeout_ms)
    assert first["error"]["code"] == code
    await here.ended()
    again = await here.call(target)
    assert (again["error"], again["replayed"]) == (first["error"], True)
    assert await here.executed() == 1


async def test_twin_joins_the_command_in_flight(here: Surroundings) -> None:
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(here.call("slow", requestId="r1"))
        await until(here.executed)
        twin = tasks.create_task(here.call("slow", requestId="r2"))
        probe = {"op": "probe", "requestIds": ["r1", "r2"]}
        await until(lambda: in_flight(here, probe, 2))
        here.release.set()
    assert (first.result()["status"], twin.result()["status"]) == ("success", "success")
    assert (first.result().get("replayed"), twin.result().get("replayed")) == (None, True)
    assert await here.executed() == 1


async def in_flight(here: Surroundings, probe: dict[str, Any], count: int) -> bool:
    return len((await here.caller.ask(here.app.client_id, probe))["inFlight"]) == count


async def test_fifty_twins_at_once_are_executed_once(here: Surroundings) -> None:
    async with asyncio.TaskGroup() as tasks:
        calls = [tasks.create_task(here.call("slow", parameters={"n": 1})) for _ in range(50)]
        await until(here.executed)
        here.release.set()
    assert [call.result()["result"] for call in calls] == [{"n": 1}] * 50
    assert sum(call.result().get("replayed", False) for call in calls) == 49
    assert await here.executed() == 1


async def test_twins_under_one_request_id_both_get_the_answer(here: Surroundings) -> None:
    async with asyncio.TaskGroup() as tasks:
        calls = [tasks.create_task(here.call("slow", requestId="same")) for _ in range(2)]
        await until(here.executed)
        here.release.set()
    assert [(call.result()["status"], call.result()["requestId"]) for call in calls] == [("success", "same")] * 2
    assert await here.executed() == 1


# --- what is another command ---


@pytest.mark.parametrize(
    "other", [{"parameters": {"a": 2}}, {"target": "fail"}, {"action": "run"}, {"parameters": {"a": 1.5}}]
)
async def test_other_command_under_the_key_is_a_conflict(here: Surroundings, other: dict[str, Any]) -> None:
    await here.call(parameters={"a": 1})
    assert await here.refused({"parameters": {"a": 1}, **other}) == "conflict"
    await here.ended()
    assert await here.refused({"parameters": {"a": 1}, **other}) == "conflict"
    assert await here.executed() == 1


async def test_other_client_under_the_key_is_a_conflict(here: Surroundings) -> None:
    await here.call()
    async with application(here.gateway.url, {"echo": echo}) as other:
        body = {"target": "echo", "idempotencyKey": "k1"}
        assert await here.caller.refused(other.client_id, body) == "conflict"
        await here.ended()
        assert await here.caller.refused(other.client_id, body) == "conflict"
        assert await here.executed(other) == 0


async def test_client_on_another_gateway_under_the_key_is_a_conflict(here: Surroundings, tmp_path: Path) -> None:
    async with (
        gateway_process(tmp_path / "second", here.nats.url) as second,
        application(second.url, {"slow": here.slow}) as other,
        asyncio.TaskGroup() as tasks,
    ):
        first = tasks.create_task(here.call("slow"))
        await until(here.executed)
        body = {"target": "slow", "idempotencyKey": "k1"}
        assert await here.caller.refused(other.client_id, body) == "conflict"
        here.release.set()
        assert (await first)["status"] == "success"
        assert await here.executed(other) == 0


async def test_key_of_another_principal_is_another_key(here: Surroundings) -> None:
    await here.call()
    for token in (agent_token("agent-2"), agent_token("agent-1x")):
        assert "replayed" not in await here.call(token=token)
    assert await here.executed() == 3


@pytest.mark.parametrize("key", ["", "a b", "é", "x" * 256, 7, "\n"])
async def test_key_that_is_none_is_refused(here: Surroundings, key: Any) -> None:
    assert await here.refused({"idempotencyKey": key}) == "invalid_request"
    assert await here.executed() == 0


async def test_request_id_in_flight_under_another_key_or_none_is_a_conflict(here: Surroundings) -> None:
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(here.call("slow", requestId="r1"))
        await until(here.executed)
        assert await here.refused({"idempotencyKey": "k2", "requestId": "r1"}) == "conflict"
        plain = {"target": "echo", "requestId": "r1"}
        assert await here.caller.refused(here.app.client_id, plain) == "conflict"
        here.release.set()
    assert call.result()["status"] == "success"


# --- refused, cancelled ---


async def test_command_without_room_leaves_its_key_free(here: Surroundings) -> None:
    async with slow_application(here.gateway.url, 50_000_000) as app, asyncio.TaskGroup() as tasks:
        app.reading.clear()
        large = {"text": "x" * 400_000}
        calls = [tasks.create_task(here.caller.call(app.client_id, "count", large, seconds=20)) for _ in range(60)]
        await until(lambda: any(call.done() for call in calls))
        keyed = await here.caller.call(app.client_id, "count", large, idempotencyKey="k1")
        assert keyed["error"]["code"] == "overloaded"
        app.reading.set()
        await asyncio.wait(calls)
        assert (await here.caller.call(app.client_id, "count", large, idempotencyKey="k1"))["result"] == 400_000


async def test_refused_command_leaves_its_key_free(here: Surroundings) -> None:
    assert await here.refused({"target": "what"}) == "unknown_capability"
    assert await here.refused({"target": "add"}) == "invalid_parameters"
    assert await here.refused({"target": "guarded"}) == "permission_denied"
    assert "replayed" not in await here.call("add", parameters={"a": 1})
    assert await here.executed() == 1


async def test_replay_needs_the_permission_that_the_command_needed(here: Surroundings) -> None:
    await here.call("guarded", token=agent_token(permissions=["todo"]))
    for _ in range(2):
        assert await here.refused({"target": "guarded"}) == "permission_denied"
        await here.ended()
    await here.app.register(["echo"])
    assert await here.refused({"target": "guarded"}) == "permission_denied"
    assert (await here.call("guarded", token=agent_token(permissions=["*"])))["replayed"] is True


async def test_outcome_is_replayed_where_the_client_offers_it_no_more(here: Surroundings) -> None:
    await here.call()
    await here.ended()
    await here.app.register(["other"])
    assert (await here.call())["replayed"] is True


async def test_cancelled_request_leaves_the_command_to_its_twin(here: Surroundings) -> None:
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(here.call("slow", requestId="r1"))
        await until(here.executed)
        twin = tasks.create_task(here.call("slow", requestId="r2"))
        await until(lambda: in_flight(here, {"op": "probe", "requestIds": ["r2"]}, 1))
        cancel = {"op": "cancel", "requestId": "r1"}
        assert await here.caller.ask(here.app.client_id, cancel) == {"cancelled": True}
        assert (await first)["error"]["code"] == "cancelled"
        assert not here.app.all_received(type="cancel")
        here.release.set()
    assert twin.result()["status"] == "success"


async def test_application_is_told_when_the_last_request_is_cancelled(here: Surroundings) -> None:
    async with asyncio.TaskGroup() as tasks:
        calls = [tasks.create_task(here.call("slow", requestId=name)) for name in ("r1", "r2")]
        await until(here.executed)
        await until(lambda: in_flight(here, {"op": "probe", "requestIds": ["r1", "r2"]}, 2))
        for name in ("r1", "r2"):
            await here.caller.ask(here.app.client_id, {"op": "cancel", "requestId": name})
    assert [call.result()["error"]["code"] for call in calls] == ["cancelled"] * 2
    assert await here.app.received(type="cancel")
    await here.ended()
    assert (await here.call("slow"))["error"]["code"] == "cancelled"
    assert await here.executed() == 1


async def test_application_is_told_when_the_last_request_has_waited_long_enough(here: Surroundings) -> None:
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(here.call("slow", requestId="r1", timeoutMs=20_000))
        await until(here.executed)
        twin = tasks.create_task(here.call("slow", requestId="r2", timeoutMs=500))
        await until(lambda: in_flight(here, {"op": "probe", "requestIds": ["r2"]}, 1))
        assert await here.caller.ask(here.app.client_id, {"op": "cancel", "requestId": "r1"}) == {"cancelled": True}
    codes = [call.result()["error"]["code"] for call in (first, twin)]
    assert (codes, (await here.app.received(type="cancel"))["reason"]) == (["cancelled", "timeout"], "timeout")
    assert (await here.ended())["outcome"]["error"]["code"] == "timeout"
    again = await here.call("slow")
    assert (again["error"]["code"], again["replayed"]) == ("timeout", True)
    assert await here.executed() == 1


async def test_request_that_has_waited_long_enough_leaves_the_command_to_its_twin(here: Surroundings) -> None:
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(here.call("slow", requestId="r1"))
        await until(here.executed)
        assert (await here.call("slow", requestId="r2", timeoutMs=50))["error"]["code"] == "timeout"
        assert not here.app.all_received(type="cancel")
        here.release.set()
    assert first.result()["status"] == "success"


async def test_client_that_goes_is_client_lost_to_all_and_remembered(here: Surroundings, tmp_path: Path) -> None:
    async with asyncio.TaskGroup() as tasks:
        calls = [tasks.create_task(here.call("never")) for _ in range(2)]
        await until(here.executed)
        await until(lambda: len(calls) == 2)
        await here.app.socket.close()
    assert [call.result()["error"]["code"] for call in calls] == ["client_lost"] * 2
    outcome = (await here.ended())["outcome"]
    assert (outcome["status"], outcome["error"]["code"]) == ("error", "client_lost")


# --- what is stored ---


async def test_entry_has_its_time_to_live_before_and_after_the_outcome(here: Surroundings) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(here.call("slow"))
        await until(here.executed)
        (reserved,) = await here.stored()
        assert "outcome" not in reserved["entry"]
        assert "Nats-TTL: 86400s" in reserved["headers"]
        here.release.set()
    await here.ended()
    (ended,) = await here.stored()
    assert "Nats-TTL: 86400s" in ended["headers"]
    assert "eyJ" not in json.dumps(ended)


async def test_answer_too_large_to_keep_is_told_so(here: Surroundings) -> None:
    details = ",".join(["1e15"] * 53_000)  # written again, each has eighteen bytes
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(here.call("never"))
        await until(here.executed)
        (command,) = here.app.all_received(type="command")
        await here.app.send(
            f'{{"type":"response","requestId":"{command["requestId"]}","status":"error","error":{{"details":[{details}]}}}}'
        )
    assert call.result()["error"]["code"] == "command_failed"
    await here.ended()
    again = await here.call("never")
    assert (again["error"]["code"], again["error"]["retryable"]) == ("payload_too_large", False)


# --- NATS ---


async def test_bucket_away_is_unavailable_and_nothing_is_executed(here: Surroundings) -> None:
    await here.caller.nats.jsm().delete_stream(STREAM)
    answer = await here.call()
    assert (answer["error"]["code"], answer["error"]["retryable"]) == ("unavailable", True)
    assert await here.executed() == 0
    await make_bucket(here.nats.url)
    assert (await here.call())["status"] == "success"


async def test_outcome_is_told_while_the_bucket_is_away_and_written_when_it_returns(here: Surroundings) -> None:
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(here.call("slow"))
        await until(here.executed)
        await here.caller.nats.jsm().delete_stream(STREAM)
        here.release.set()
    assert call.result()["status"] == "success"
    assert (await here.call("slow"))["replayed"] is True
    await make_bucket(here.nats.url)
    await here.ended()
    assert (await here.call("slow"))["replayed"] is True
    assert await here.executed() == 1


async def test_outcome_outlives_a_restart_of_nats(here: Surroundings) -> None:
    await here.call()
    await here.ended()
    here.nats.stop()
    await here.nats.start()

    async def replayed() -> bool:
        try:
            return bool((await here.call()).get("replayed"))
        except (nats.errors.Error, KeyError):  # not subscribed again yet
            return False

    await until(replayed, 10)
    assert await here.executed() == 1


async def test_gateway_that_ends_writes_down_what_it_knows(here: Surroundings) -> None:
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(here.call("never"))
        await until(here.executed)
        assert await here.gateway.terminate() == 0
    assert call.result()["error"]["code"] == "client_lost"
    assert (await here.ended())["outcome"]["error"]["code"] == "client_lost"


async def test_command_of_a_killed_gateway_is_lost_for_whoever_sends_it_again(
    here: Surroundings, tmp_path: Path
) -> None:
    """The entry says which client it was for; a request to that client at another gateway is played by rewriting it."""
    async with asyncio.TaskGroup() as tasks, gateway_process(tmp_path / "second", here.nats.url) as second:
        call = tasks.create_task(here.call("never"))
        await until(here.executed)
        (reserved,) = await here.stored()
        await here.gateway.kill()
        call.cancel()
        async with application(second.url, {"never": never}) as heir:
            moved = {**reserved["entry"], "clientId": heir.client_id}
            await here.caller.nats.jetstream().publish(reserved["subject"], json.dumps(moved).encode())
            answer = await here.caller.call(heir.client_id, "never", idempotencyKey="k1")
            assert (answer["error"]["code"], answer["replayed"]) == ("client_lost", True)
            assert await here.executed(heir) == 0
            (stored,) = await here.stored()
            assert stored["entry"]["outcome"]["error"]["code"] == "client_lost"
            assert "Nats-TTL" in stored["headers"]
