"""The greeting of `up`: URLs, tokens, and commands to try.

Tokens are shown on a terminal only. A file or a pipe may be a log, so there the greeting shows the command that makes a
token.
"""

import shlex
from typing import NamedTuple

from agentbridge.cli.output import without_password
from agentbridge.deployment.data_folder import DATA_DIR, RunFile
from protocol.access import ADMIN, AGENT, APP
from protocol.runtime.tokens import mint

TOKEN_HOURS = 24


def text(found: RunFile, folder: str, program: str, *, terminal: bool) -> str:
    """Return the greeting. `program` is the command that the user typed; secrets are shown only on a `terminal`."""
    command = _Example(program, folder)
    return "\n".join(
        [*_places(found, folder), *_credentials(found, command, terminal), *_first_steps(found, command), ""]
    )


class _Example(NamedTuple):
    """Formats commands that find this `up`."""

    program: str
    folder: str

    def __call__(self, arguments: str) -> str:
        place = "" if self.folder == DATA_DIR else f" --data-dir {shlex.quote(self.folder)}"
        return f"{self.program} {arguments}{place}"


def _places(found: RunFile, folder: str) -> list[str]:
    return [
        "",
        f"AgentBridge is up. Its data is in {folder}; Ctrl-C stops it.",
        "",
        f"  applications connect to  {found.gateway_url}",
        f"  agents call              {found.api_url}  (reference: {found.api_url}/docs)",
        f"  NATS                     {without_password(found.nats_url)}",
        "",
    ]


def _credentials(found: RunFile, command: _Example, terminal: bool) -> list[str]:
    if not found.authentication:
        return ["No token is needed: authentication is off.", ""]
    if found.jwt_secret is None:
        return ["Tokens: those that your own issuer signs.", ""]
    if not terminal:
        return ["Tokens are shown on a terminal only. Get one with:", f"  {command('token --role agent')}", ""]
    tokens = [f"  {role:5}  {_token(found, role)}" for role in (APP, AGENT, ADMIN)]
    direct = [f"  {'':5}  agents on NATS log in with their token: {command('token --nats')}"]
    return [f"Tokens, good for {TOKEN_HOURS} hours:", *tokens, *direct, ""]


def _first_steps(found: RunFile, command: _Example) -> list[str]:
    token = "" if found.jwt_secret is None else f' -H "Authorization: Bearer $({command("token --role agent")})"'
    return [
        "Try, in another terminal:",
        f"  {command('health')}",
        f"  {command('events')}",
        f"  curl{token} {found.api_url}/api/capabilities",
    ]


def _token(found: RunFile, role: str) -> str:
    assert found.jwt_secret is not None
    return mint(
        found.jwt_secret,
        role,
        role,
        TOKEN_HOURS * 3600,
        audience=found.jwt_audience or "agentbridge",
        issuer=found.jwt_issuer,
        permissions=() if role == APP else ("*",),
    )
