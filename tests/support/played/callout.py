"""The part of a registry that lets agents log in to NATS, without the rest of it."""

import contextlib
from collections.abc import AsyncIterator

from protocol.runtime.nats import login_keys
from protocol.runtime.tokens import Verifier
from registry.logins.callout import Logins
from registry.settings import RegistrySettings
from support.load.load import ending_tasks
from support.nats.template import Template
from support.settings import settings_for

DRAIN_SECONDS = 5


@contextlib.asynccontextmanager
async def logins(template: Template, url: str, **settings: object) -> AsyncIterator[Logins]:
    """Answer the servers' questions about logins."""
    seeds = {"nats_account_seed": template.account_seed, "nats_xkey_seed": template.xkey_seed}
    given = settings_for(RegistrySettings, url, **(seeds | settings))
    pairs = login_keys.pairs_of(given.nats_account_seed, given.nats_xkey_seed)
    async with template.as_user(url, "registry") as connection, ending_tasks() as tasks:
        serving = Logins(connection, tasks, Verifier(given), pairs)
        async with serving.serving(DRAIN_SECONDS):
            await connection.flush()
            yield serving
