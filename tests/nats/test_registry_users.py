"""A registry under the NATS users of the template: everything it does, with no more than it is permitted."""

from pathlib import Path
from typing import Any

import pytest
from conftest import MakeNats
from support.gateway import fake_gateway
from support.kv import record
from support.registry import observer, registries
from support.wait import until

from agentbridge import nats_config


async def test_registry_does_all_its_work_as_its_own_user(
    tmp_path: Path, make_nats: MakeNats, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = {user.name: user for user in nats_config.users(("default",))}
    passwords = {name: nats_config.new_password() for name in users}
    for name, user in users.items():
        monkeypatch.setenv(user.password_variable, passwords[name])
    server = make_nats(nats_config.authorization(("default",)))
    await server.start()

    def as_user(name: str) -> dict[str, Any]:
        return {"user": name, "password": passwords[name], "inbox_prefix": f"_INBOX.{name}"}

    own = {"nats_user": "registry", "nats_password": passwords["registry"]}
    async with (
        registries(tmp_path, server.url, 2, **own) as running,
        observer(server.url, **as_user("console")) as seen,
    ):
        async with fake_gateway(server.url, **as_user("gateway")) as gateway:
            await gateway.connect(record("a"), record("b"))
            await gateway.disconnect(("default", "b"))
            gateway.hold(record("c"))
            await until(lambda: seen.announced.of("connected") == {"a", "b", "c"})
            assert gateway.syncs
        await until(lambda: seen.announced.of("disconnected") == {"a", "b", "c"})
        assert await seen.listed() == set()
    assert not any("refused" in process.log for process in running)
