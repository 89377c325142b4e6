"""Assigns a connection's input to the turns of a `sub`. Before a token is known, it takes those of strangers."""

from collections.abc import Callable

from starlette.types import Scope

from protocol.access import Principal

EXTENSION = "agentbridge.share"
BelongTo = Callable[[str, str], None]  # takes a tenant and a `sub`


def belonging(scope: Scope) -> BelongTo | None:
    """Return the function that assigns a request's connection to a `sub`; None if the connection is not one of ours."""
    extensions = scope.get("extensions")
    return extensions.get(EXTENSION) if extensions else None


def share_turns(scope: Scope, principal: Principal) -> None:
    """Assign a request's connection to the `sub` of its token, until another token comes."""
    belong_to = belonging(scope)
    if belong_to is not None:
        belong_to(principal.tenant, principal.sub)
