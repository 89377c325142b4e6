"""The clients bucket as a test writes it: records as the registry would, and the bucket itself."""

from typing import Any

import msgspec
from nats.js.api import KeyValueConfig, StorageType
from nats.js.client import JetStreamContext
from nats.js.kv import KeyValue

from protocol import subjects
from protocol.records import ClientRecord


def record(client_id: str = "c1", *, capabilities: bytes = b"[]", **fields: Any) -> ClientRecord:
    """Return a client's record; what is not named is the same in all."""
    known: dict[str, Any] = {
        "tenant": "default",
        "gateway_id": "gw-1",
        "principal": "user-1",
        "revision": 1,
        "connected_at": "2026-01-01T00:00:00.000Z",
    }
    return ClientRecord(client_id=client_id, capabilities=msgspec.Raw(capabilities), **(known | fields))


async def make_bucket(jetstream: JetStreamContext, storage: StorageType = StorageType.MEMORY) -> KeyValue:
    """Make the clients bucket without a registry; a file store made right after its namesake's end finds remains."""
    return await jetstream.create_key_value(KeyValueConfig(bucket=subjects.CLIENTS_BUCKET, storage=storage))


async def put(bucket: KeyValue, *records: ClientRecord) -> None:
    """Store records."""
    for each in records:
        await bucket.put(subjects.client_key(each.tenant, each.client_id), msgspec.json.encode(each))
