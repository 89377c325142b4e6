"""Logging in to NATS by a credentials file, at a server that knows users by nothing else."""

import asyncio
from pathlib import Path

import pytest
from conftest import MakeNats
from support.nats.nats_jwt import Operator
from support.nats.nats_server import NatsServer
from support.processes.child import Process
from support.settings import environment, settings_for
from support.wait import until

from protocol.errors import ConfigurationError
from protocol.runtime.nats.connection import connect
from protocol.runtime.nats.credentials import UserCredentials
from protocol.runtime.settings import Settings

OPERATOR = Operator()


@pytest.fixture
async def server(make_nats: MakeNats) -> NatsServer:
    made = make_nats(OPERATOR.config)
    await made.start()
    return made


def settings(server: NatsServer, creds: str | None) -> Settings:
    return settings_for(Settings, server.url, nats_creds=creds)


async def test_user_of_a_credentials_file_is_let_in(server: NatsServer, tmp_path: Path) -> None:
    creds = OPERATOR.write_creds(tmp_path / "user.creds")
    async with asyncio.timeout(10), connect(settings(server, creds), "tests", "tests") as connection:
        await connection.verify_permissions()


async def test_user_of_another_operator_is_refused(server: NatsServer, tmp_path: Path) -> None:
    for creds in (Operator().write_creds(tmp_path / "user.creds"), None):
        with pytest.raises(ConfigurationError, match="refuses this process's credentials"):
            async with asyncio.timeout(10), connect(settings(server, creds), "tests", "tests"):
                pass


async def test_renewed_file_counts_at_the_next_connect_and_a_broken_one_does_not(
    server: NatsServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "user.creds"
    OPERATOR.write_creds(path)
    renewed = path.read_text()
    creds = OPERATOR.write_creds(path)
    async with asyncio.timeout(20), connect(settings(server, creds), "tests", "tests") as connection:
        for number, content in enumerate((renewed, "half a fi"), start=1):
            path.write_text(content)
            server.stop()
            await until(lambda: not connection.connected)
            await server.start()
            await connection.wait_connected(10)
            assert connection.reconnects == number
            await connection.flush()
    assert "using its former content" in caplog.text


async def test_garbage_is_a_line_for_the_operator(tmp_path: Path) -> None:
    garbage = tmp_path / "user.creds"
    garbage.write_text("not a credentials file\n")
    process = Process("gateway", tmp_path, environment("nats://127.0.0.1:1", nats_creds=garbage))
    try:
        process.launch()
        assert await process.ended() == 2
    finally:
        process.end()
    assert process.log.startswith(
        f"gateway: AGENTBRIDGE_NATS_CREDS is '{garbage}', which is not a NATS credentials file: "
    )
    assert process.log.count("\n") == 1


@pytest.mark.parametrize("part", ["-----BEGIN NATS USER JWT-----", "SU", "."])
def test_file_that_lacks_a_part_is_refused(tmp_path: Path, part: str) -> None:
    path = tmp_path / "user.creds"
    OPERATOR.write_creds(path)
    UserCredentials(str(path))
    path.write_text(path.read_text().replace(part, ""))
    with pytest.raises(ConfigurationError, match="AGENTBRIDGE_NATS_CREDS"):
        UserCredentials(str(path))
