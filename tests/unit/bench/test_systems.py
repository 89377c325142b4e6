"""Our systems that a bench compares: with fast paths, without them, and without one each."""

import pytest
from measuring.systems import FAST_PATHS_CHOICES, WITHOUT, ours_by
from support.settings import settings_for

from protocol.runtime.settings import Settings
from protocol.runtime.version import FAST_PATHS, allows_fast_path


def off_in(setting: str) -> list[str]:
    """Return the fast paths that a process with this setting goes without."""
    loaded = settings_for(Settings, fast_paths=setting).fast_paths
    return [name for name in FAST_PATHS if not allows_fast_path(name, loaded)]


@pytest.mark.parametrize("choice", FAST_PATHS_CHOICES)
def test_systems_differ_in_their_fast_paths_alone(choice: str) -> None:
    all_of_them, none = list(FAST_PATHS), list[str]()
    each = {name: [path] for name, path in WITHOUT.items()}
    expected = {
        "on": {"agentbridge": none},
        "off": {"agentbridge, fast paths off": all_of_them},
        "both": {"agentbridge": none, "agentbridge, fast paths off": all_of_them},
        "each": {"agentbridge": none, **each},
    }
    assert {name: off_in(setting) for name, setting in ours_by(choice).items()} == expected[choice]
    assert list(each.values()) == [[path] for path in FAST_PATHS]
