"""The arrows between packages, folders and files, read from the imports; and the few rules that no type checker knows.

A *room* is a folder, or a file that lies directly in a package: settings lie below everything there, `__main__` above.
"""

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest
from support.paths import ROOT

FOUNDATION = "protocol/*.py"
ARROWS = {
    "gateway": {"protocol"},
    "agent_api": {"protocol"},
    "registry": {"protocol"},
    "agentbridge": {"protocol"},
    "protocol": set[str](),
}
MODULES = sorted(path for package in ARROWS for path in (ROOT / package).rglob("*.py"))
SETTINGS = ROOT / "protocol/runtime/settings.py"
MAX_FILES = 15
MAX_CONSTRUCTOR_PARAMETERS = 7

# What each folder may import of its own package. A folder that is not listed is a mistake, an arrow that is not, too.
FOLDERS = {
    "protocol/runtime": set[str](),
    "protocol/runtime/nats/library": set[str](),
    "protocol/runtime/nats": {"protocol/runtime", "protocol/runtime/nats/library"},
    "protocol/runtime/process": {"protocol/runtime", "protocol/runtime/connections", "protocol/runtime/nats"},
    "protocol/runtime/streams": {"protocol/runtime/nats"},
    "protocol/runtime/clients": {"protocol/runtime", "protocol/runtime/nats", "protocol/runtime/streams"},
    "protocol/runtime/commands": {"protocol/runtime", "protocol/runtime/nats", "protocol/runtime/streams"},
    "protocol/runtime/connections": {"protocol/runtime"},
    "protocol/runtime/websocket": {"protocol/runtime", "protocol/runtime/connections"},
    "gateway/dialects": set[str](),
    "gateway/limits": set[str](),
    "gateway/static": set[str](),
    "gateway/capabilities": {"gateway/limits"},
    "gateway/sessions/core": {"gateway/limits", "gateway/capabilities"},
    "gateway/sessions": {"gateway/dialects", "gateway/limits", "gateway/capabilities", "gateway/sessions/core"},
    "gateway/idempotency": {"gateway/sessions", "gateway/sessions/core"},
    "agent_api/clients": set[str](),
    "agent_api/commands": {"agent_api/clients"},
    "agent_api/tools": {"agent_api/clients", "agent_api/commands"},
    "agent_api/events": set[str](),
    "agent_api/http": set[str](),
    "agent_api/routes": {
        "agent_api/settings", "agent_api/clients", "agent_api/commands", "agent_api/events", "agent_api/http",
        "agent_api/tools",
    },
    "agent_api/mcp": {
        "agent_api/settings", "agent_api/commands", "agent_api/http", "agent_api/routes", "agent_api/tools",
    },
    "agent_api/openapi": {
        "agent_api/clients", "agent_api/commands", "agent_api/events", "agent_api/http", "agent_api/routes",
        "agent_api/tools", "agent_api/mcp",
    },
    "agent_api/socket": {
        "agent_api/settings", "agent_api/context", "agent_api/clients", "agent_api/commands", "agent_api/events",
        "agent_api/http",
    },
    "registry/bucket": {"registry/stores"},
    "registry/gateways": {"registry/bucket"},
    "registry/logins": {"registry/stores"},
    "registry/stores": set[str](),
    "agentbridge/deployment": set[str](),
    "agentbridge/cli": {"agentbridge/deployment"},
    "agentbridge/up": {"agentbridge/cli", "agentbridge/deployment"},
    "agentbridge/commands": {"agentbridge/cli", "agentbridge/deployment", "agentbridge/up"},
}  # fmt: skip
CORE = ("agent_api/commands", "agent_api/clients", "agent_api/events", "agent_api/tools")
EDGES = {"starlette", "fastapi", "uvicorn", "httptools", "h11", "websockets", "http"}
# All that a dialect needs: it is sans-I/O, and its clock and its log are the session's.
PURE = (
    "collections.", "contextlib", "enum", "typing.", "json", "msgspec", "re", "urllib.parse.", "gateway.dialects.",
    "protocol.",
)  # fmt: skip
IMPURE = {"asyncio", "logging", "nats", "os", "random", "secrets", "socket", "time", "websockets"}
METADATA = ("importlib.metadata", "importlib.resources")

