"""JetStream's folder, copied while the server is stopped, brings back what was stored, at the same positions."""

import shutil
from pathlib import Path
from typing import Any

import nats
from support.nats.nats_server import NatsServer
from support.processes.bridge import running_bridge
from support.wait import until


async def test_copy_of_the_data_folder_restores_events_audit_and_keys(tmp_path: Path, private_nats: NatsServer) -> None:
    store, copy = private_nats.folder / "jetstream", tmp_path / "copy"
    async with (
        running_bridge(tmp_path / "bridge", private_nats.url) as bridge,
        bridge.app({"echo": lambda given: given}) as app,
    ):
        await bridge.listed(app.client_id)
        first = await bridge.call(app.client_id, "echo", {"n": 1}, idempotencyKey="k1")
        await app.acknowledged({"type": "event", "event": "kept"})
        before = await streams(private_nats.url)
        private_nats.stop()
        shutil.copytree(store, copy)
        private_nats.wipe()
        await private_nats.start()
        assert await streams(private_nats.url) != before
        private_nats.stop()
        private_nats.wipe()
        shutil.copytree(copy, store)
        await private_nats.start()
        restored = await streams(private_nats.url)
        assert {name: restored[name]["created"] for name in before} == {
            name: before[name]["created"] for name in before
        }
        assert all(restored[name]["last"] >= before[name]["last"] for name in before)

        async def replayed() -> Any:
            answer = await bridge.call(app.client_id, "echo", {"n": 1}, idempotencyKey="k1")
            assert answer.status_code in (200, 503), answer.text
            return answer.json().get("result")

        assert await until(replayed, 30) == first.json()["result"]
        assert len(app.all_received(type="command")) == 1, "the key was forgotten"


async def streams(url: str) -> dict[str, Any]:
    """Return when each stream was made, which is the epoch of its positions, and its last sequence."""
    client = await nats.connect(url)
    try:
        found = await client.jsm().streams_info()
        return {str(each.config.name): {"created": each.created, "last": each.state.last_seq} for each in found}
    finally:
        await client.close()
