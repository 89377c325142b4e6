"""Subscriptions with a credit, on a real NATS: messages that come faster than they are handled end them."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from functools import partial

import pytest
from nats.aio.msg import Msg
from support.nats.nats_server import NatsServer
from support.settings import settings_for
from support.wait import until

from protocol.runtime.nats.connection import Connection, connect
from protocol.runtime.nats.library.credit import Credit
from protocol.runtime.settings import Settings

CREDIT = 100


class Subject:
    """A subscription with a credit; `slowly` makes its handler as slow as a flood is fast."""

    def __init__(self) -> None:
        self.heard: list[int] = []
        self.used_up = 0

    def handle(self, msg: Msg) -> None:
        self.heard.append(int(msg.data))

    def end(self) -> None:
        self.used_up += 1


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[Connection]:
    async with connect(settings_for(Settings, url), "test", "test") as connection:
        yield connection


async def subscribed(connection: Connection, subject: Subject) -> None:
    await connection.subscribe_confirmed("a", subject.handle, credit=CREDIT, on_used_up=subject.end)


async def test_messages_that_are_handled_in_time_come_without_an_end(private_nats: NatsServer) -> None:
    subject = Subject()
    async with connected(private_nats.url) as connection, connected(private_nats.url) as client:
        await subscribed(connection, subject)
        for number in range(20 * CREDIT):
            await client.publish("a", b"%d" % number)
            if number % (CREDIT // 4) == 0:
                await client.flush()
                await until(partial(has_heard, subject, number + 1))
                await connection.flush()  # behind the round trip that confirms an extension
        await client.flush()
        await until(lambda: len(subject.heard) == 20 * CREDIT)
        assert subject.heard == list(range(20 * CREDIT))
        assert subject.used_up == 0


async def test_flood_ends_the_subscription_and_leaves_no_queue(private_nats: NatsServer) -> None:
    """The loop is held while the flood comes, so no extension can be in time."""
    subject = Subject()
    async with connected(private_nats.url) as connection, connected(private_nats.url) as client:
        await subscribed(connection, subject)
        for number in range(50 * CREDIT):
            await client.publish("a", b"%d" % number)
        await client.flush()
        await until(lambda: subject.used_up)
        heard = len(subject.heard)
        assert heard < 10 * CREDIT
        assert subject.heard == list(range(heard))
        await client.publish("a", b"1")
        await client.flush()
        await connection.flush()
        assert (len(subject.heard), subject.used_up) == (heard, 1)


async def test_credit_begins_anew_with_each_connection(private_nats: NatsServer) -> None:
    subject = Subject()
    async with connected(private_nats.url) as connection, connected(private_nats.url) as client:
        await subscribed(connection, subject)
        for round_ in range(1, 4):
            for number in range(CREDIT // 2):
                await client.publish("a", b"%d" % number)
            await client.flush()
            await until(partial(has_heard, subject, round_ * CREDIT // 2))
            private_nats.kill()
            await private_nats.start()
            await until(partial(is_back, connection, client, round_), 10)
        for number in range(4 * CREDIT):
            await client.publish("a", b"%d" % number)
            if number % 10 == 0:
                await client.flush()
                await connection.flush()
        await client.flush()
        await until(partial(has_heard, subject, 3 * CREDIT // 2 + 4 * CREDIT))
        assert subject.used_up == 0


def has_heard(subject: Subject, count: int) -> bool:
    return len(subject.heard) == count


def is_back(connection: Connection, client: Connection, reconnects: int) -> bool:
    return connection.connected and client.connected and connection.reconnects == client.reconnects == reconnects


async def test_member_of_a_queue_group_is_replaced_in_time(private_nats: NatsServer) -> None:
    heard: list[int] = []
    made = 0
    async with (
        connected(private_nats.url) as connection,
        connected(private_nats.url) as client,
        asyncio.TaskGroup() as tasks,
    ):

        def replace() -> None:
            tasks.create_task(subscribe())

        async def subscribe() -> None:
            nonlocal made
            made += 1
            await connection.subscribe_directly(
                "a", lambda msg: heard.append(int(msg.data)), queue="group", credit=CREDIT, on_used_up=replace
            )

        await subscribe()
        await connection.flush()
        for number in range(10 * CREDIT):
            await client.publish("a", b"%d" % number)
            if number % 10 == 0:
                await client.flush()
                await connection.flush()
        await client.flush()
        await connection.flush()
    assert heard == list(range(10 * CREDIT))
    assert made >= 10


def publish_while_the_loop_is_held(server: NatsServer, count: int) -> None:
    """Return when the server has taken the messages, of which nobody in this process has read one."""
    host, _, port = server.url.rpartition("/")[2].partition(":")
    with socket.create_connection((host, int(port)), timeout=5) as sock:
        sock.sendall(b'CONNECT {"verbose":false}\r\n' + b"PUB a 1\r\n1\r\n" * count + b"PING\r\n")
        answer = b""
        while b"PONG" not in answer:
            answer += sock.recv(4096)


async def test_limit_that_was_passed_before_the_server_heard_of_it_is_noticed(
    private_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ends the subscription then, and has sent more than the limit."""
    subject, made = Subject(), list[Credit]()
    grant = Credit.grant
    monkeypatch.setattr(Credit, "grant", lambda credit: made.append(credit))
    async with connected(private_nats.url) as connection:
        await connection.subscribe_directly("a", subject.handle, credit=CREDIT, on_used_up=subject.end)
        await connection.flush()
        publish_while_the_loop_is_held(private_nats, CREDIT + 30)
        grant(made[0])
        await until(lambda: subject.used_up)
        assert len(subject.heard) == CREDIT + 30


async def test_subscription_is_made_before_its_credit_is_told_to_be_used_up(
    private_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has it made could not leave it otherwise, and would never hear of it again."""
    told, grant = list[str](), Credit.grant
    async with connected(private_nats.url) as connection:

        def grant_in_a_flood(credit: Credit) -> None:
            connection.write_now()
            time.sleep(0.1)  # the server reads the SUB and the flood from two sockets, in an order of its own
            publish_while_the_loop_is_held(private_nats, CREDIT + 30)
            grant(credit)

        monkeypatch.setattr(Credit, "grant", grant_in_a_flood)
        await connection.subscribe_confirmed(
            "a", lambda msg: None, credit=CREDIT, on_used_up=lambda: told.append("used up")
        )
        told.append("made")
        await until(lambda: told[1:])
        assert told == ["made", "used up"]