# The only folders that touch what a library keeps for itself, by the modules that make such things.
INSIDES = {
    "protocol/runtime/nats/library": {"nats.aio.transport"},
    "protocol/runtime/websocket": {
        "websockets.frames", "websockets.protocol", "websockets.server", "websockets.speedups", "websockets.streams",
        "websockets.utils",
    },
    "agent_api/http": {"uvicorn"},
}  # fmt: skip
LIMITS_OF_SETTINGS = {"gateway/limits/client_rates"}  # pure values, which the settings are made into
# Public, whatever they begin with.
METHODS_OF_NAMED_TUPLES = {"_replace", "_asdict", "_fields"}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports_of(path: Path) -> Iterator[str]:
    """Yield what a module imports, by its full dotted name, wherever in the module it does."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def package_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT).with_suffix(""))


def room_of(path: Path) -> str:
    folder = str(path.parent.relative_to(ROOT))
    return folder if "/" in folder else name_of(path)


def imported_files(path: Path) -> set[Path]:
    """Return the modules of ours that a module imports, itself left out."""
    found = set[Path]()
    for name in imports_of(path):
        for dotted in (name, name.rpartition(".")[0]):
            stem = ROOT / dotted.replace(".", "/")
            file = next((each for each in (stem.with_suffix(".py"), stem / "__init__.py") if each in FILES), None)
            if file is not None:
                found.add(file)
                break
    return found - {path}


FILES = frozenset(MODULES)


def arrows(key: Mapping[Path, str]) -> dict[str, set[str]]:
    """Return who imports whom, with every module replaced by what `key` makes of it."""
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        graph.setdefault(key[path], set()).update(key[file] for file in imported_files(path))
    return {one: others - {one} for one, others in graph.items()}


def circle_in(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """Return what is left of a graph when everything that needs nothing else is taken away, again and again."""
    left = {one: set(others) for one, others in graph.items()}
    while free := [one for one, others in left.items() if not others & left.keys()]:
        for one in free:
            del left[one]
    return sorted(left)


def test_packages_are_the_ones_that_are_shipped() -> None:
    shipped = re.search(r"^packages = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert shipped is not None
    assert set(re.findall(r'"(\w+)"', shipped[1])) == set(ARROWS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_imports_only_along_the_arrows(path: Path) -> None:
    own = package_of(path)
    used = {name.split(".")[0] for name in imports_of(path)} & set(ARROWS)
    assert used - {own} <= ARROWS[own]


@pytest.mark.parametrize("path", sorted(ROOT.glob(FOUNDATION)), ids=lambda path: path.name)
def test_foundation_needs_only_the_standard_library_and_msgspec(path: Path) -> None:
    names = list(imports_of(path))
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names | {"msgspec", "protocol"}
    assert not [name for name in names if name.startswith("protocol.runtime")]


def test_imports_are_statements() -> None:
    hidden = {
        name_of(path)
        for path in MODULES
        if any(_imports_by_name(name) for name in imports_of(path))
        or re.search(r"__import__|import_module|sys\.modules", path.read_text())
    }
    assert hidden == set()


def _imports_by_name(name: str) -> bool:
    return name.split(".")[0] in ("importlib", "pkgutil", "runpy") and not name.startswith(METADATA)


# --- rooms ---


def test_every_folder_has_its_arrows() -> None:
    rooms = {room_of(path) for path in MODULES if path.parent != ROOT / package_of(path)}
    assert rooms == FOLDERS.keys()


@pytest.mark.parametrize("folder", FOLDERS)
def test_folder_imports_only_along_its_arrows(folder: str) -> None:
    package = folder.split("/")[0]
    used = {room for room in arrows({path: room_of(path) for path in MODULES})[folder] if room.startswith(package)}
    foundation = {name_of(path) for path in ROOT.glob(FOUNDATION)}
    assert used - foundation <= FOLDERS[folder]


@pytest.mark.parametrize("key", [name_of, room_of], ids=["files", "rooms"])
def test_no_circle(key: object) -> None:
    graph = arrows({path: key(path) for path in MODULES})  # type: ignore[operator]
    assert circle_in(graph) == []


def test_circles_would_be_found() -> None:
    assert circle_in({"a": ["b"], "b": ["c"], "c": ["b"], "d": []}) == ["a", "b", "c"]


@pytest.mark.parametrize("folder", CORE)
def test_core_of_the_agent_api_knows_no_way_in(folder: str) -> None:
    names = [name for path in (ROOT / folder).rglob("*.py") for name in imports_of(path)]
    assert not {name.split(".")[0] for name in names} & EDGES
    edges = [f"agent_api.{edge}" for edge in ("http", "routes", "socket", "openapi", "app", "context", "service")]
    assert not [name for name in names if name.startswith((*edges, "protocol.runtime.websocket"))]


def test_dialects_are_pure() -> None:
    names = {name for path in (ROOT / "gateway/dialects").rglob("*.py") for name in imports_of(path)}
    assert {name for name in names if not name.startswith(PURE)} == set()
    runtime = {name for name in names if name.startswith("protocol.runtime")}
    assert runtime == {"protocol.runtime.websocket.handshake.SUBPROTOCOL"}


def test_core_of_sessions_does_no_input_or_output() -> None:
    paths = list((ROOT / "gateway/sessions/core").glob("*.py"))
    names = {name for path in paths for name in imports_of(path)}
    assert not {name.split(".")[0] for name in names} & IMPURE
    assert not [node for path in paths for node in ast.walk(tree_of(path)) if isinstance(node, ast.Await)]


@pytest.mark.parametrize("path", sorted(ROOT.glob("*/settings.py")), ids=lambda path: path.parent.name)
def test_settings_lie_below_everything(path: Path) -> None:
    foundation = {name_of(file) for file in ROOT.glob(FOUNDATION)}
    used = {name_of(file) for file in imported_files(path)} - foundation
    assert {file for file in used if not file.startswith("protocol/runtime/")} <= LIMITS_OF_SETTINGS


@pytest.mark.parametrize("package", [*ARROWS, "tests", "bench"])
def test_folder_holds_no_more_than_one_can_overlook(package: str) -> None:
    paths = [path for path in (ROOT / package).rglob("*.py") if path.name != "__init__.py"]
    sizes = Counter(str(path.parent.relative_to(ROOT)) for path in paths)
    assert {folder: size for folder, size in sizes.items() if size > MAX_FILES} == {}


# --- what libraries keep for themselves ---


def test_private_attributes_of_libraries_are_touched_in_their_folders_only() -> None:
    touched = {
        f"{room_of(path)}: {ast.unparse(node)}"
        for path in MODULES
        if room_of(path) not in INSIDES
        for node in ast.walk(tree_of(path))
        if _reaches_inside(node)
    }
    assert touched == set()


def _reaches_inside(node: ast.AST) -> bool:
    """Tell whether a node reaches for a private attribute or name of anything but `self` and `cls`."""
    match node:
        case ast.ImportFrom(module=str(module), names=aliases):
            return any(map(_is_private, [*module.split("."), *(alias.name for alias in aliases)]))
        case ast.Import(names=aliases):
            return any(_is_private(part) for alias in aliases for part in alias.name.split("."))
        case ast.Call(func=ast.Name(id="vars")) | ast.Attribute(attr="__dict__"):
            return True
        case ast.Attribute(value=ast.Name(id="self" | "cls")):
            return False
        case ast.Attribute(value=ast.Name(id="os"), attr="_exit"):  # public, whatever its name
            return False
        case ast.Attribute(attr=name):
            return _is_private(name)
        case ast.Call(
            func=ast.Name(id="getattr" | "setattr" | "hasattr" | "delattr"), args=[_, ast.Constant(value=str(name)), *_]
        ):
            return _is_private(name)
    return False


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in METHODS_OF_NAMED_TUPLES


def test_reaching_inside_would_be_found() -> None:
    reaching = [
        "client._sid",
        "self.client._sid",
        "getattr(x, '_sid', None)",
        "from x import _sid",
        "vars(x)['_sid']",
        "import x._y",
        "from x._y import z",
    ]
    innocent = ["self._sid", "client.sid", "x.__class__"]
    found = [any(map(_reaches_inside, ast.walk(ast.parse(code)))) for code in [*reaching, *innocent]]
    assert found == [True] * len(reaching) + [False] * len(innocent)


@pytest.mark.parametrize("folder", INSIDES)
def test_modules_of_a_librarys_insides_are_imported_in_their_folder_only(folder: str) -> None:
    strangers = {
        f"{name_of(path)}: {name}"
        for path in MODULES
        if room_of(path) != folder
        for name in imports_of(path)
        for inside in INSIDES[folder]
        if name == inside or name.startswith(f"{inside}.")
    }
    assert strangers == set()


# --- names and constructors ---


def test_class_name_means_one_thing_in_the_whole_tree() -> None:
    defined = Counter(
        node.name.lstrip("_") for path in MODULES for node in ast.walk(tree_of(path)) if isinstance(node, ast.ClassDef)
    )
    assert {name: count for name, count in defined.items() if count > 1} == {}


def test_constructors_take_what_one_can_remember() -> None:
    long = {
        f"{name_of(path)}: {owner.name}": count
        for path in MODULES
        for owner in ast.walk(tree_of(path))
        if isinstance(owner, ast.ClassDef)
        for node in owner.body
        if isinstance(node, ast.FunctionDef) and node.name == "__init__"
        if (count := len(node.args.args) + len(node.args.kwonlyargs) - 1) > MAX_CONSTRUCTOR_PARAMETERS
    }
    assert long == {}


def test_handlers_are_handed_in_instead_of_holes_being_filled_later() -> None:
    """No constructor leaves a handler `None` for another one to set: `self.on_command: Callable[…] | None = None`."""
    holes = {
        f"{name_of(path)}: {ast.unparse(node)}"
        for path in MODULES
        for node in ast.walk(tree_of(path))
        if _is_hole(node)
    }
    assert holes == set()


def _is_hole(node: ast.AST) -> bool:
    """Tell whether a node sets an attribute to None that is a handler, by its annotation or by its name."""
    match node:
        case ast.AnnAssign(target=target, annotation=kind, value=ast.Constant(value=None)):
            return "Callable" in ast.unparse(kind) or _is_handler(target)
        case ast.Assign(targets=targets, value=ast.Constant(value=None)):
            return any(map(_is_handler, targets))
    return False


def _is_handler(target: ast.AST) -> bool:
    return isinstance(target, ast.Attribute) and target.attr.lstrip("_").startswith("on_")


def test_holes_would_be_found() -> None:
    holes = [
        "self.f: Callable[[], None] | None = None",
        "self._on_end: Handler | None = None",
        "self.a = self.on_end = None",
        "f: Callable[[], None] | None = None",
    ]
    sound = ["self.on_end = on_end", "self.f: int | None = None", "self.on_end()"]
    found = [any(map(_is_hole, ast.walk(ast.parse(code)))) for code in [*holes, *sound]]
    assert found == [True] * len(holes) + [False] * len(sound)


# --- the rest ---


@pytest.mark.parametrize("package", ["gateway", "agent_api", "registry", "agentbridge"])
def test_product_does_not_need_the_tests(package: str) -> None:
    roots = {name.split(".")[0] for path in (ROOT / package).rglob("*.py") for name in imports_of(path)}
    assert not roots & {"tests", "support", "pytest", "hypothesis", "testcontainers"}


def test_environment_is_read_in_one_place() -> None:
    readers = {path for path in MODULES if re.search(r"\b(environ|getenv|putenv)\b", path.read_text())}
    assert readers <= {SETTINGS}


def test_tests_hide_no_package() -> None:
    assert not (ROOT / "tests/__init__.py").exists()
    assert not list((ROOT / "tests/unit").rglob("__init__.py"))


def test_readme_tells_the_arrows_that_are() -> None:
    """The README says in one sentence which packages import which; that sentence is checked, so it has to stay."""
    readme = " ".join((ROOT / "README.md").read_text().split())
    sentence = re.search(r"((?:`\w+`(?:,| and)? )+)import `(\w+)` and nothing of each other", readme)
    assert sentence is not None
    told = {package: {sentence[2]} for package in re.findall(r"`(\w+)`", sentence[1])}
    assert told == {package: needs for package, needs in ARROWS.items() if needs}
