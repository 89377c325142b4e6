"""A send window as a simulation: tenants that send large messages, and others that want their part of the window."""

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from protocol.runtime.commands.send_window import Place, SendWindow
from protocol.shares import Holder

WINDOW = 100


class Simulation:
    """A window, and the names of the messages that left it, in order."""

    def __init__(self) -> None:
        self.window = SendWindow(WINDOW)
        self.left: list[str] = []
        self.places: dict[str, Place] = {}

    def ask(self, name: str, size: int = 40) -> None:
        """Ask for a message whose name is `tenant.user.number`."""
        tenant, user, _ = name.split(".")
        self.places[name] = self.window.ask((tenant, user), size, lambda: self.left.append(name))

    def release(self, name: str) -> None:
        self.places.pop(name).release()

    def arrive(self) -> None:
        """Have the oldest message that is on its way arrive."""
        self.release(next(name for name in self.left if name in self.places))


def test_message_leaves_at_once_if_there_is_room() -> None:
    simulation = Simulation()
    simulation.ask("a.ann.1")
    assert simulation.left == ["a.ann.1"]
    assert simulation.window.on_the_way == 40


def test_tenant_has_half_of_the_window_and_the_other_half_is_free_for_others() -> None:
    simulation = Simulation()
    for name in ("a.ann.1", "a.ann.2", "a.bob.1", "b.cid.1"):
        simulation.ask(name)
    assert simulation.left == ["a.ann.1", "b.cid.1"]


def test_message_of_any_size_leaves_while_its_tenant_has_nothing_on_its_way() -> None:
    simulation = Simulation()
    simulation.ask("a.ann.1", 10)
    simulation.ask("a.ann.2", 10 * WINDOW)
    assert simulation.left == ["a.ann.1"]
    simulation.arrive()
    assert simulation.left == ["a.ann.1", "a.ann.2"]


def test_nothing_leaves_while_the_window_is_used_up() -> None:
    simulation = Simulation()
    simulation.ask("a.ann.1", WINDOW)
    simulation.ask("b.bob.1", 1)
    assert simulation.left == ["a.ann.1"]
    simulation.arrive()
    assert simulation.left == ["a.ann.1", "b.bob.1"]


def test_tenants_take_turns_and_then_the_users_of_a_tenant() -> None:
    simulation = Simulation()
    for name in ("z.zed.1", "a.ann.1", "a.ann.2", "a.ann.3", "a.bob.1", "b.cid.1", "b.cid.2", "c.dan.1"):
        simulation.ask(name, WINDOW)
    for _ in range(7):
        simulation.arrive()
    turns = ["a.ann.1", "b.cid.1", "c.dan.1", "a.bob.1", "b.cid.2", "a.ann.2", "a.ann.3"]
    assert simulation.left == ["z.zed.1", *turns]


def test_message_that_need_not_leave_any_more_makes_room_for_those_behind_it() -> None:
    simulation = Simulation()
    simulation.ask("a.ann.1", 40)
    simulation.ask("a.ann.2", 40)
    simulation.ask("a.ann.3", 10)
    simulation.release("a.ann.2")
    assert simulation.left == ["a.ann.1", "a.ann.3"]


def test_second_release_does_nothing() -> None:
    simulation = Simulation()
    simulation.ask("a.ann.1")
    place = simulation.places["a.ann.1"]
    place.release()
    place.release()
    assert simulation.window.on_the_way == 0


@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from("abc"), st.sampled_from("xy"), st.integers(1, 3 * WINDOW)),
            st.integers(0, 100),
        ),
        max_size=60,
    )
)
def test_whatever_is_asked_and_released_the_window_holds_and_everything_leaves_in_order(
    steps: list[tuple[str, str, int] | int],
) -> None:
    simulation, sizes, asked = Simulation(), dict[str, int](), defaultdict[Holder, list[str]](list)
    given_up = set[str]()
    for number, step in enumerate(steps):
        if isinstance(step, int):
            names = list(simulation.places)
            if names:
                name = names[step % len(names)]
                given_up |= {name} - set(simulation.left)
                simulation.release(name)
        else:
            tenant, user, size = step
            name = f"{tenant}.{user}.{number}"
            sizes[name] = size
            asked[tenant, user].append(name)
            simulation.ask(name, size)
        on_the_way = [name for name in simulation.left if name in simulation.places]
        assert simulation.window.on_the_way == sum(sizes[name] for name in on_the_way)
        assert simulation.window.on_the_way < WINDOW + max((sizes[name] for name in on_the_way), default=1)
    while any(name in simulation.places for name in simulation.left):
        simulation.arrive()
    assert not simulation.places
    assert simulation.window.on_the_way == 0
    for (tenant, user), names in asked.items():
        left = [name for name in simulation.left if name.startswith(f"{tenant}.{user}.")]
        assert left == [name for name in names if name not in given_up]
