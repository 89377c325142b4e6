"""A NATS server of the template: passwords of its users, keys of agents' logins, and who logs in how."""

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from agentbridge.deployment import nats_config
from protocol.runtime.nats import agent_login
from protocol.runtime.nats.connection import Connection, connect
from protocol.runtime.nats.login_keys import LoginKeys, new_seeds
from protocol.runtime.settings import Settings
from protocol.runtime.tokens import DEFAULT_TENANT
from support.processes.child import Process
from support.processes.registry import registries
from support.settings import agent_token, settings_for


class Template:
    """One deployment's secrets."""

    def __init__(self) -> None:
        self.passwords = {user.name: nats_config.new_password() for user in nats_config.users()}
        self.account_seed, self.xkey_seed = new_seeds()

    @property
    def variables(self) -> dict[str, str]:
        """What the server's environment holds in a deployment."""
        passwords = {user.password_variable: self.passwords[user.name] for user in nats_config.users()}
        return passwords | nats_config.public_keys(LoginKeys(self.account_seed, self.xkey_seed))

    @property
    def config(self) -> str:
        """The limits and the users, for a server whose environment holds nothing of this."""
        lines = [f'{name}: "{value}"' for name, value in self.variables.items()]
        return "\n".join([*lines, *nats_config.LIMITS, nats_config.authorization()])

    def login(self, user: str) -> dict[str, str]:
        """Return the settings by which a process logs in; a registry's with the seeds."""
        seeds = {
            "nats_account_seed": self.account_seed,
            "nats_xkey_seed": self.xkey_seed,
            "nats_system_password": self.passwords[nats_config.SYSTEM],
        }
        own = {"nats_user": user, "nats_password": self.passwords[user]}
        return own | (seeds if user == nats_config.REGISTRY else {})

    def options(self, user: str) -> dict[str, Any]:
        """Return the same for a client of the library."""
        return {"user": user, "password": self.passwords[user], "inbox_prefix": f"_INBOX.{user}"}

    def as_user(self, url: str, user: str) -> AbstractAsyncContextManager[Connection]:
        """Connect as one of our own users."""
        password = self.passwords[user]
        return connect(settings_for(Settings, url, nats_user=user, nats_password=password), user, user)

    def registries(self, folder: Path, url: str, count: int = 1) -> AbstractAsyncContextManager[list[Process]]:
        """Run registries that let agents log in."""
        return registries(folder, url, count, **self.login(nats_config.REGISTRY))


def as_agent(
    url: str, sub: str = "agent-1", *, token: str | None = None, tenant: str = DEFAULT_TENANT
) -> AbstractAsyncContextManager[Connection]:
    """Connect as an agent does, by its token."""
    minted = token or agent_token(sub, tenant=tenant)
    return connect(settings_for(Settings, url), "agent", agent_login.user_name(tenant, sub), token=lambda: minted)


def agent_options(sub: str = "agent-1", *, token: str | None = None, tenant: str = DEFAULT_TENANT) -> dict[str, Any]:
    """Return what an agent tells a client of the library."""
    return {
        "token": token or agent_token(sub, tenant=tenant),
        "inbox_prefix": agent_login.inbox_prefix(tenant, sub),
    }
