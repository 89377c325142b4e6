"""The parts that all agents' sockets of a process share."""

import asyncio
from typing import NamedTuple

from agent_api.clients.find import KnownClients
from agent_api.clients.watch import ClientWatches
from agent_api.commands.admission import Admission
from agent_api.commands.send import Sender
from agent_api.events.hub import Hub
from protocol.runtime.connections.bounds import ConnectionBounds
from protocol.runtime.connections.turns import Turns
from protocol.runtime.tokens import Verifier


class SocketContext(NamedTuple):
    """The process's parts for a socket. `tasks`, `turns` and `bounds` are shared by all connections."""

    sender: Sender
    admission: Admission
    verifier: Verifier
    known: KnownClients
    hub: Hub
    client_watches: ClientWatches
    tasks: asyncio.TaskGroup
    turns: Turns
    bounds: ConnectionBounds
