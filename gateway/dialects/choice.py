"""Which dialect a connection speaks: chosen by its path, and by its subprotocol among those of one path."""

from collections.abc import Sequence

from gateway.dialects.actioncable import ACTIONCABLE
from gateway.dialects.dialect import Dialect, DialectKind, RefusedRequest
from gateway.dialects.native import NATIVE
from gateway.dialects.socketio import SOCKETIO

DIALECTS: tuple[DialectKind, ...] = (NATIVE, SOCKETIO, ACTIONCABLE)


class DialectChoice:
    """The dialects of a gateway. On one path, the first one is for clients that name no subprotocol.

    `usual_path` is the path to show people: that of the first dialect.
    """

    def __init__(self, kinds: Sequence[DialectKind] = DIALECTS) -> None:
        self.usual_path = kinds[0].usual_path
        self._by_path: dict[str, list[DialectKind]] = {}
        for kind in kinds:
            for path in {kind.usual_path, *kind.other_paths}:
                self._by_path.setdefault(path, []).append(kind)

    @property
    def paths(self) -> frozenset[str]:
        """All paths at which a WebSocket may be opened."""
        return frozenset(self._by_path)

    def serves(self, path: str) -> bool:
        """Tell whether a WebSocket may be opened at this path."""
        return path in self._by_path

    def refusal(self, path: str, query: str) -> RefusedRequest | None:
        """Return the answer to a request that may not open a WebSocket at this path; None if it may."""
        return self._by_path[path][0].screen(query)

    def subprotocol(self, path: str, offered: Sequence[str]) -> str | None:
        """Return the first subprotocol of ours that is offered, which is the one to echo; None if there is none."""
        ours = {kind.subprotocol for kind in self._by_path.get(path, ())}
        return next((each for each in offered if each in ours), None)

    def resumes(self, path: str) -> bool:
        """Tell whether clients on this path may resume their sessions."""
        return self._by_path[path][0].resumes

    def make(self, path: str, subprotocol: str | None) -> Dialect:
        """Return the dialect of a new connection."""
        kinds = self._by_path[path]
        named = (kind for kind in kinds if subprotocol is not None and kind.subprotocol == subprotocol)
        return next(named, kinds[0]).make()
