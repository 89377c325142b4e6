"""Monitors the gateways: pings each twice a second, and performs the actions of its liveness.

Each gateway has a task of its own, so that its events are handled in order. Silence counts only if NATS itself answers,
because a frozen server must not look like the death of every gateway.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterator

import msgspec
import nats.errors
from nats.aio.msg import Msg

from protocol import codec, subjects
from protocol.errors import BridgeError
from protocol.ids import is_token
from protocol.reports import GatewayPing, GatewayPong
from protocol.runtime.clock import skew_of, wall_ms
from protocol.runtime.nats.connection import EVIDENCE_AFTER_SECONDS, Connection
from registry.bucket.gateway_records import GatewayRecords
from registry.bucket.store import Store
from registry.gateways.drift import Drift
from registry.gateways.liveness import GatewayState, Liveness, LivenessEffect, LivenessEvent
from registry.gateways.peers import Peers
from registry.gateways.sync import Syncs

PING_SECONDS = 0.5
PROOF_SECONDS = 0.5
SEARCH_SECONDS = 2.0
GATEWAY_SERVICE = "agentbridge-gateway"

log = logging.getLogger(__name__)
_pongs = msgspec.json.Decoder(GatewayPong)


class _Service(msgspec.Struct, frozen=True):
    """The needed part of a service's answer to `$SRV.PING` (ADR-32)."""

    metadata: dict[str, str] = {}


_services = msgspec.json.Decoder(_Service)


class _Watched:
    """A gateway under watch."""

    def __init__(self, gateway_id: str) -> None:
        self.gateway_id = gateway_id
        self.liveness = Liveness()
        self.drift = Drift()
        self.skew_ms: int | None = None


