"""What people type beside a running `agentbridge up`."""

import asyncio
import contextlib
import json
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import nats
import pytest
from support.played.app import AppFault, Handler, application, never
from support.processes.up import COMMAND_SECONDS, Up, finished
from support.settings import SECRET, admin_token, agent_token
from support.wait import until

from protocol.access import AGENT

Parameters = dict[str, Any]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A bridge that all tests here share."""
    running = Up(tmp_path_factory.mktemp("up"))
    try:
        running.start_blocking()
        yield running
    finally:
        running.end()


def add(parameters: Parameters) -> Parameters:
    """Answer with what was asked."""
    return {"added": parameters}


def fail(parameters: Parameters) -> None:
    """Fail as applications do."""
    raise AppFault("the list is full", "full")


HANDLERS: dict[str, Handler] = {"add": add, "fail": fail, "never": never}
CAPABILITIES = [
    {
        "type": "function",
        "name": "add",
        "description": "Adds\x1b[31m an item",
        "parameters": {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]},
    },
    "fail",
    {"type": "function", "name": "never", "permissions": ["wait"]},
    {
        "type": "component",
        "id": "form",
        "componentType": "form",
        "tags": ["list"],
        "path": "/list",
        "actions": ["send"],
    },
]


@pytest.fixture
def connecting(up: Up) -> Any:
    """Connect the application of a user: `async with connecting("ann") as app`."""

    def connect(user: str) -> Any:
        token = up.token("app", user)
        about = {"app": {"name": "todo", "version": "1.0"}, "metadata": {"room": "7"}}
        return application(up.run_file["gatewayUrl"], HANDLERS, token=token, capabilities=CAPABILITIES, **about)

    return connect


async def test_health_shows_every_process(up: Up) -> None:
    table = await up.command("health")
    assert table.code == 0
    assert [line.split()[0] for line in table.out.splitlines()] == [
        "NATS",
        "PROCESS",
        "agentbridge-agent-api",
        "agentbridge-gateway",
        "agentbridge-registry",
        "an",
    ]
    assert "an agent logs in to NATS by its token in " in table.out
    found = json.loads((await up.command("health", "--json")).out)
    assert (found["missing"], len(found["processes"])) == ([], 3)
    assert found["natsRoundTripMs"] > 0
    assert found["agentLogin"]["milliseconds"] > 0


async def test_health_says_why_an_agent_cannot_log_in(up: Up) -> None:
    refused = await up.command("health", AGENTBRIDGE_TOKEN=admin_token())
    assert refused.code == 1
    assert refused.err == "Error: unauthenticated: the token does not verify\n"


async def test_health_of_this_host_s_process_is_an_exit_code(up: Up) -> None:
    here = await up.command("health", "--here", "registry")
    assert (here.code, here.out, here.err) == (0, "", "")
    await up.freeze_child("registry")
    try:
        frozen = await up.command("health", "--here", "registry")
    finally:
        up.signal_child("registry", signal.SIGCONT)
    assert (frozen.code, len(frozen.err.splitlines())) == (1, 1)
    assert "no registry has answered its question about the token: start one by `agentbridge registry`" in frozen.err


async def test_clients_are_listed_and_filtered(up: Up, connecting: Any) -> None:
    async with connecting("ann") as ann, connecting("bob") as bob:
        table = (await up.command("clients", "--metadata", "room=7")).out.splitlines()
        assert table[0].split() == ["CLIENT", "USER", "APP", "STATE", "CONNECTED", "OFFERS"]
        assert {line.split()[0] for line in table[1:]} == {ann.client_id, bob.client_id}
        found = json.loads((await up.command("clients", "--user", "bob", "--json")).out)
        assert [client["clientId"] for client in found] == [bob.client_id]
        none = await up.command("clients", "--user", "eve")
        assert (none.code, none.out, none.err) == (0, "", "no connected application matches\n")


async def test_token_s_limits_are_the_command_s(up: Up, connecting: Any) -> None:
    async with connecting("ann") as ann, connecting("bob") as bob:
        limited = (await up.command("token", "--user", "ann")).out.strip()
        table = await up.command("clients", AGENTBRIDGE_TOKEN=limited)
        assert ann.client_id in table.out
        assert bob.client_id not in table.out
        refused = await up.command("call", bob.client_id, "add", "title=x", "--token", limited)
        assert (refused.code, refused.out) == (1, "")
        assert "client_not_found" in refused.err


async def test_capabilities_are_shown_without_what_they_would_do_to_a_terminal(up: Up, connecting: Any) -> None:
    async with connecting("ann") as app:
        table = (await up.command("capabilities", app.client_id)).out
        assert "\x1b" not in table
        assert r"add             title       Adds\x1b[31m an item" in table
        found = json.loads((await up.command("capabilities", "--name", "add", "--json")).out)
        unknown = await up.command("capabilities", "nobody")
        assert (unknown.code, unknown.err) == (1, "Error: client_not_found: no connected client with this id\n")
        assert found[app.client_id][1] == {"type": "function", "name": "fail"}


async def test_capabilities_are_chosen_by_their_labels(up: Up, connecting: Any) -> None:
    async with connecting("ann") as app:
        form = ["--tag", "none", "--tag", "list", "--component-type", "form", "--path", "/li"]
        found = json.loads((await up.command("capabilities", app.client_id, *form, "--json")).out)
        assert [item["id"] for item in found[app.client_id]] == ["form"]
        none = await up.command("clients", *form, "--auth-level", "admin")
        assert (none.code, none.out, none.err) == (0, "", "no connected application matches\n")


async def test_call_prints_the_result(up: Up, connecting: Any) -> None:
    async with connecting("ann") as app:
        arguments = ["call", app.client_id, "add", "title=Milk", "tags:=[1]"]
        assert json.loads((await up.command(*arguments)).out) == {"added": {"title": "Milk", "tags": [1]}}
        answer = json.loads((await up.command(*arguments, "--request-id", "mine", "--json")).out)
        assert (answer["requestId"], answer["status"], answer["clientId"]) == ("mine", "success", app.client_id)


async def test_call_reaches_the_session_that_its_user_saw_last(up: Up, connecting: Any) -> None:
    async with connecting("ann") as first, connecting("ann") as second, connecting("bob"):
        for seen in (first, second, first):
            await seen.acknowledged({"type": "metadata", "id": "m", "metadata": {"visible": True}})
            await until(partial(saw_last, up, seen.client_id))
            answer = json.loads((await up.command("call", "--user", "ann", "add", "title=Milk", "--json")).out)
            assert answer["clientId"] == seen.client_id
        for arguments in (
            ["--user", "eve", "add"],
            ["--user", "ann", "fly"],
            ["--user", "ann", "--app", "mail", "add"],
        ):
            answer = json.loads((await up.command("call", *arguments, "--json")).out)
            assert (answer["error"]["code"], "clientId" in answer) == ("unknown_capability", False)


async def saw_last(up: Up, client_id: str) -> bool:
    """Tell whether the registry knows that this is the session that a user saw last."""
    records = json.loads((await up.command("clients", "--metadata", "visible=true", "--json")).out)
    return bool(records) and max(records, key=lambda record: record["focusedAt"])["clientId"] == client_id


async def test_call_under_a_key_is_executed_once(up: Up, connecting: Any) -> None:
    async with connecting("ann") as app:
        arguments = ["call", app.client_id, "add", "title=Milk", "--idempotency-key", "mine", "--json"]
        first, again = [json.loads((await up.command(*arguments)).out) for _ in range(2)]
        assert (first["status"], first.get("replayed"), again["replayed"]) == ("success", None, True)
        assert len(app.all_received(type="command")) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["add", "title:=1"], "invalid_parameters", "title"),
        (["fail"], "command_failed", "the list is full"),
        (["nothing"], "unknown_capability", ""),
        (["never", "--timeout", "1s"], "timeout", ""),
    ],
)
async def test_failed_call_is_one_sentence_and_exits_with_1(
    up: Up, connecting: Any, arguments: list[str], code: str, sentence: str
) -> None:
    async with connecting("ann") as app:
        told = await up.command("call", app.client_id, *arguments)
        assert (told.code, told.out, len(told.err.splitlines())) == (1, "", 1)
        assert told.err.startswith(f"Error: {code}: ")
        assert sentence in told.err
        coded = await up.command("call", app.client_id, *arguments, "--json")
        assert (coded.code, json.loads(coded.out)["error"]["code"]) == (1, code)


async def test_ctrl_c_cancels_the_command_in_the_application(up: Up, connecting: Any) -> None:
    async with connecting("ann") as app:
        calling = await up.begin("call", app.client_id, "never")
        command = await app.received(COMMAND_SECONDS, type="command", target="never")
        calling.send_signal(signal.SIGINT)
        await app.received(type="cancel", requestId=command["requestId"])
        code, out, err = await finished(calling)
        assert (code, out) == (130, b"")
        assert b"Traceback" not in err


async def test_events_and_changes_are_shown_live(up: Up, connecting: Any) -> None:
    async with watching(up, "--json") as shown:
        async with connecting("ann") as app:
            await shown(change="connected", clientId=app.client_id)
            await app.acknowledged({"type": "event", "event": "todo.added", "data": {"title": "Milk"}})
            event = await shown(event="todo.added", clientId=app.client_id)
            assert (event["data"], event["user"], event["app"]) == ({"title": "Milk"}, "ann", "todo")
        await shown(change="disconnected", clientId=app.client_id)


@contextlib.asynccontextmanager
async def watching(up: Up, *arguments: str) -> AsyncIterator[Callable[..., Awaitable[dict[str, Any]]]]:
    """Run `events` and give a function that waits for a message with these fields; press Ctrl-C at the end."""
    process = await up.begin("events", *arguments)
    out, err = process.stdout, process.stderr
    assert out is not None
    assert err is not None
    assert b"listening on agentbridge.default.event" in await err.readline()

    async def shown(**fields: Any) -> dict[str, Any]:
        async with asyncio.timeout(10):
            while True:
                message: dict[str, Any] = json.loads(await out.readline())
                if fields.items() <= message.items():
                    return message

    yield shown
    process.send_signal(signal.SIGINT)
    code, _, said = await finished(process)
    assert (code, said) == (130, b"")


async def test_events_may_be_chosen(up: Up, connecting: Any) -> None:
    async with connecting("ann") as app:
        choice = ["--client", app.client_id, "--event", "todo.*", "--count", "1"]
        chosen = await up.begin("events", *choice)
        assert chosen.stderr is not None
        await chosen.stderr.readline()
        for name in ("other", "todo.added"):
            await app.acknowledged({"type": "event", "event": name})
        _, out, _ = await finished(chosen)
        assert out.decode().split()[1:] == [app.client_id, "todo", "ann", "todo.added"]


async def test_audit_shows_the_past_and_goes_on_with_what_comes(up: Up, connecting: Any) -> None:
    async with connecting("ann") as app:
        await up.command("call", app.client_id, "add", "title=secret-text")
        await up.command("call", app.client_id, "fail")
        await until(lambda: audited(up, app.client_id, 2), 20)
        table = await up.command("audit", "--client", app.client_id)
        assert table.code == 0
        first, second = table.out.splitlines()
        assert f"command-line -> {app.client_id} todo ann  add  success" in first
        assert f"command-line -> {app.client_id} todo ann  fail  command_failed full" in second
        assert "secret-text" not in table.out

        chosen = ["--client", app.client_id, "--outcome", "success", "--since", "1h", "--limit", "1", "--json"]
        following = await up.begin("audit", *chosen, "--follow")
        assert following.stdout is not None
        async with asyncio.timeout(20):
            assert json.loads(await following.stdout.readline())["target"] == "add"
            for target in ("fail", "add"):
                await up.command("call", app.client_id, target, "title=x", "--request-id", f"new-{target}")
            record = json.loads(await following.stdout.readline())
            assert (record["requestId"], record["by"]) == ("new-add", "gateway")
            following.send_signal(signal.SIGINT)
            assert await following.wait() == 130

    assert (await up.command("audit", "--client", "nobody")).err.splitlines() == ["nothing is recorded"]
    assert "no client has such an id" in (await up.command("audit", "--client", "no.body")).err
    assert "is not a duration" in (await up.command("audit", "--since", "soon")).err


async def audited(up: Up, client_id: str, number: int) -> bool:
    return len((await up.command("audit", "--client", client_id, "--json")).out.splitlines()) == number


def elsewhere(up: Up, token: str, folder: Path) -> dict[str, str]:
    """Return the environment of somebody who has a token, and nothing else of a bridge that runs."""
    return {
        "AGENTBRIDGE_NATS_URL": up.run_file["natsUrl"],
        "AGENTBRIDGE_TOKEN": token,
        "AGENTBRIDGE_DATA_DIR": str(folder),
    }


async def test_token_alone_can_call_and_watch(up: Up, connecting: Any, tmp_path: Path) -> None:
    token = elsewhere(up, up.token(AGENT), tmp_path)
    async with connecting("ann") as app:
        assert (await up.command("call", app.client_id, "add", "title=x", **token)).code == 0
        assert app.client_id in (await up.command("clients", **token)).out


async def test_commands_of_administrators_say_so_to_others(up: Up, tmp_path: Path) -> None:
    for command in (["health"], ["audit"], ["disconnect", "ann"]):
        refused = await up.command(*command, **elsewhere(up, up.token(AGENT), tmp_path))
        assert refused.code == 1
        assert "needs a token with the role admin" in refused.err.splitlines()[-1]


async def test_agent_is_disconnected_and_comes_back(up: Up, tmp_path: Path) -> None:
    token = elsewhere(up, up.token(AGENT, "ann"), tmp_path)
    watching = await up.begin("events", variables=token)
    assert watching.stderr is not None
    assert b"listening on" in await watching.stderr.readline()
    told = await up.command("disconnect", "ann", "--for", "10m")
    assert (told.code, told.err) == (0, "")
    assert re.fullmatch(r"ann is kept out until 20\S+Z; connections to NATS ended: 1\n", told.out)
    assert (await up.command("clients", **token)).code == 1
    back = await up.command("disconnect", "ann", "--for", "0", "--json")
    assert (back.code, back.err) == (0, "")
    assert json.loads(back.out)["sub"] == "ann"

    async def comes_in() -> bool:
        return (await up.command("clients", **token)).code == 0

    assert await until(comes_in, 20)
    watching.kill()
    await watching.wait()


async def test_expired_token_is_told_without_asking_anybody(up: Up, tmp_path: Path) -> None:
    refused = await up.command("clients", **elsewhere(up, agent_token(ttl_seconds=-1), tmp_path))
    assert (refused.code, len(refused.err.splitlines())) == (1, 1)
    assert "the token has expired: give another one" in refused.err


async def test_watching_ends_with_its_token_and_says_so(up: Up, tmp_path: Path) -> None:
    token = (await up.command("token", "--ttl", "4s")).out.strip()
    ended = await up.command("events", **elsewhere(up, token, tmp_path))
    assert ended.code == 1
    assert "the token has expired: give another one" in ended.err


async def test_refused_token_is_told_as_far_as_it_is_known(up: Up, tmp_path: Path) -> None:
    refused = await up.command("clients", **elsewhere(up, agent_token(), tmp_path))
    assert (refused.code, len(refused.err.splitlines())) == (1, 1)
    assert "refuses the token, or no registry runs" in refused.err


async def test_token_for_nats_says_all_that_a_client_needs(up: Up, connecting: Any) -> None:
    """Do with nats-py what the example does with NATS's own command line, by nothing but what is printed."""
    printed = (await up.command("token", "--sub", "planner", "--nats")).out
    names = ("URL", "inbox prefix", "token")
    url, prefix, token = (re.search(rf"^{name} +(\S+)", printed, re.MULTILINE) for name in names)
    assert url
    assert prefix
    assert token
    subject, header = re.findall(r"request (\S+) '{}' --header='(.+)'", printed)[0]
    async with connecting("ann") as app, await nats.connect(url[1], token=token[1], inbox_prefix=prefix[1]) as agent:
        name, _, value = header.partition(": ")

        async def clients() -> list[str]:
            found = await agent.request(subject, b"{}", headers={name: value})
            return [client["clientId"] for client in json.loads(found.data)["clients"]]

        assert await until(clients, 30) == [app.client_id]


