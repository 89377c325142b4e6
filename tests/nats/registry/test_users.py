"""A registry under the NATS users of the template: everything it does, with no more than it is permitted."""

from pathlib import Path

from conftest import MakeNats
from support.nats.clients_bucket import record
from support.nats.template import Template, agent_options
from support.played.gateway import fake_gateway
from support.processes.registry import observer
from support.wait import until

from protocol import subjects


async def test_registry_does_all_its_work_as_its_own_user(tmp_path: Path, make_nats: MakeNats) -> None:
    template = Template()
    server = make_nats(template.config)
    await server.start()
    async with (
        template.registries(tmp_path, server.url, 2) as running,
        observer(server.url, subjects.client_changes_of("default"), **agent_options("observer")) as seen,
    ):
        async with fake_gateway(server.url, **template.options("gateway")) as gateway:
            await gateway.connect(record("a"), record("b"))
            await gateway.disconnect(("default", "b"))
            gateway.hold(record("c"))
            await until(lambda: seen.announced.of("connected") == {"a", "b", "c"})
            assert gateway.syncs
        await until(lambda: seen.announced.of("disconnected") == {"a", "b", "c"})
        assert await seen.listed() == set()
    assert not any("refused" in process.log for process in running)
