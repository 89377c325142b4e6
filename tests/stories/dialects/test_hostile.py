"""Hostile clients and agents of every dialect: each is sent away in its own words, and neighbours of all are served."""

import asyncio
import contextlib
import json
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from support.processes.bridge import Bridge
from support.processes.javascript import needs_node, node_app
from support.settings import agent_token, app_token
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

SECONDS = 60
# Ten times as fast as anybody may send nonsense. As fast as it can, a flooder would not read the last words: its own
# unsent messages would be before its closing frame, and it would be cut off.
PACE_SECONDS = 0.005
PATHS = {
    "native": "ws://{}/ws",
    "socketio": "http://{}",
    "actioncable": "ws://{}/cable",
    "document": "ws://{}/ws",
    "published_sdk": "ws://{}/agent-bridge",
}
CHANNEL = json.dumps({"channel": "AgentBridgeChannel"})
DEEP, HALF, BINARY = "[" * 3000, '{"type":"event","event":"x","data":{"a"', b"\x04\x00\xff"


def cable(command: str, identifier: str = CHANNEL, data: str = "") -> str:
    return json.dumps({"command": command, "identifier": identifier, "data": data})


class Hostile(NamedTuple):
    """How a hostile peer of one dialect begins, what it then floods with, and the last words that it hears."""

    path: str
    beginning: Sequence[str]
    messages: Sequence[str | bytes]
    last_words: str = ""
    is_agent: bool = False
    subprotocols: Sequence[Subprotocol] = ()


LIST = '{"type":"capability","capabilities":["add"],"id":"1","timestamp":1}'
ALL = {
    "native": Hostile("/ws", [], [DEEP, HALF, BINARY, '{"type":"response","requestId":7}', '{"type":"' + "x" * 5000]),
    "document": Hostile("/", [LIST], [DEEP, HALF, BINARY, '{"type":"response","requestId":{}}']),
    "published_sdk": Hostile(
        "/agent-bridge",
        ['{"type":"register_capabilities","functions":[{"name":"add"}],"components":[{"id":"p"}]}'],
        [
            '{"type":"update_capabilities","functions":' + DEEP,
            '{"type":"function_result","correlationId":"x","success":',
            '{"type":"function_result","correlationId":7,"success":true}',
            BINARY,
        ],
    ),
    "socketio": Hostile(
        "/socket.io/?EIO=4&transport=websocket",
        [f'40{{"token":"{app_token("hostile")}"}}'],
        [
            f"42{DEEP}",
            f'42["event",{HALF}',
            '42/admin,["event",{"event":"x"}]',
            "42" + "9" * 5000 + '["event",{"event":"x"}]',
            '42999999999999999["event",{}]',
            '451-["event",{"_placeholder":true,"num":0}]',
            "99",
            BINARY,
        ],
        "41",
    ),
    "actioncable": Hostile(
        "/cable",
        [cable("subscribe")],
        [
            DEEP,
            '{"command":"message","identifier":',
            cable("message", '{"channel":"Chat"}', LIST),
            cable("message", data=HALF),
            cable("message", data='{"type":"event","event":"x","data":' + DEEP),
            cable("subscribe", "x" * 5000),
            BINARY,
        ],
        '{"type":"disconnect","reason":"remote","reconnect":false}',
        subprotocols=[Subprotocol("actioncable-v1-json")],
    ),
    "agent of the SDK": Hostile(
        "/agent-bridge",
        ['{"type":"query_capabilities","id":"q"}'],
        [
            DEEP,
            '{"type":"call_function","name"',
            '{"type":"call_function","name":"add","clientID":"x"}',
            '{"type":"query_capabilities","filters":{"x":1}}',
            '{"type":"call_function","id":"%s","name":"add"}' % ("9" * 5000),
            BINARY,
        ],
        is_agent=True,
    ),
}


async def flood(bridge: Bridge, hostile: Hostile, message: str | bytes) -> None:
    """Send one message without end; see that this ends in the words of the dialect, by 1008."""
    process = bridge.agent_apis[0] if hostile.is_agent else bridge.gateways[0]
    token = agent_token("hostile") if hostile.is_agent else app_token("hostile")
    url = f"ws://{urlsplit(process.url).netloc}{hostile.path}"
    offered = [*hostile.subprotocols, Subprotocol(f"bearer.{token}")]
    last = [""]
    async with (
        connect(url, subprotocols=offered, proxy=None, max_size=None) as socket,
        asyncio.timeout(SECONDS),
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(keep_last(socket, last))
        with contextlib.suppress(ConnectionClosed):
            for beginning in hostile.beginning:
                await socket.send(beginning)
            while True:
                await socket.send(message)
                await asyncio.sleep(PACE_SECONDS)
    assert (socket.close_code, socket.close_reason) == (1008, "too many bad frames"), message[:60]
    assert hostile.last_words in ("", last[0]), message[:60]


async def keep_last(socket: ClientConnection, last: list[str]) -> None:
    with contextlib.suppress(ConnectionClosed):
        async for heard in socket:
            last[0] = str(heard)


@needs_node
async def test_floods_in_every_dialect_leave_neighbours_of_every_dialect_alone(bridge: Bridge) -> None:
    async with contextlib.AsyncExitStack() as running:
        netloc = urlsplit(bridge.gateways[0].url).netloc
        apps = [
            await running.enter_async_context(node_app(dialect, path.format(netloc), app_token()))
            for dialect, path in PATHS.items()
        ]
        for app in apps:
            await app.heard("registered", {"status": "success"}, seconds=30)
        clients = [app.client_id for app in apps]
        await bridge.listed(*clients)

        async def call_all() -> None:
            """Call every neighbour. A starved machine may freeze the gateway: that is told as not executed."""
            for client_id in clients:
                answer = (await bridge.call(client_id, "add", {"a": 1, "b": 2})).json()
                while answer.get("code") == "unavailable":
                    answer = (await bridge.call(client_id, "add", {"a": 1, "b": 2})).json()
                assert answer.get("result") == 3, answer

        async with asyncio.TaskGroup() as tasks:
            floods = [
                tasks.create_task(flood(bridge, hostile, message))
                for hostile in ALL.values()
                for message in hostile.messages
            ]
            while not all(each.done() for each in floods):
                await call_all()
        assert [app.all_heard("disconnect") for app in apps] == [[]] * len(apps)
        await call_all()
    assert "Traceback" not in bridge.log
