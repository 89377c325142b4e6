"""What all agents' sockets of a process share."""

import asyncio
from typing import NamedTuple

from agent_api.commands.intake import Intake
from agent_api.commands.sending import Commands
from agent_api.events.hub import Hub
from agent_api.finding import Clients
from agent_api.socket.outlook import Outlook
from protocol.runtime.auth import Verifier


class Surroundings(NamedTuple):
    """What a socket needs beside itself; `tasks` are those of the process."""

    commands: Commands
    intake: Intake
    verifier: Verifier
    known: Clients
    hub: Hub
    outlook: Outlook
    tasks: asyncio.TaskGroup
