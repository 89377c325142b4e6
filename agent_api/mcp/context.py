"""The parts that all requests of `/mcp` share."""

from typing import NamedTuple

from agent_api.commands.admission import Admission
from agent_api.commands.send import Sender
from agent_api.http.waiting import Waits
from agent_api.mcp.cancels import LegacyCancels
from agent_api.mcp.streams import ChangeStreams
from agent_api.settings import ApiSettings
from agent_api.tools.catalogue import ToolCatalogue
from agent_api.tools.toolbox import Toolbox


class McpContext(NamedTuple):
    """The parts of the process that a request needs."""

    settings: ApiSettings
    sender: Sender
    admission: Admission
    waits: Waits
    catalogue: ToolCatalogue
    toolbox: Toolbox
    cancels: LegacyCancels
    streams: ChangeStreams
