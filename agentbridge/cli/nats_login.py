"""Prints how an agent logs in to NATS, with an example to copy, for a client in any language."""

import datetime
import shlex
from typing import NamedTuple

from protocol import subjects


class NatsLogin(NamedTuple):
    """The server's URL, the user, the inbox prefix and the token; `expires_at` is in Unix seconds."""

    url: str
    user: str
    tenant: str
    token: str
    expires_at: float

    @property
    def inbox_prefix(self) -> str:
        """The prefix of the agent's reply subjects."""
        return f"_INBOX.{self.user}"

    def text(self) -> str:
        """Return the fields and an example request with the `nats` command line."""
        until = datetime.datetime.fromtimestamp(self.expires_at, datetime.UTC)
        rows = {
            "URL": self.url,
            "inbox prefix": self.inbox_prefix,
            "good until": f"{until:%Y-%m-%dT%H:%M:%SZ}; NATS ends the connection then",
            "token": self.token,
        }
        return "\n".join([*(f"{name:12}  {value}" for name, value in rows.items()), "", *self._example()])

    def _example(self) -> list[str]:
        options = {"--server": self.url, "--token": self.token, "--inbox-prefix": self.inbox_prefix}
        said = " ".join(f"{option}={shlex.quote(value)}" for option, value in options.items())
        header = shlex.quote(f"Authorization: Bearer {self.token}")
        ask = f"request {subjects.registry(self.tenant, 'list')} '{{}}' --header={header}"
        return [
            "Log in with the token, set the inbox prefix, and send the token with every request:",
            f"  nats {said} {ask}",
        ]
