"""Every user and every subject of the product, and of NATS itself: what is open is listed here, all else is refused."""

import re
from collections.abc import AsyncIterator

import pytest
from conftest import MakeNats
from support.nats.line import Line, connect_line, line_to
from support.nats.nats_server import NatsServer
from support.nats.template import Template
from support.played.callout import logins
from support.settings import admin_token, agent_token

from protocol.runtime.nats.agent_login import inbox_prefix

STREAMS = (
    *("KV_agentbridge_clients", "KV_agentbridge_idempotency", "agentbridge_events", "agentbridge_audit"),
    *("agentbridge_audit_default", "agentbridge_audit_acme", "agentbridge_events_default", "agentbridge_keys_default"),
)
READ = ("STREAM.INFO", "STREAM.MSG.GET", "DIRECT.GET", "CONSUMER.CREATE", "CONSUMER.DELETE")
WRITTEN = ("STREAM.CREATE", "STREAM.UPDATE", "STREAM.DELETE", "STREAM.PURGE", "STREAM.MSG.DELETE", "STREAM.SNAPSHOT")
FILTERS = (
    *("agentbridge.default.key.k1", "agentbridge.default.event.c1.saved"),
    *("$KV.agentbridge_clients.default.c1", "$KV.agentbridge_idempotency.x", "foreign.subject"),
)
OWN, OTHER = inbox_prefix("default", "ann"), inbox_prefix("default", "bob")
TENANTS = ("default", "acme")
SUBJECTS = [
    *(
        f"agentbridge.{tenant}.{rest}"
        for tenant in TENANTS
        for rest in (
            *("command.c1", "event.c1.saved", "client.c1.connected", "audit.c1.success", "key.k1", "other.x"),
            *(f"registry.{op}" for op in ("list", "get", "find", "audit", "disconnect")),
        )
    ),
    *("agentbridge._registry.report", "agentbridge._registry.peer.heard", "agentbridge._registry.stores"),
    *(f"agentbridge._gateway.g1.{op}" for op in ("ping", "sync", "disconnect")),
    *("agentbridge._api.mcp.cancel", "agentbridge._api.tools.ages", "agentbridge._retired.x"),
    *("$SRV.PING", "$SRV.STATS", "$SRV.INFO.agentbridge-registry.1"),
    *(f"$JS.API.{verb}.{stream}" for verb in (*READ, *WRITTEN) for stream in STREAMS),
    *(f"$JS.API.DIRECT.GET.{stream}.{last}" for stream in STREAMS for last in FILTERS),
    *(f"$JS.API.CONSUMER.CREATE.{stream}.c.{kept}" for stream in STREAMS for kept in FILTERS),
    *("$JS.API.INFO", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST", "$JS.API.ACCOUNT.PURGE.x"),
    *("$JS.FC.agentbridge_events.c.1", "$JS.ACK.agentbridge_events.c.1.1.1.1.1"),
    *(
        "$KV.agentbridge_clients.default.c1",
        "$KV.agentbridge_clients._agent.default.h",
        "$KV.agentbridge_idempotency.x",
    ),
    *("$SYS.REQ.USER.AUTH", "$SYS._INBOX.x.y", "$SYS.REQ.SERVER.PING", "$SYS.REQ.SERVER.PING.CONNZ"),
    *("$SYS.REQ.SERVER.NID.KICK", "$SYS.REQ.SERVER.NID.SHUTDOWN", "$SYS.REQ.ACCOUNT.SYS.CONNZ", "$SYS.REQ.USER.INFO"),
    *(f"{inbox}.1" for inbox in (OWN, OTHER, "_INBOX.gateway", "_INBOX.registry", "_INBOX.api", "_INBOX.system")),
    *("_INBOX.plain", "foreign.subject"),
]
WILDCARDS = [
    *(">", "*.>", "agentbridge.>", "agentbridge.*.>", "agentbridge.default.>", "agentbridge.acme.>"),
    *(f"agentbridge.*.{kind}.>" for kind in ("command", "registry", "event", "client", "audit")),
    *("agentbridge.*.command.*", "agentbridge.*.registry.*", "agentbridge._gateway.*.*", "agentbridge._registry.>"),
    *("agentbridge._api.>", "agentbridge.*.key.*"),
    *(f"agentbridge.{tenant}.{kind}.>" for tenant in TENANTS for kind in ("event", "client", "audit", "command")),
    *("$SRV.>", "$JS.>", "$KV.>", "$SYS.>", "_INBOX.>", "_INBOX.*.*"),
    *(f"{inbox}.>" for inbox in (OWN, OTHER, "_INBOX.gateway", "_INBOX.registry", "_INBOX.api", "_INBOX.system")),
]
INBOXES = r"_INBOX\..*"
AGENT_PUBLISHES = r"agentbridge\.default\.(command|registry)\..*"
AGENT_HEARS = r"agentbridge\.default\.(event|client)\..*"
# An idempotency key is read and written in its tenant's store, and in the bucket that earlier versions had for all.
KEYS = [
    r"agentbridge\.\w+\.key\.k1",
    r"\$JS\.API\.DIRECT\.GET\.\w+\.agentbridge\.\w+\.key\.k1",
    r"\$KV\.agentbridge_idempotency\..*",
    r"\$JS\.API\.STREAM\.MSG\.GET\.KV_agentbridge_idempotency",
]
# What each user may do, as patterns that this test has of its own: the template is what is tried.
PUBLISHES = {
    "gateway": [
        r"agentbridge\.\w+\.(event|audit)\.c1\..*",
        r"agentbridge\.\w+\.command\.c1",
        r"agentbridge\._(registry|gateway)\..*",
        INBOXES,
        *KEYS,
    ],
    "registry": [
        r"agentbridge\.\w+\.(client|audit)\.c1\..*",
        r"agentbridge\._(registry|gateway)\..*",
        r"\$(KV|JS\.API|JS\.FC|SRV)\..*",
        r"\$SYS\._INBOX\..*",
        INBOXES,
    ],
    "api": [
        r"agentbridge\.\w+\.command\.c1",
        r"agentbridge\.\w+\.registry\.\w+",
        r"agentbridge\.\w+\.audit\.c1\..*",
        r"agentbridge\._gateway\.g1\.(ping|disconnect)",
        r"agentbridge\._registry\.stores",
        r"agentbridge\._api\..*",
        r"\$SRV\..*",
        r"\$JS\.FC\..*",
        *KEYS,
        r"\$JS\.API\.(STREAM\.INFO|STREAM\.MSG\.GET|DIRECT\.GET)\.\w+",
        r"\$JS\.API\.CONSUMER\.CREATE\.\w+\.c\.agentbridge\..*",
        r"\$JS\.API\.CONSUMER\.CREATE\.KV_agentbridge_clients\..*",
        INBOXES,
    ],
    "system": [r"\$SYS\.REQ\.SERVER\.(PING|PING\.CONNZ|NID\.KICK)"],
    "agent": [AGENT_PUBLISHES],
    "limited agent": [AGENT_PUBLISHES],
    "admin": [AGENT_PUBLISHES, r"\$SRV\..*", r"\$JS\.API\.(STREAM\.INFO|DIRECT\.GET)\.agentbridge_audit_default"],
}
# NATS takes the `>` of a subscription for one token: who may hear `a.*` may subscribe to `a.>`.
HEARS = {
    "gateway": [
        r"agentbridge\.[\w*]+\.command\.[\w*>]+",
        r"agentbridge\._gateway\.[\w*]+\.[\w*]+",
        r"\$SRV\..*",
        r"_INBOX\.gateway\..*",
    ],
    "registry": [
        r"agentbridge\.[\w*]+\.registry\.[\w*>]+",
        r"agentbridge\._registry\..*",
        r"\$SRV\..*",
        r"\$SYS\.REQ\.USER\.AUTH",
        r"_INBOX\.registry\..*",
    ],
    "api": [r"agentbridge\._api\..*", r"\$SRV\..*", r"_INBOX\.api\..*"],
    "system": [r"_INBOX\.system\..*"],
    "agent": [AGENT_HEARS, re.escape(OWN) + r"\..*"],
    "limited agent": [re.escape(OWN) + r"\..*"],
    "admin": [AGENT_HEARS, r"agentbridge\.default\.audit\..*", re.escape(OWN) + r"\..*"],
}
TOKENS = {
    "agent": agent_token("ann"),
    "limited agent": agent_token("ann", limits={"users": ["ann"]}),
    "admin": admin_token("ann"),
}


@pytest.fixture
def template() -> Template:
    return Template()


@pytest.fixture
async def server(template: Template, make_nats: MakeNats) -> AsyncIterator[NatsServer]:
    server = make_nats(template.config)
    await server.start()
    async with logins(template, server.url):
        yield server


def login(template: Template, user: str) -> str:
    if user in TOKENS:
        return connect_line(auth_token=TOKENS[user])
    return connect_line(user=user, **{"pass": template.passwords[user]})


async def refused(line: Line, commands: dict[str, str]) -> set[str]:
    """Send a command for each subject; return the subjects that the server refuses."""
    said = await line.told(*commands.values())
    assert [told for told in said if "Permissions Violation" not in told] == []
    return {match[1] for told in said if (match := re.search(r'"([^"]+)"', told))}


def closed(subjects: list[str], open_to: list[str]) -> set[str]:
    return {subject for subject in subjects if not any(re.fullmatch(pattern, subject) for pattern in open_to)}


@pytest.mark.parametrize("user", PUBLISHES)
async def test_user_publishes_what_is_listed_and_nothing_else(
    template: Template, server: NatsServer, user: str
) -> None:
    async with line_to(server.port) as line:
        await line.told(login(template, user))
        found = await refused(line, {subject: f"PUB {subject} 0\r\n" for subject in SUBJECTS})
    assert found == closed(SUBJECTS, PUBLISHES[user])


@pytest.mark.parametrize("user", HEARS)
async def test_user_hears_what_is_listed_and_nothing_else(template: Template, server: NatsServer, user: str) -> None:
    subjects = [*SUBJECTS, *WILDCARDS]
    async with line_to(server.port) as line:
        await line.told(login(template, user))
        found = await refused(line, {subject: f"SUB {subject} {n}" for n, subject in enumerate(subjects)})
    assert found == closed(subjects, HEARS[user])
