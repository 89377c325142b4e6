"""Who may do what: the whole matrix of one pure function."""

import itertools
from collections.abc import Callable, Iterable

import pytest

from protocol.access import ClientView, Principal, may, require, require_admin, require_agent
from protocol.errors import ClientNotFound, PermissionDenied
from protocol.records import Offer

CLIENT = ClientView("acme", "c1", "ann", "todo")


def principal(
    role: str = "agent",
    tenant: str = "acme",
    permissions: Iterable[str] = (),
    users: Iterable[str] | None = None,
    apps: Iterable[str] | None = None,
    clients: Iterable[str] | None = None,
) -> Principal:
    user, app, client = [None if limit is None else frozenset(limit) for limit in (users, apps, clients)]
    return Principal("agent-1", role, tenant, 0.0, frozenset(permissions), user, app, client)


def needing(*permissions: str) -> Offer:
    return Offer("add", "function", frozenset(permissions), {None: None})


@pytest.mark.parametrize(
    ("role", "tenant", "allowed"),
    [
        ("agent", "acme", True),
        ("admin", "acme", True),
        ("app", "acme", False),
        ("", "acme", False),
        ("AGENT", "acme", False),
        ("agent", "other", False),
        ("admin", "other", False),
        ("agent", "", False),
    ],
)
def test_role_and_tenant_decide_first(role: str, tenant: str, allowed: bool) -> None:
    assert may(principal(role, tenant, permissions=["*"]), CLIENT) is allowed
    assert may(principal(role, tenant, permissions=["*"]), CLIENT, needing()) is allowed


LIMITS = {"users": "ann", "apps": "todo", "clients": "c1"}
CHOICES = ("none", "fits", "more", "other", "empty")


@pytest.mark.parametrize("choice", list(itertools.product(CHOICES, repeat=3)))
def test_every_limit_must_let_the_client_through(choice: tuple[str, ...]) -> None:
    meanings = {"none": None, "more": ["x"], "other": ["x"], "empty": [], "fits": []}
    limits = {
        name: meanings[chosen] if chosen not in ("fits", "more") else [value, *(meanings[chosen] or [])]
        for (name, value), chosen in zip(LIMITS.items(), choice, strict=True)
    }
    expected = all(chosen in ("none", "fits", "more") for chosen in choice)
    assert may(principal(users=limits["users"], apps=limits["apps"], clients=limits["clients"]), CLIENT) is expected


@pytest.mark.parametrize(
    ("has", "needs", "allowed"),
    [
        ((), (), True),
        ((), ("write",), False),
        (("read",), ("write",), False),
        (("write",), ("write",), True),
        (("write",), ("write", "pay"), False),
        (("write", "pay", "x"), ("write", "pay"), True),
        (("*",), ("write", "pay"), True),
        (("wri*",), ("write",), False),
        (("write",), ("*",), False),
        (("*",), ("*",), True),
    ],
)
@pytest.mark.parametrize("role", ["agent", "admin"])
def test_all_permissions_of_a_capability_are_needed(
    role: str, has: tuple[str, ...], needs: tuple[str, ...], allowed: bool
) -> None:
    assert may(principal(role, permissions=has), CLIENT, needing(*needs)) is allowed
    assert may(principal(role, permissions=has), CLIENT)


def test_every_permission_does_not_lift_a_limit() -> None:
    assert not may(principal("admin", permissions=["*"], users=["bob"]), CLIENT, needing())


def test_client_out_of_sight_does_not_exist() -> None:
    with pytest.raises(ClientNotFound) as unseen:
        require(principal(users=["bob"]), CLIENT, needing("write"))
    assert unseen.value.body() == ClientNotFound().body()


def test_capability_of_a_visible_client_is_denied() -> None:
    with pytest.raises(PermissionDenied):
        require(principal(), CLIENT, needing("write"))
    require(principal(permissions=["write"]), CLIENT, needing("write"))
    require(principal(), CLIENT)


@pytest.mark.parametrize(
    ("role", "agent", "admin"), [("app", False, False), ("agent", True, False), ("admin", True, True)]
)
def test_roles_open_their_own_doors(role: str, agent: bool, admin: bool) -> None:
    assert _passes(lambda: require_agent(principal(role))) is agent
    assert _passes(lambda: require_admin(principal(role))) is admin


def _passes(check: Callable[[], None]) -> bool:
    try:
        check()
    except PermissionDenied:
        return False
    return True
