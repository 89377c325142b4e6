"""The time of each gateway's last pong or report, at this registry and at its peers.

A registry that cannot reach a gateway asks the others before it withdraws the gateway's clients. Otherwise one broken
route in a NATS cluster would make registries withdraw and add the same clients in turn.
"""

import asyncio

import msgspec
from nats.aio.msg import Msg

from protocol import codec, subjects
from protocol.errors import BridgeError
from protocol.reports import PeerHeard, PeerHeardRequest
from protocol.runtime.nats.connection import Connection

ASK_SECONDS = 0.2
RECENT_MS = 1000

_requests = msgspec.json.Decoder(PeerHeardRequest)
_answers = msgspec.json.Decoder(PeerHeard)


class Peers:
    """Remembers when each gateway was last heard, and asks the other registries."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._heard: dict[str, float] = {}

    def note(self, gateway_id: str) -> None:
        """Note that a gateway has just been heard."""
        self._heard[gateway_id] = asyncio.get_running_loop().time()

    def forget(self, gateway_id: str) -> None:
        """Forget a gateway."""
        self._heard.pop(gateway_id, None)

    async def answer(self, msg: Msg) -> bytes:
        """Answer a registry's question, which may be this one's own."""
        gateway_id = codec.decode(_requests, msg.data).gateway_id
        heard = self._heard.get(gateway_id)
        ago = None if heard is None else int((asyncio.get_running_loop().time() - heard) * 1000)
        return codec.encode(PeerHeard(ago))

    async def recently(self, gateway_id: str) -> bool:
        """Ask all registries, for 200 ms. Return whether one has heard the gateway within the last second."""
        heard = asyncio.Event()

        async def take(msg: Msg) -> None:
            if _says_recent(msg.data):
                heard.set()

        inbox = self._connection.new_inbox()
        subscription = await self._connection.subscribe(inbox, take)
        try:
            body = codec.encode(PeerHeardRequest(gateway_id))
            await self._connection.publish(subjects.REGISTRY_PEER_HEARD, body, reply=inbox)
            async with asyncio.timeout(ASK_SECONDS):
                await heard.wait()
        except TimeoutError:
            pass
        finally:
            await subscription.unsubscribe()
        return heard.is_set()


def _says_recent(data: bytes) -> bool:
    try:
        ago = codec.decode(_answers, data).heard_ms_ago
    except BridgeError:
        return False
    return ago is not None and ago <= RECENT_MS
