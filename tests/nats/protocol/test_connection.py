"""The hardened connection against a real server that is stopped, killed, frozen and protected by users."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats
import nats.errors
import pytest
import uvloop
from conftest import MakeNats
from nats.aio.client import Client
from nats.aio.msg import Msg
from support.nats.certificates import self_signed
from support.nats.nats_server import NatsServer
from support.settings import settings_for
from support.wait import until

from protocol.errors import ConfigurationError, Overloaded, PayloadTooLarge, Unavailable
from protocol.runtime.nats.connection import Connection, connect
from protocol.runtime.nats.library import outgoing
from protocol.runtime.settings import Settings

SOCKET_BUFFER_BYTES = 16_000_000
USERS = """
authorization { users = [
  { user: bob, password: "secret-of-bob", permissions: {
      publish: ["allowed.>", "_INBOX.>"], subscribe: ["allowed.>", "_INBOX.bob.>"] } }
] }
"""


def settings(url: str, **values: Any) -> Settings:
    return settings_for(Settings, url, **values)


@pytest.fixture
async def connection(private_nats: NatsServer) -> AsyncIterator[Connection]:
    async with connect(settings(private_nats.url), "tests", "tests") as made:
        yield made


async def gone(connection: Connection, seconds: float = 5) -> None:
    await until(lambda: not connection.connected, seconds)


async def test_publish_fails_at_once_while_the_server_is_away(private_nats: NatsServer, connection: Connection) -> None:
    private_nats.kill()
    await gone(connection)
    with pytest.raises(Unavailable):
        await connection.publish("a", b"")
    with pytest.raises(Unavailable):
        await connection.request("a", b"", 10)
    async with asyncio.timeout(3):
        with pytest.raises(Unavailable):
            await connection.wait_connected(0.05)


async def test_cancellation_that_comes_with_the_reply_is_not_lost(connection: Connection) -> None:
    requests: asyncio.Queue[Msg] = asyncio.Queue()
    await connection.subscribe("a", requests.put)
    asking = asyncio.get_running_loop().create_task(connection.request("a", b"", 10))
    await requests.get()
    [reply] = connection.client._resp_map.values()
    reply.set_result(Msg(connection.client, data=b"answer"))
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_return_of_the_server_is_seen_and_counted(private_nats: NatsServer, connection: Connection) -> None:
    returns: list[float] = []
    connection.on_reconnect(lambda: returns.append(connection.unbroken_seconds()))
    assert connection.away_seconds() == 0
    private_nats.stop()
    await gone(connection)
    assert connection.unbroken_seconds() == 0
    before = connection.away_seconds()
    assert before > 0
    await private_nats.start()
    await connection.wait_connected(5)
    await until(lambda: returns)
    assert connection.connected
    assert (connection.away_seconds(), connection.reconnects) == (0, 1)
    assert 0 <= connection.unbroken_seconds() < 5
    await connection.publish("a", b"")
    await connection.flush()


async def test_request_whose_reply_died_with_the_server_is_not_waited_for(
    private_nats: NatsServer, connection: Connection
) -> None:
    asked = asyncio.Event()

    async def never_answer(_: Msg) -> None:
        asked.set()

    await connection.subscribe("a", never_answer)
    request = asyncio.get_running_loop().create_task(connection.request("a", b"", 60))
    await asked.wait()
    private_nats.kill()
    async with asyncio.timeout(5):
        with pytest.raises(Unavailable):
            await request


async def test_request_that_was_never_sent_is_no_fault_for_the_log_when_the_server_dies(
    private_nats: NatsServer, connection: Connection
) -> None:
    faults = list[str]()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: faults.append(context["message"]))
    with pytest.raises(Unavailable):
        await connection.request("a", b"", 10, headers={"no header": "x"})
    assert connection.client._resp_map
    private_nats.kill()
    await until(lambda: not connection.client._resp_map)
    gc.collect()
    assert faults == []


async def test_subscriptions_work_again_after_a_restart(private_nats: NatsServer, connection: Connection) -> None:
    received: list[bytes] = []

    async def take(msg: Msg) -> None:
        received.append(msg.data)

    await connection.subscribe("a.*", take)
    private_nats.stop()
    await gone(connection)
    await private_nats.start()
    await connection.wait_connected(5)
    await connection.flush()
    other = await nats.connect(private_nats.url)
    await other.publish("a.b", b"after")
    await until(lambda: received == [b"after"])
    await other.close()


async def test_process_waits_for_a_server_that_starts_later(
    make_nats: MakeNats, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_nats("")

    async def start_later() -> None:
        await until(lambda: attempted)
        await server.start()

    attempted: list[str] = []
    monkeypatch.setattr(Connection, "_log_waiting", lambda self, why: attempted.append(why))
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        tasks.create_task(start_later())
        async with connect(settings(server.url), "tests", "tests") as made:
            await made.flush()
            assert made.connected
            assert not made.failed.done()


async def test_pong_whose_flush_was_given_up_does_not_end_the_reading(
    private_nats: NatsServer, connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """As when a process gets no CPU for longer than its flush waits, and then reads the answer."""
    private_nats.freeze()
    with pytest.raises(nats.errors.TimeoutError):
        await connection.client.flush(0.1)  # type: ignore[arg-type]  # it takes floats, too
    private_nats.thaw()
    assert await connection.answers(2)
    assert (connection.breaks, caplog.text) == (0, "")


async def test_frozen_server_is_noticed(private_nats: NatsServer, connection: Connection) -> None:
    private_nats.freeze()
    await gone(connection, 4)
    with pytest.raises(Unavailable):
        await connection.publish("a", b"")
    private_nats.thaw()
    await connection.wait_connected(10)
    await connection.flush()


async def test_subscription_that_ends_while_the_server_is_frozen_is_not_made_again(
    private_nats: NatsServer, connection: Connection
) -> None:
    subscriptions = [await connection.subscribe(f"t.{number}", _ignore) for number in range(3)]
    await connection.flush()
    private_nats.freeze()
    await connection.end_subscriptions(subscriptions)
    await gone(connection)
    private_nats.thaw()
    await connection.wait_connected(10)
    with pytest.raises(nats.errors.NoRespondersError):
        await connection.request("t.1", b"", 5)


async def _ignore(msg: Msg) -> None:
    """Take a message that is not expected."""


async def test_pong_that_comes_too_late_does_not_deafen_the_connection(
    private_nats: NatsServer, connection: Connection
) -> None:
    assert await connection.answers(0.5)
    private_nats.freeze()
    try:
        assert not await connection.answers(0.5)
    finally:
        private_nats.thaw()
    await until(lambda: connection.answers(0.5))
    assert connection.reconnects == 0


async def test_flush_covers_a_subscription_that_was_just_made(nats_url: str) -> None:
    other = await nats.connect(nats_url)
    async with connect(settings(nats_url), "tests", "tests") as connection:
        for number in range(50):
            arrived = asyncio.Event()

            async def take(msg: Msg, arrived: asyncio.Event = arrived) -> None:
                arrived.set()

            await connection.subscribe(f"fresh.{number}", take)
            await connection.flush()
            await other.publish(f"fresh.{number}", b"")
            async with asyncio.timeout(5):
                await arrived.wait()
    await other.close()


async def test_flushes_at_one_time_share_round_trips(nats_url: str) -> None:
    async with connect(settings(nats_url), "tests", "tests") as connection:
        async with asyncio.timeout(5):
            await asyncio.gather(*(connection.flush() for _ in range(500)))


async def test_cancelled_flush_leaves_the_others_alone(nats_url: str) -> None:
    async with connect(settings(nats_url), "tests", "tests") as connection, asyncio.TaskGroup() as tasks:
        first, second = (tasks.create_task(connection.flush()) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        async with asyncio.timeout(5):
            await second


async def test_nothing_unsent_is_sent_after_the_reconnect(private_nats: NatsServer, connection: Connection) -> None:
    """What a frozen server did not take is either told as `Unavailable` or forgotten, never sent late."""
    manager = await nats.connect(private_nats.url)
    await manager.jetstream().add_stream(name="kept", subjects=["kept.>"])
    await manager.close()
    private_nats.freeze()
    for number in range(200):
        await connection.publish("kept.before", b"x" * 60_000 + str(number).encode())
    private_nats.kill()
    await gone(connection)
    await private_nats.start()
    await connection.wait_connected(5)
    await connection.publish("kept.after", b"")
    await connection.flush()
    manager = await nats.connect(private_nats.url)
    info = await manager.jetstream().stream_info("kept", subjects_filter=">")
    assert info.state.subjects == {"kept.after": 1}
    await manager.close()


def test_publish_before_the_library_knows_that_the_socket_is_gone_is_forgotten(shared_nats_url: str) -> None:
    """The loop of our processes throws where the standard one says nothing."""
    complaints = list[dict[str, Any]]()

    async def publish_meanwhile() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        async with connect(settings(shared_nats_url), "tests", "tests") as connection:
            transport: Any = connection.client._transport
            transport._io_writer.transport.abort()
            with contextlib.suppress(Unavailable):
                while not connection.reconnects:
                    connection.publish_now("a", b"")
                    await asyncio.sleep(0)
            await until(lambda: connection.reconnects)

    uvloop.run(publish_meanwhile())
    assert complaints == []


async def test_what_waits_to_be_written_is_bounded(private_nats: NatsServer, connection: Connection) -> None:
    private_nats.freeze()
    taken = await _publish_until_refused(connection, bytes(1_000_000))
    assert taken * 1_000_000 < outgoing.MAX_UNSENT_BYTES + SOCKET_BUFFER_BYTES
    private_nats.kill()
    await gone(connection)


async def _publish_until_refused(connection: Connection, payload: bytes) -> int:
    """Return how many messages were taken before one was refused."""
    taken = 0
    with contextlib.suppress(Unavailable):
        while True:
            await connection.publish("a", payload)
            taken += 1
            await asyncio.sleep(0)
    return taken


async def test_message_beyond_what_the_server_takes_is_refused(nats_url: str) -> None:
    async with connect(settings(nats_url), "tests", "tests") as connection:
        with pytest.raises(PayloadTooLarge):
            await connection.publish("a", bytes(connection.client.max_payload + 1))
        with pytest.raises(PayloadTooLarge):
            await connection.request("a", bytes(connection.client.max_payload + 1), 5)
        with pytest.raises(PayloadTooLarge):
            await connection.publish("a", bytes(connection.client.max_payload), headers={"Authorization": "Bearer x"})
        await connection.publish("a", bytes(connection.client.max_payload))
        await connection.flush()
        assert (connection.connected, connection.reconnects) == (True, 0)


async def test_request_tells_silence_from_absence(nats_url: str) -> None:
    async with connect(settings(nats_url), "tests", "tests") as connection:
        with pytest.raises(nats.errors.NoRespondersError):
            await connection.request("nobody.here", b"", 5)

        async def ignore(msg: Msg) -> None:
            pass

        await connection.subscribe("somebody.here", ignore)
        await connection.flush()
        with pytest.raises(TimeoutError):
            await connection.request("somebody.here", b"", 0.05)


@pytest.mark.parametrize("password", ["wrong", None])
async def test_refused_credentials_stop_the_process(make_nats: MakeNats, password: str | None) -> None:
    server = make_nats(USERS)
    await server.start()
    with pytest.raises(ConfigurationError, match="refuses this process's credentials") as caught:
        async with (
            asyncio.timeout(10),
            connect(settings(server.url, nats_user="bob", nats_password=password), "tests", "bob"),
        ):
            pass
    assert "secret" not in str(caught.value)


async def test_credentials_in_the_url_are_not_told(make_nats: MakeNats) -> None:
    server = make_nats(USERS)
    await server.start()
    with pytest.raises(ConfigurationError) as caught:
        async with asyncio.timeout(10), connect(settings(server.url_of("bob:hunter2")), "tests", "bob"):
            pass
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("act", ["subscribe", "publish"])
async def test_missing_permission_stops_a_starting_process(make_nats: MakeNats, act: str) -> None:
    server = make_nats(USERS)
    await server.start()
    bob = settings(server.url, nats_user="bob", nats_password="secret-of-bob")

    async def ignore(msg: Msg) -> None:
        pass

    async with connect(bob, "tests", "bob") as connection:
        await connection.subscribe("allowed.a", ignore)
        await connection.publish("allowed.a", b"")
        if act == "subscribe":
            await connection.subscribe("forbidden.a", ignore)
        else:
            await connection.publish("forbidden.a", b"")
        with pytest.raises(ConfigurationError, match=r"NATS user of tests lacks permissions: .*forbidden\.a"):
            await connection.verify_permissions()


async def test_subscription_too_many_is_refused_alone(make_nats: MakeNats) -> None:
    server = make_nats("max_subscriptions: 5")
    await server.start()
    async with connect(settings(server.url), "tests", "tests") as connection:
        made = [await connection.subscribe_confirmed(f"a.{number}", print) for number in range(5)]
        for _ in range(3):
            with pytest.raises(Overloaded, match="no more subscriptions"):
                await connection.subscribe_confirmed("b", print)
        await made[0].unsubscribe()
        await connection.subscribe_confirmed("b", print)
        assert connection.connected
        server.kill()
        await server.start()
        await connection.wait_connected(10)
        assert not connection.failed.done(), "what was refused is not asked for again"


async def test_server_that_takes_fewer_subscriptions_than_before_is_the_end(make_nats: MakeNats) -> None:
    server = make_nats("")
    await server.start()
    async with connect(settings(server.url), "tests", "tests") as connection:
        for number in range(5):
            await connection.subscribe_confirmed(f"a.{number}", print)
        server.kill()
        server.configure("max_subscriptions: 4")
        await server.start()
        async with asyncio.timeout(10):
            await connection.failed


async def test_sufficient_permissions_let_a_process_start(make_nats: MakeNats) -> None:
    server = make_nats(USERS)
    await server.start()
    bob = settings(server.url, nats_user="bob", nats_password="secret-of-bob")

    async def answer(msg: Msg) -> None:
        await msg.respond(b"yes")

    async with connect(bob, "tests", "bob") as connection:
        await connection.subscribe("allowed.a", answer)
        await connection.verify_permissions()
        assert (await connection.request("allowed.a", b"", 5)).data == b"yes"
        assert connection.new_inbox().startswith("_INBOX.bob.")


async def test_connection_closed_for_good_is_fatal(nats_url: str) -> None:
    async with connect(settings(nats_url), "tests", "tests") as connection:
        await connection.client.close()
        async with asyncio.timeout(5):
            await connection.failed


async def test_leaving_ends_while_the_server_is_frozen(private_nats: NatsServer) -> None:
    async with asyncio.timeout(15):
        async with connect(settings(private_nats.url), "tests", "tests") as connection:
            private_nats.freeze()
            await gone(connection)


@pytest.mark.parametrize("unsent_bytes", [0, 8_000_000])
async def test_leaving_without_draining_does_not_wait_for_a_frozen_server(
    private_nats: NatsServer, unsent_bytes: int
) -> None:
    async def ignore(_: Msg) -> None: ...

    async with connect(settings(private_nats.url), "tests", "tests", drain=False) as connection:
        await connection.subscribe("anything", ignore)
        await connection.flush()
        private_nats.freeze()
        for _ in range(unsent_bytes // 500_000):
            await connection.publish("anything", b"x" * 500_000)
        assert connection.connected
        begun = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - begun < 2


async def test_leaving_delivers_what_was_published(nats_url: str) -> None:
    other: Client = await nats.connect(nats_url)
    subscription = await other.subscribe("last.words")
    await other.flush()
    async with connect(settings(nats_url), "tests", "tests") as connection:
        await connection.publish("last.words", b"bye")
    assert (await subscription.next_msg(5)).data == b"bye"
    await other.close()


async def test_frozen_server_is_left_as_soon_over_tls(make_nats: MakeNats, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    server = make_nats(f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}')
    await server.start()
    settings = settings_for(Settings, server.url.replace("nats://", "tls://"), nats_ca=certificate)
    async with connect(settings, "test", "test") as connection:
        await connection.flush()
        server.freeze()
        async with asyncio.timeout(6):
            await gone(connection)
            await until(lambda: connection.client.is_reconnecting)
        server.thaw()
        await connection.wait_connected(10)
        await connection.flush()