async def test_token_of_an_application_is_not_for_nats(up: Up) -> None:
    refused = await up.command("token", "--role", "app", "--nats")
    assert (refused.code, refused.out) == (2, "")
    assert "--nats" in refused.err


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"AGENTBRIDGE_NATS_URL": "nats://127.0.0.1:1"}, "no NATS server answers at nats://127.0.0.1:1: start"),
        ({"AGENTBRIDGE_NATS_PASSWORD": "wrong"}, "refuses this process's credentials"),
        ({"AGENTBRIDGE_TOKEN": "no token"}, "AGENTBRIDGE_TOKEN"),
        ({"AGENTBRIDGE_TOKEN": agent_token()}, "unauthenticated: "),
        ({"AGENTBRIDGE_JWT_SECRET": SECRET}, "unauthenticated: "),
    ],
)
async def test_wrong_credentials_are_one_sentence(up: Up, variables: dict[str, str], sentence: str) -> None:
    refused = await up.command("clients", **variables)
    assert (refused.code, refused.out, len(refused.err.splitlines())) == (1, "", 1)
    assert sentence in refused.err


async def test_credentials_that_are_in_another_folder_are_told_of(up: Up, tmp_path: Path) -> None:
    found = up.run_file
    known = await up.command("clients", AGENTBRIDGE_NATS_PASSWORD="wrong")
    lost = await up.command("clients", AGENTBRIDGE_DATA_DIR=str(tmp_path), AGENTBRIDGE_NATS_URL=found["natsUrl"])
    assert "--data-dir" not in known.err
    assert "refuses this process's credentials" in known.err
    assert "refuses this process's credentials" in lost.err
    assert f"`agentbridge up` are not in {tmp_path}: " in lost.err
    assert "--data-dir" in lost.err


async def test_missing_kind_of_process_is_named(up: Up) -> None:
    gateway = up.child("gateway")
    await up.freeze_child("gateway")
    try:
        missing = await up.command("health")
    finally:
        up.signal_child("gateway", signal.SIGCONT)
    assert missing.code == 1
    assert "agentbridge-gateway" in missing.err
    assert "`agentbridge gateway`" in missing.err
    await until(lambda: up.child("gateway") == gateway)


@pytest.mark.parametrize("command", ["gateway", "agent-api", "registry"])
async def test_process_without_a_key_refuses_to_start(up: Up, command: str) -> None:
    refused = await up.command(command)
    assert (refused.code, refused.out, len(refused.err.splitlines())) == (2, "", 1)
    assert "AGENTBRIDGE_JWT_SECRET" in refused.err


async def test_token_opens_what_it_says(up: Up) -> None:
    assert (await up.command("clients", AGENTBRIDGE_TOKEN=up.token(AGENT))).code == 0
    refused = await up.command("clients", AGENTBRIDGE_TOKEN=up.token("app"))
    assert "permission_denied" in refused.err
