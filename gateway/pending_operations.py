"""Commands that were received and are not acted on yet: a token is being verified, or a turn is waited for.

A probe finds them, and a cancel ends them, as it does with a command in flight. While the token is being verified the
caller is known by it alone; one that waits for its turn has been verified, and may use a fresh token meanwhile.
"""

from protocol.errors import Cancelled, Conflict
from protocol.runtime.connections.turns import Share

# A client's id, the caller's token or its tenant and `sub`, and the command's id.
PendingKey = tuple[str, str | Share | None, str]
PendingOperations = dict[PendingKey, "Pending"]


class Pending:
    """A command that was received and is not acted on yet.

    Raises `Conflict` if another one of its caller's has the same id: a cancel could mean either.
    """

    def __init__(self, operations: PendingOperations, key: PendingKey) -> None:
        if key in operations:
            raise Conflict("a command with this requestId is already in flight; use another id")
        self.is_cancelled = False
        self._operations = operations
        self._key = key
        operations[key] = self

    def require_wanted(self) -> None:
        """Raise `Cancelled` if its caller has cancelled it meanwhile."""
        if self.is_cancelled:
            raise Cancelled("the caller cancelled the command before it was sent to the client")

    def end(self) -> None:
        """Forget it; a second time changes nothing."""
        if self._operations.get(self._key) is self:
            del self._operations[self._key]
