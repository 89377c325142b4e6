"""Pending commands: received but not started, because the token is being verified or the agent's turn has not come.

A probe finds them and a cancel ends them, like a command in flight. While its token is being verified, a caller is
identified by the token itself. A caller that waits for its turn is verified, and may use a fresh token meanwhile.
"""

from protocol.errors import Cancelled, Conflict
from protocol.runtime.connections.turns import Share

# A client's id, the caller's token or its tenant and `sub`, and the command's id.
PendingKey = tuple[str, str | Share | None, str]
PendingOperations = dict[PendingKey, "Pending"]


class Pending:
    """A pending command.

    Raises `Conflict` if another one of the same caller has its id, because a cancel could mean either.
    """

    def __init__(self, operations: PendingOperations, key: PendingKey) -> None:
        if key in operations:
            raise Conflict("a command with this requestId is already in flight; use another id")
        self.is_cancelled = False
        self._operations = operations
        self._key = key
        operations[key] = self

    def require_wanted(self) -> None:
        """Raise `Cancelled` if the caller has cancelled it."""
        if self.is_cancelled:
            raise Cancelled("the caller cancelled the command before it was sent to the client")

    def end(self) -> None:
        """Forget the command. A second call has no effect."""
        if self._operations.get(self._key) is self:
            del self._operations[self._key]
