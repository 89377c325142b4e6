"""One command to several clients: collects the answers until there are enough.

A partial failure is no error of the whole: every client has its own response. It is an error if the client could not be
reached, did not answer in time, or was cancelled because enough others had succeeded.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import msgspec

from protocol import codec
from protocol.errors import BridgeError, Cancelled, Code, Internal, Overloaded, PayloadTooLarge
from protocol.messages import CommandRequest, CommandResponse, failure
from protocol.subjects import ClientAddress

SUCCESS = "success"
UNANSWERED = {Code.TIMEOUT.value, Code.CANCELLED.value}

log = logging.getLogger(__name__)
Send = Callable[[ClientAddress, CommandRequest], Awaitable[CommandResponse]]
Hold = Callable[[int], None]  # counts bytes of answers, or raises `Overloaded`


class Gathered(msgspec.Struct, frozen=True):
    """The responses by client id. `complete` is false if a client had not answered at the end."""

    results: dict[str, msgspec.Raw]
    complete: bool


class Gathering:
    """The answers so far. Sans-I/O.

    `max_bytes` bounds them. `hold` counts them against the caller's share of the process's memory.
    """

    def __init__(
        self, client_ids: Sequence[str], request_id: str, need: int | None, max_bytes: int, hold: Hold
    ) -> None:
        self._client_ids = client_ids
        self._hold = hold
        self._request_id = request_id
        self._need = len(client_ids) + 1 if need is None else need
        self._room = max_bytes
        self._answers: dict[str, msgspec.Raw] = {}
        self._unanswered = 0
        self._successes = 0

    @property
    def enough(self) -> bool:
        """Whether as many clients have succeeded as the caller wants."""
        return self._successes >= self._need

    def take(self, client_id: str, response: CommandResponse) -> None:
        """Take a client's answer. If all together become too large, replace it by an error."""
        response = msgspec.structs.replace(response, client_id=client_id)
        answer = codec.encode(response)
        try:
            self._take_room(len(answer))
        except PayloadTooLarge as exc:
            response = failure(response.request_id, exc, client_id, response.duration_ms)
            answer = codec.encode(response)
        self._answers[client_id] = msgspec.Raw(answer)
        self._successes += response.status == SUCCESS
        self._unanswered += response.error is not None and response.error.code in UNANSWERED

    def _take_room(self, size: int) -> None:
        """Raise `PayloadTooLarge`, and not `Overloaded`, if there is no room: the command has been executed."""
        if size > self._room:
            raise PayloadTooLarge("the answer came, but all answers together are too large; ask fewer clients at once")
        try:
            self._hold(size)
        except Overloaded as exc:
            sentence = "the answer came, but your share of memory is used up; send fewer commands at once"
            raise PayloadTooLarge(sentence, details=exc.details) from exc
        self._room -= size

    def end(self) -> Gathered:
        """Return the responses so far. A client that has not answered counts as cancelled."""
        complete = len(self._answers) == len(self._client_ids) and not self._unanswered
        return Gathered({client_id: self._answer(client_id) for client_id in self._client_ids}, complete)

    def _answer(self, client_id: str) -> msgspec.Raw:
        answer = self._answers.get(client_id)
        if answer is not None:
            return answer
        error = Cancelled("enough other clients had succeeded; the command was cancelled and may have run in part")
        return msgspec.Raw(codec.encode(failure(self._request_id, error, client_id)))


async def gather(
    client_ids: Sequence[str],
    tenant: str,
    command: CommandRequest,
    need: int | None,
    max_bytes: int,
    send: Send,
    hold: Hold = lambda size: None,
) -> Gathered:
    """Send a command to all these clients at once, and return when all have answered or `need` have succeeded.

    Commands that still wait then are cancelled. If this call is cancelled, all commands are. `send` checks the ids.
    """
    assert command.request_id is not None
    gathering = Gathering(client_ids, command.request_id, need, max_bytes, hold)
    asks: list[asyncio.Task[None]] = []

    async def ask(client_id: str) -> None:
        gathering.take(client_id, await answer_of(partial(send, ClientAddress(tenant, client_id)), command, client_id))
        if gathering.enough:
            for other in asks:
                other.cancel()

    async with asyncio.TaskGroup() as tasks:
        asks += [tasks.create_task(ask(client_id), name=f"ask {client_id}") for client_id in client_ids]
    return gathering.end()


async def answer_of(
    send: Callable[[CommandRequest], Awaitable[CommandResponse]], command: CommandRequest, client_id: str
) -> CommandResponse:
    """Return a client's answer, or its error as one. An unexpected exception is logged."""
    assert command.request_id is not None
    try:
        return await send(command)
    except BridgeError as exc:
        return failure(command.request_id, exc, client_id)
    except Exception:
        log.exception("a command for client %s failed", client_id)
        error = Internal("the request failed; the log of the process says why")
        return failure(command.request_id, error, client_id)
