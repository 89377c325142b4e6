"""Settings and tokens for tests; the secret is as public as this file."""

import os
from typing import Any, TypeVar

import msgspec

from protocol.runtime.settings import PREFIX, Settings, load
from protocol.runtime.tokens import mint

SECRET = "a-secret-that-only-tests-use-0123456789"
FAST_PATHS = os.environ.get("AGENTBRIDGE_TEST_FAST_PATHS", "on")  # noqa: TID251  a setting of the tests
TTL_SECONDS = 86_400  # tokens of modules are minted when the run begins
S = TypeVar("S", bound=Settings)


def environment(nats_url: str, **values: object) -> dict[str, str]:
    """Return the environment of one of our processes: `environment(url, gateway_port=0)`."""
    known = {"nats_url": nats_url, "jwt_secret": SECRET, "gateway_port": 0, "api_port": 0, "drain_seconds": 2}
    known |= {"fast_paths": FAST_PATHS}
    return {PREFIX + name.upper(): str(value) for name, value in (known | values).items() if value is not None}


def settings_for(kind: type[S], nats_url: str = "nats://127.0.0.1:4222", **values: object) -> S:
    """Return a process's settings as it would load them itself."""
    return load(kind, environment(nats_url, **values))


def default(kind: type[Settings], name: str) -> Any:
    """Return the default of a setting."""
    return next(field.default for field in msgspec.structs.fields(kind) if field.name == name)


def app_token(sub: str = "user-1", *, ttl_seconds: int = TTL_SECONDS, **claims: Any) -> str:
    """Mint the token of an application whose user is `sub`."""
    return mint(SECRET, sub, "app", ttl_seconds, **claims)


def agent_token(sub: str = "agent-1", *, ttl_seconds: int = TTL_SECONDS, **claims: Any) -> str:
    """Mint an agent's token: `agent_token(tenant="acme", limits={"users": ["ann"]}, permissions=["todo"])`."""
    return mint(SECRET, sub, "agent", ttl_seconds, **claims)


def admin_token(sub: str = "admin-1", *, ttl_seconds: int = TTL_SECONDS, **claims: Any) -> str:
    """Mint an administrator's token."""
    return mint(SECRET, sub, "admin", ttl_seconds, **claims)


def bearer(token: str) -> dict[str, str]:
    """Return the header that carries a token, for HTTP and NATS alike."""
    return {"Authorization": f"Bearer {token}"}
