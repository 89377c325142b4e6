"""The NATS server that tests run against."""

import nats
from support.nats.nats_server import NatsServer


async def test_private_server_keeps_its_store_over_a_restart_until_wiped(private_nats: NatsServer) -> None:
    client = await nats.connect(private_nats.url)
    await client.jetstream().add_stream(name="agentbridge_events", subjects=["agentbridge.*.event.*.*"])
    await client.close()

    private_nats.stop()
    await private_nats.start()
    assert await _streams(private_nats.url) == ["agentbridge_events"]

    private_nats.kill()
    private_nats.wipe()
    await private_nats.start()
    assert await _streams(private_nats.url) == []


async def test_shared_server_is_handed_over_without_streams_of_ours(nats_url: str) -> None:
    assert await _streams(nats_url) == []


async def _streams(url: str) -> list[str]:
    client = await nats.connect(url)
    try:
        return [str(info.config.name) for info in await client.jetstream().streams_info()]
    finally:
        await client.close()
