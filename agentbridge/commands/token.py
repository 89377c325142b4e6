"""`agentbridge token`: sign a token with the deployment's shared secret."""

import click

from agentbridge.cli.credentials import CommandSettings, claims_of, tenant_of, user_of
from agentbridge.cli.nats_login import NatsLogin
from agentbridge.cli.output import without_password
from agentbridge.commands.help import TeachingCommand
from agentbridge.commands.options import duration, needs_settings
from protocol.access import ADMIN, AGENT, APP
from protocol.errors import ConfigurationError
from protocol.ids import is_token
from protocol.runtime.settings import variable
from protocol.runtime.tokens import DEFAULT_TENANT, mint


@click.command(cls=TeachingCommand)
@click.option(
    "--role", type=click.Choice([APP, AGENT, ADMIN]), default=AGENT, show_default=True, help="The token's role."
)
@click.option("--sub", help="The user or the agent.  [default: the role]")
@click.option("--tenant", default=DEFAULT_TENANT, show_default=True, help="The tenant.")
@click.option(
    "--ttl", type=duration, metavar="DURATION", default="12h", show_default=True, help="How long the token is valid."
)
@click.option("--permission", multiple=True, help="A permission that capabilities ask for; * grants all. Repeatable.")
@click.option("--user", multiple=True, help="Limit an agent to clients of this user. Repeatable.")
@click.option("--app", multiple=True, help="Limit an agent to clients of this application. Repeatable.")
@click.option("--client", multiple=True, help="Limit an agent to this client. Repeatable.")
@click.option("--nats", "for_nats", is_flag=True, help="Also print how an agent logs in to NATS with it.")
@needs_settings("nats_url", "data_dir")
def token(
    settings: CommandSettings,
    for_nats: bool,
    role: str,
    sub: str | None,
    tenant: str,
    ttl: int,
    permission: tuple[str, ...],
    **limits: tuple[str, ...],
) -> None:
    """Print a token.

    It is signed with the shared secret: AGENTBRIDGE_JWT_SECRET, or that of a running `agentbridge up`.
    AGENTBRIDGE_JWT_AUDIENCE and AGENTBRIDGE_JWT_ISSUER apply, too.

    Examples:
      agentbridge token --role app --sub ann
      agentbridge token --role agent --permission todo.write --user ann --ttl 15m
      agentbridge token --sub planner --nats
      curl -H "Authorization: Bearer $(agentbridge token)" http://127.0.0.1:8000/api/clients
    """
    if sub is not None and not sub.strip():
        raise click.BadParameter("name a user or an agent, or leave it out for the role's name", param_hint="--sub")
    if settings.jwt_secret is None:
        raise ConfigurationError(
            f"no secret to sign with: set {variable('jwt_secret')}, or run this where `agentbridge up` runs"
        )
    if not is_token(tenant):
        raise click.BadParameter("use 1 to 64 letters, digits, '-' or '_'", param_hint="--tenant")
    if for_nats and role == APP:
        raise click.BadParameter("applications connect to a gateway; NATS is for agents", param_hint="--nats")
    minted = mint(
        settings.jwt_secret,
        sub or role,
        role,
        ttl,
        audience=settings.jwt_audience,
        issuer=settings.jwt_issuer,
        tenant=tenant,
        permissions=permission,
        limits={f"{what}s": list(names) for what, names in limits.items() if names},
    )
    click.echo(_nats_login(settings, minted).text() if for_nats else minted)


def _nats_login(settings: CommandSettings, token: str) -> NatsLogin:
    claims = claims_of(token)
    return NatsLogin(without_password(settings.nats_url), user_of(token), tenant_of(token), token, claims["exp"])