class GatewayMonitor:
    """Watches every gateway that is in the bucket, answers `$SRV.PING`, or has reported."""

    def __init__(
        self,
        connection: Connection,
        tasks: asyncio.TaskGroup,
        gateway_records: GatewayRecords,
        peers: Peers,
        store: Store,
        syncs: Syncs,
    ) -> None:
        self._connection = connection
        self._tasks = tasks
        self._gateway_records = gateway_records
        self._peers = peers
        self._store = store
        self._syncs = syncs
        self._watched: set[str] = set()
        self._clock = asyncio.get_running_loop().time

    async def run(self) -> None:
        """Look for gateways, for ever."""
        inbox = self._connection.new_inbox()
        await self._connection.subscribe(inbox, self._found)
        search_at = 0.0
        while True:
            # A gateway that died while no registry ran is found in the bucket only. A new one may not be there yet, so
            # the search below asks all.
            for gateway_id in self._gateway_records.gateways():
                self._over(gateway_id)
            if self._clock() >= search_at:
                search_at = self._clock() + SEARCH_SECONDS
                with contextlib.suppress(BridgeError):
                    await self._connection.publish(f"$SRV.PING.{GATEWAY_SERVICE}", b"", reply=inbox)
            await asyncio.sleep(PING_SECONDS)

    def heard(self, gateway_id: str) -> None:
        """Note that a gateway has reported, and watch it from now on."""
        if is_token(gateway_id):
            self._peers.note(gateway_id)
            self._over(gateway_id)

    def _over(self, gateway_id: str) -> None:
        if gateway_id not in self._watched:
            self._watched.add(gateway_id)
            self._tasks.create_task(self._keep(_Watched(gateway_id)), name=f"watch {gateway_id}")

    async def _found(self, msg: Msg) -> None:
        with contextlib.suppress(BridgeError):
            gateway_id = codec.decode(_services, msg.data).metadata.get("gatewayId", "")
            if is_token(gateway_id):
                self._over(gateway_id)

    async def _keep(self, watched: _Watched) -> None:
        """Ping a gateway until it is forgotten. No failure ends that."""
        while watched.liveness.state is not GatewayState.FORGOTTEN:
            next_at = self._clock() + PING_SECONDS
            with _logged(watched.gateway_id):
                await self._round(watched)
            await asyncio.sleep(max(0.0, next_at - self._clock()))
        self._watched.discard(watched.gateway_id)
        self._peers.forget(watched.gateway_id)

    async def _round(self, watched: _Watched) -> None:
        effect = self._take(watched, await self._ping(watched))
        if effect is LivenessEffect.ASK_PEERS:
            # Only our own path to the gateway may be broken. If another registry hears it, it stays.
            effect = self._take(watched, await self._verdict(watched))
        match effect:
            case LivenessEffect.SYNC:
                self._sync(watched)
            case LivenessEffect.WITHDRAW:
                await self._withdraw(watched.gateway_id)
            case LivenessEffect.FORGET:
                await self._withdraw(watched.gateway_id)
                log.info("forgot the gateway %s", watched.gateway_id)

    def _take(self, watched: _Watched, event: LivenessEvent) -> LivenessEffect | None:
        before = watched.liveness.state
        effect = watched.liveness.handle(event, self._clock())
        if watched.liveness.state is not before:
            log.debug("%s is %s", watched.gateway_id, watched.liveness.state.name.lower())
        return effect

    async def _ping(self, watched: _Watched) -> LivenessEvent:
        """Ping once. A pong may show that the gateway must be synced."""
        subject = subjects.gateway(watched.gateway_id, "ping")
        try:
            sent = wall_ms()
            asking = codec.encode(GatewayPing(watched.skew_ms))
            reply = await self._connection.request(subject, asking, PING_SECONDS)
            pong = codec.decode(_pongs, reply.data)
            watched.skew_ms = skew_of(pong.at_ms, sent, wall_ms())
        except nats.errors.NoRespondersError:
            return self._credible(LivenessEvent.NO_RESPONDERS)
        except TimeoutError:
            # A frozen NATS server is silent, too. Blame the gateway only if the server itself answers.
            return (
                self._credible(LivenessEvent.SILENCE)
                if await self._connection.answers(PROOF_SECONDS)
                else LivenessEvent.BLIND
            )
        except BridgeError:
            # NATS is away, or the pong cannot be read: neither says that the gateway is dead.
            return LivenessEvent.BLIND
        self._peers.note(watched.gateway_id)
        # The pong's digest may show that reports or writes were lost.
        if watched.drift.weigh(pong, self._gateway_records.of(watched.gateway_id)):
            self._sync(watched)
        return LivenessEvent.PONG

    def _credible(self, event: LivenessEvent) -> LivenessEvent:
        """Return the event, or BLIND soon after a reconnect, when gateways may not have subscribed again."""
        return event if self._connection.unbroken_seconds() >= EVIDENCE_AFTER_SECONDS else LivenessEvent.BLIND

    async def _verdict(self, watched: _Watched) -> LivenessEvent:
        """Ping a suspect once more, and ask the other registries at the same time.

        If the questions fail, that proves nothing about the gateway, so it must not stay a suspect.
        """
        last_word, heard = LivenessEvent.BLIND, False
        with _logged(watched.gateway_id):
            last_word, heard = await asyncio.gather(self._ping(watched), self._peers.recently(watched.gateway_id))
        if last_word in (LivenessEvent.PONG, LivenessEvent.BLIND):
            # The gateway has answered meanwhile, or we cannot see: the peers' word is not needed.
            return last_word
        return LivenessEvent.VETO if heard else LivenessEvent.NO_VETO

    def _sync(self, watched: _Watched) -> None:
        watched.drift.reset()
        self._syncs.begin(watched.gateway_id)

    async def _withdraw(self, gateway_id: str) -> None:
        count = await self._store.withdraw(gateway_id)
        if count:
            log.warning("the gateway %s is lost; withdrew its %d clients", gateway_id, count)


@contextlib.contextmanager
def _logged(gateway_id: str) -> Iterator[None]:
    """Log any failure of a gateway's monitoring, and go on."""
    try:
        yield
    except (BridgeError, nats.errors.Error) as exc:
        log.warning("watching %s: %s", gateway_id, exc or type(exc).__name__)
    except Exception:
        log.exception("watching %s failed", gateway_id)
