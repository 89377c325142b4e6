"""Orders under idempotency keys, with a bucket, an audit trail and gateways that the test plays."""

import itertools
import json
from collections.abc import Callable, Coroutine
from typing import Any, cast

import msgspec

from agent_api.clients.candidates import Candidates
from agent_api.commands.admission import Admission
from agent_api.commands.audit import CommandAudit
from agent_api.commands.gather import Gathered
from agent_api.commands.idempotency import KeyedOrders
from agent_api.commands.least_busy import LeastBusy
from agent_api.commands.orders import read_order
from agent_api.commands.send import Sender
from agent_api.commands.targets import Targets
from protocol.access import AGENT, Principal
from protocol.audit import AuditRecord
from protocol.errors import BridgeError, ClientLost
from protocol.idempotency import IdempotencyEntry, content_of, entry_key
from protocol.messages import CommandRequest, CommandResponse, failure
from protocol.runtime.commands.audit_log import AuditLog
from protocol.runtime.commands.idempotency_store import IdempotencyStore, StoredEntry
from protocol.runtime.commands.progress import OnProgress
from protocol.subjects import ClientAddress
from support.played.known import Known

ANYBODY = Principal("agent", AGENT, "default", float("inf"))
ANY = {"any": True}
Gateway = Callable[[ClientAddress, CommandRequest], Coroutine[Any, Any, CommandResponse]]


class Bucket:
    """The entries, of which one for each key is enough here. `away` is raised by every reading."""

    def __init__(self) -> None:
        self.stored: dict[str, IdempotencyEntry] = {}
        self.away: BridgeError | None = None
        self.gone_gateways: set[str] = set()
        self.on_ping: Callable[[], object] = lambda: None

    async def read(self, key: str) -> StoredEntry:
        if self.away is not None:
            raise self.away
        return StoredEntry(1, self.stored.get(key))

    async def is_gone(self, gateway_id: str) -> bool:
        self.on_ping()
        return gateway_id in self.gone_gateways

    async def lose(self, key: str, stored: StoredEntry) -> StoredEntry:
        assert stored.entry is not None
        self.stored[key] = stored.entry.lose()
        return StoredEntry(2, self.stored[key])


class Records:
    """The audit trail."""

    def __init__(self) -> None:
        self.all: list[AuditRecord] = []

    def publish(self, record: AuditRecord, *, at_once: bool) -> None:
        assert at_once, "the answer must not overtake it"
        self.all.append(record)

    def refused(self, refusal: AuditRecord) -> None:
        self.all.append(refusal)


class Bench:
    """An agent API's commands. What a gateway does is `gateways[client id]`; else it says that all went well."""

    def __init__(self) -> None:
        candidates, least_busy = Candidates(), LeastBusy()
        self.known = Known(listeners=(candidates.observe, least_busy.observe))
        targets = Targets(self.known, candidates, least_busy, lambda address: 0, Admission(100), 10_000)
        self.bucket, self.trail = Bucket(), Records()
        keyed = KeyedOrders(cast("IdempotencyStore", self.bucket), targets)
        command_audit = CommandAudit(cast("AuditLog", self.trail))
        self.commands = Sender(self, targets, keyed, command_audit, passes_tokens_on=False)
        self.gateways: dict[str, Gateway] = {}
        self.sent: list[tuple[str, CommandRequest]] = []
        self.heard: list[tuple[str, str]] = []

    async def call(
        self, address: ClientAddress, command: CommandRequest, token: str | None, on_progress: OnProgress | None = None
    ) -> CommandResponse:
        self.sent.append((address.client_id, command))
        return await self.gateways.get(address.client_id, success)(address, command)

    async def ask(
        self,
        whom: dict[str, Any],
        key: str | None = "k",
        timeout_ms: int = 1000,
        principal: Principal = ANYBODY,
        **command: Any,
    ) -> Any:
        body = {"command": {"target": "f", "requestId": "mine", "idempotencyKey": key, **command}, **whom}
        order = read_order(json.dumps(body).encode(), timeout_ms, timeout_ms)
        outcome = await self.commands.send(order, principal, None)
        return json.loads(msgspec.json.encode(outcome)) if isinstance(outcome, Gathered) else outcome

    def remember(
        self,
        client_id: str,
        key: str = "k",
        *,
        gateway_id: str = "gw-1",
        ended: bool = True,
        target: str = "f",
        user: str = "ann",
        request_id: str = "first",
    ) -> str:
        """Have an entry under a key, and return where it lies."""
        place = entry_key(ANYBODY, key)
        entry = IdempotencyEntry(
            body=content_of(CommandRequest(target=target)),
            reservation="reservation",
            gateway_id=gateway_id,
            client_id=client_id,
            user=user,
            request_id=request_id,
            at="now",
        )
        outcome = CommandResponse(request_id=request_id, status="success", client_id=client_id, duration_ms=1)
        self.bucket.stored[place] = entry.end(outcome, 10_000) if ended else entry
        return place

    @property
    def records(self) -> list[tuple[str | None, str, bool]]:
        """What was recorded here: whom it was for, how it ended, whether it was remembered."""
        assert {record.request_id for record in self.trail.all} <= {"mine"}
        return sorted((record.client_id or "", record.outcome, record.replayed) for record in self.trail.all)


async def success(address: ClientAddress, command: CommandRequest) -> CommandResponse:
    assert command.request_id is not None
    return CommandResponse(request_id=command.request_id, status="success", client_id=address.client_id, duration_ms=1)


def raising(error: BridgeError) -> Gateway:
    async def fail(address: ClientAddress, command: CommandRequest) -> CommandResponse:
        raise error

    return fail


def refusing(error: BridgeError) -> Gateway:
    async def refuse(address: ClientAddress, command: CommandRequest) -> CommandResponse:
        assert command.request_id is not None
        return failure(command.request_id, error, address.client_id)

    return refuse


def losing(then: Callable[[], object]) -> Gateway:
    """Lose the client once the gateway has done something with the entry."""

    async def lose(address: ClientAddress, command: CommandRequest) -> CommandResponse:
        then()
        raise ClientLost("lost")

    return lose


def first_refusing(error: BridgeError, times: int = 1, then: Callable[[], object] = lambda: None) -> Gateway:
    """Refuse so many times, do something after the last, and then answer."""
    refused = itertools.count(1)

    async def answer(address: ClientAddress, command: CommandRequest) -> CommandResponse:
        number = next(refused)
        if number == times:
            then()
        return await (refusing(error) if number <= times else success)(address, command)

    return answer
