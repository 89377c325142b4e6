"""The connection of one agent's WebSocket, under the rule for unread answers that HTTP connections have."""

from agent_api.http.unread import Unread, count_unread
from protocol.runtime.sockets import BoundedSocket


class AgentsSocket(BoundedSocket):
    """A socket that knows since when it has been waiting for its agent to read, whatever that sends meanwhile."""

    _unread: Unread | None = None

    def pause_writing(self) -> None:
        """Note that the agent does not read."""
        super().pause_writing()
        self._unread = Unread(count_unread(self.transport), self.loop.time())

    def resume_writing(self) -> None:
        """Note that the agent reads again."""
        super().resume_writing()
        self._unread = None

    def abort_where_unread(self, for_seconds: float) -> None:
        """Cut off an agent that has taken next to nothing of what waits for it for longer."""
        if self._unread is None or self.transport.is_closing():
            return
        if self._unread.is_stalled(count_unread(self.transport), self.loop.time(), for_seconds):
            self.too_slow = True
            self.transport.abort()
