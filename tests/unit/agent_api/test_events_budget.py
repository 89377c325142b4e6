"""What readers hold, each `sub`, each tenant and in all."""

from hypothesis import given
from hypothesis import strategies as st

from agent_api.events.budget import Budget, Whose

WHOSE = st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"))
STEPS = st.lists(st.tuples(WHOSE, st.integers(1, 9)), max_size=100)


@given(steps=STEPS)
def test_bounds_are_exceeded_by_no_more_than_the_last_page_and_forgotten_with_it(
    steps: list[tuple[Whose, int]],
) -> None:
    budget, held = Budget(90), list[tuple[Whose, int]]()
    for whose, size in steps:
        if budget.has_room(whose):
            budget.hold(whose, size)
            held.append((whose, size))
        elif held:
            freed, freed_size = held.pop(0)
            budget.hold(freed, -freed_size)
        assert sum(size for _, size in held) < 90 + 9
        assert sum(size for who, size in held if who[0] == whose[0]) < 90 / 2 + 9
        assert sum(size for who, size in held if who == whose) < 90 / 3 + 9
    for whose, size in held:
        budget.hold(whose, -size)
    assert vars(budget) == vars(Budget(90))


def test_all_that_two_tenants_can_hold_by_many_subs_leaves_room_for_a_third() -> None:
    budget = Budget(90)
    for whose in ((tenant, str(sub)) for sub in range(50) for tenant in "ab"):
        take_all(budget, whose)
    assert take_all(budget, ("c", "x")) >= 90 // 10


def test_sub_that_holds_all_it_can_leaves_room_for_others_of_its_tenant() -> None:
    budget = Budget(90)
    assert take_all(budget, ("a", "x")) == 90 // 3
    assert take_all(budget, ("a", "y")) == 90 // 9


def take_all(budget: Budget, whose: Whose) -> int:
    """Hold as much as there is room for, in small pieces; return how much that is."""
    held = 0
    while budget.has_room(whose):
        budget.hold(whose, 1)
        held += 1
    return held
