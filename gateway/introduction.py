"""The messages of a client before its session, for dialects with the token in a frame instead of the handshake."""

import asyncio
from typing import Any

from gateway.dialects.dialect import Entry
from protocol.errors import BridgeError, CloseCode
from protocol.frames import ConnectionLimits
from protocol.runtime.websocket.connection import BoundedSocket, Receiver
from protocol.runtime.websocket.handshake import TurnedAway

MAX_MESSAGES = 16
PATIENCE_SECONDS = 10


class Introducing:
    """Takes the messages of one client until its session can begin. Later ones wait for the session."""

    def __init__(self, socket: BoundedSocket, entry: Entry) -> None:
        self._socket = socket
        self._entry = entry
        self._messages = 0
        self._early: list[tuple[bytes, bool]] = []
        self._token: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

    async def token(self, limits: ConnectionLimits) -> str | None:
        """Return the token, or None if the client has none.

        Raises `TurnedAway` if the client sends anything else first, needs more than ten seconds, or goes away.
        """
        for data in self._entry.hello(limits):
            self._socket.send_text(data)
        self._socket.introduce_by(self._take)
        gone = self._socket.closing()
        waits: list[asyncio.Future[Any]] = [self._token, gone]
        await asyncio.wait(waits, timeout=PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if self._token.done():
            return self._token.result()
        if gone.done():
            raise TurnedAway(CloseCode.NORMAL, "the client is gone")
        raise TurnedAway(CloseCode.POLICY, "authenticate within ten seconds")

    def hand_over(self, receiver: Receiver) -> None:
        """Pass all messages to the session from now on, beginning with those that came too early."""
        self._socket.receive_by(receiver)
        for data, text in self._early:
            receiver(data, text=text)
        self._early.clear()

    def _take(self, data: bytes, *, text: bool) -> None:
        if self._token.done():
            self._early.append((data, text))
            return
        self._messages += 1
        try:
            step = self._entry.introduce(data, text=text)
        except BridgeError as exc:
            self._token.set_exception(TurnedAway(CloseCode.POLICY, exc.message))
            return
        for frame in step.frames:
            self._socket.send_text(frame)
        if step.is_over:
            self._socket.hold()
            self._token.set_result(step.token)
        elif self._messages >= MAX_MESSAGES:
            self._token.set_exception(TurnedAway(CloseCode.POLICY, "too many messages without a session"))
