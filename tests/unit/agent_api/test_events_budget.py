"""What readers hold of the past, for each tenant and in all."""

from hypothesis import given
from hypothesis import strategies as st

from agent_api.events.budget import Budget

STEPS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9)), max_size=60)


@given(steps=STEPS)
def test_bounds_are_exceeded_by_no_more_than_the_last_page_and_forgotten_with_it(steps: list[tuple[str, int]]) -> None:
    budget, held = Budget(30, 12), list[tuple[str, int]]()
    for tenant, size in steps:
        if budget.has_room(tenant):
            budget.hold(tenant, size)
            held.append((tenant, size))
        elif held:
            freed, freed_size = held.pop(0)
            budget.hold(freed, -freed_size)
        assert sum(size for _, size in held) < 30 + 9
        assert sum(size for who, size in held if who == tenant) < 12 + 9
    for tenant, size in held:
        budget.hold(tenant, -size)
    assert vars(budget) == vars(Budget(30, 12))


def test_tenant_that_holds_much_leaves_room_for_others() -> None:
    budget = Budget(30, 12)
    budget.hold("a", 12)
    assert [budget.has_room(tenant) for tenant in "ab"] == [False, True]
