"""What the documentation says in tables and links, against the code that it is about."""

import ast
import re
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from prometheus_client.core import HistogramMetricFamily
from support.examples import PAGES
from support.paths import ROOT
from support.settings import settings_for

from agent_api.app import ToolParts, ordinary_routes
from agent_api.openapi.audit import PATH as AUDIT_PATH
from agent_api.openapi.events import PATH as EVENTS_PATH
from agent_api.openapi.schemas import SCHEMAS
from agent_api.routes.agents import AgentRoutes
from agent_api.routes.command import CommandEndpoint
from agent_api.routes.discovery import DiscoveryRoutes
from agent_api.routes.health import HealthRoutes
from agent_api.routes.tools import ToolCallEndpoint, ToolRoutes
from agent_api.settings import ApiSettings
from agent_api.socket import frames as socket
from agentbridge.cli.credentials import CommandSettings
from agentbridge.command_line import cli
from agentbridge.up.settings import UpSettings, complete
from gateway.settings import GatewaySettings
from protocol import subjects
from protocol.errors import MEANINGS, RETRYABLE, CloseCode
from protocol.frames import ClientFrame, ServerFrame
from protocol.reports import EndReason, is_lost
from protocol.runtime.process.durations import Durations
from protocol.runtime.process.metrics import FIGURES, Metrics
from protocol.runtime.settings import PREFIX, Settings
from protocol.runtime.tokens import Verifier
from registry.bucket.announcements import Change
from registry.settings import RegistrySettings

README = (ROOT / "README.md").read_text()
WEBSOCKET = (ROOT / "docs/websocket.md").read_text()
DEPLOYMENT = (ROOT / "docs/deployment.md").read_text()
AGENT_WEBSOCKET = (ROOT / "docs/agent-websocket.md").read_text()
OPENINGS = [ROOT / "protocol/runtime/websocket/connection.py", ROOT / "protocol/runtime/websocket/handshake.py"]
PROCESSES = (Settings, GatewaySettings, ApiSettings, RegistrySettings)
FILE = r"[\w./-]+\.(py|md|js|conf|yaml|html)"
NO_DEFAULT = {"none", "any"}
SET_ON_THE_WAY = {"caller_request_id", "probed"}  # of a command, by whoever sends it on to NATS
# The library closes with the one; the other is what a browser reports where no close frame came.
CODES_WITHOUT_A_LINE_OF_OURS = {CloseCode.TOO_LARGE, 1006}


def table(text: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading."""
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def quoted(cell: str) -> list[str]:
    """Return what stands in backticks."""
    return re.findall(r"`([^`]*)`", cell)


# --- the command line ---


def test_page_about_the_command_line_names_every_command() -> None:
    rows = table((ROOT / "docs/command-line.md").read_text(), "The commands")
    assert [name for row in rows for name in quoted(row[0])] == list(cli.commands)


# --- errors ---


def test_error_table_is_that_of_the_code() -> None:
    told = [(code, status, retryable) for code, status, retryable, _ in table(README, "Errors")]
    assert told == [
        (f"`{code}`", str(meaning.http_status), "yes" if meaning.retryable else "no")
        for code, meaning in MEANINGS.items()
    ]


# --- settings ---


def settings_told() -> Iterator[tuple[str, str | None, str]]:
    """Yield the variable, its default and its meaning, for every setting in the table."""
    for names, defaults, meaning in table(README, "Settings"):
        variables = quoted(names)
        values = [value.strip("`") for value in defaults.split(", ")] if defaults else ["none"] * len(variables)
        for variable, value in zip(variables, values, strict=True):
            yield variable, None if value in NO_DEFAULT else value, meaning


def as_told(default: Any) -> str | None:
    """Return a default as the table has it."""
    return None if default in (None, "") else str(default).removesuffix(".0")


def defaults_of(kinds: Iterable[type[Settings]]) -> dict[str, str | None]:
    fields = [field for kind in kinds for field in msgspec.structs.fields(kind)]
    return {field.name.upper(): as_told(field.default) for field in fields}


def test_settings_table_names_every_setting_with_its_default() -> None:
    told = {variable: value for variable, value, _ in settings_told()}
    assert told == defaults_of((CommandSettings, UpSettings, *PROCESSES))


def test_settings_table_says_where_up_and_commands_differ() -> None:
    meanings = {variable: meaning for variable, _, meaning in settings_told()}
    by_processes = defaults_of(PROCESSES)
    by_up = defaults_of([UpSettings]) | {name.removeprefix(PREFIX): value for name, value in complete({}).items()}
    by_commands = defaults_of([CommandSettings])

    assert [name for name in differing(by_up, by_processes) if "`up`" not in meanings[name]] == []
    assert [name for name in differing(by_commands, by_processes) if "command line" not in meanings[name]] == []


def differing(values: dict[str, str | None], usual: dict[str, str | None]) -> list[str]:
    return [name for name, value in values.items() if name in usual and usual[name] != value]


# --- subjects ---


def test_subjects_are_those_that_the_code_builds() -> None:
    told = {subject for subject, _, _ in table(README, "Subjects") for subject in full_subjects(quoted(subject))}
    assert {subject for subject in told if not subject.startswith("$SRV.")} == {
        subjects.command("T", "C"),
        *(subjects.registry("T", op) for op in ("list", "find", "get")),
        subjects.event("T", "C", "NAME"),
        subjects.client_change("T", "C", "CHANGE"),
    }


def full_subjects(names: list[str]) -> list[str]:
    """Return the subjects of a row, in which `.find` stands for the first one with another last token."""
    first = names[0].rpartition(".")[0]
    return [first + name if name.startswith(".") else name for name in names]


def test_changes_of_clients_are_those_that_the_registry_announces() -> None:
    [row] = [row for row in table(README, "Subjects") if ".client." in row[0]]
    assert tuple(quoted(row[2])) == typing.get_args(Change)


def test_reasons_of_disconnected_are_those_of_the_code() -> None:
    told = [(quoted(reason)[0], lost) for reason, lost, _ in table(WEBSOCKET, "Why a client went")]
    assert told == [(reason, "yes" if is_lost(reason) else "no") for reason in EndReason]


def test_retryable_means_one_thing_wherever_it_is_told() -> None:
    pages = [README, *((ROOT / page).read_text() for page in ("docs/http.md", "docs/nats.md"))]
    sentence = "true if the command was certainly not executed and the same request may succeed in a moment"
    assert sentence == RETRYABLE
    assert [page for page in pages if sentence not in " ".join(page.split())] == []
    assert SCHEMAS["Response"]["properties"]["error"]["properties"]["retryable"]["description"] == sentence


# --- HTTP ---


async def test_routes_are_those_of_the_document() -> None:
    settings = settings_for(ApiSettings)
    unused: Any = None
    command = CommandEndpoint(settings, Verifier(settings), unused, unused, unused)
    readers = {EVENTS_PATH: unused, AUDIT_PATH: unused}
    health = HealthRoutes(unused, unused, unused)
    tools = ToolParts(ToolRoutes(unused, unused), ToolCallEndpoint(settings, command, unused), unused, unused)
    app = ordinary_routes(
        command, readers, DiscoveryRoutes(unused, unused, unused), AgentRoutes(unused, unused), health, tools
    )

    assert routes_told() == {nameless(path) for path in app.openapi()["paths"]} | {"/docs", "/openapi.json"}
    assert {getattr(route, "path", "") for route in app.routes} >= {"/docs", "/openapi.json"}


def routes_told() -> set[str]:
    names = [name for row in table(README, "HTTP") for name in quoted(row[0])]
    return {nameless(name.removeprefix("GET ").removeprefix("POST ").removeprefix("DELETE ")) for name in names}


def nameless(path: str) -> str:
    return re.sub(r"\{\w+\}", "{}", path)


# --- WebSocket ---


class Field(NamedTuple):
    """A field of a frame: whether it may be missing, and the fields of the object that it holds."""

    optional: bool
    fields: dict[str, Any] | None = None


def fields_told(text: str) -> dict[str, Field]:
    """Read `name, name?, name: {fields}` as fields by their names."""
    found = {}
    for name, optional, inner in re.findall(r"(\w+)(\??)(?:: \{([^}]*)\})?", text):
        found[name] = Field(bool(optional), fields_told(inner) if inner else None)
    return found


def frames_told(page: str, heading: str) -> dict[str, dict[str, Field]]:
    frames = [quoted(row[0])[0].partition(" ") for row in table(page, heading)]
    return {name: fields_told(fields.removeprefix("{").removesuffix("}")) for name, _, fields in frames}


def fields_of(kind: type[msgspec.Struct]) -> dict[str, Field]:
    return {
        field.encode_name: Field(not field.required, fields_within(field.type))
        for field in msgspec.structs.fields(kind)
        if field.name not in SET_ON_THE_WAY
    }


def fields_within(annotation: Any) -> dict[str, Field] | None:
    """Return the fields of the struct in an annotation, None where there is none."""
    kinds = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    structs = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, msgspec.Struct)]
    return fields_of(structs[0]) if structs else None


@pytest.mark.parametrize(
    ("page", "heading", "frames"),
    [
        (WEBSOCKET, "From the gateway", ServerFrame),
        (WEBSOCKET, "From the application", ClientFrame),
        (AGENT_WEBSOCKET, "From the agent API", socket.FrameToAgent),
        (AGENT_WEBSOCKET, "From the agent", socket.AgentFrame),
    ],
    ids=["gateway", "application", "agent API", "agent"],
)
def test_frames_are_those_of_the_code(page: str, heading: str, frames: Any) -> None:
    told: dict[str, dict[str, Field]] = {}
    for kind in typing.get_args(frames):
        merge(told, str(kind.__struct_config__.tag), fields_of(kind))
    assert frames_told(page, heading) == told


def merge(told: dict[str, dict[str, Field]], name: str, fields: dict[str, Field]) -> None:
    """Add a frame; of two with one name, which only differ in what one of them has besides, that is optional."""
    known = told.get(name, fields)
    told[name] = {
        field: how if field in known and field in fields else Field(optional=True, fields=how.fields)
        for field, how in (fields | known).items()
    }


@pytest.mark.parametrize(
    ("page", "folders"),
    [(WEBSOCKET, ["gateway"]), (AGENT_WEBSOCKET, ["agent_api/socket"])],
    ids=["gateway", "agent API"],
)
def test_close_codes_are_those_that_are_sent(page: str, folders: list[str]) -> None:
    told = {int(code) for row in table(page, "Close codes") for code in re.findall(r"\d+", row[0])}
    modules = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    sent = {code for path in [*modules, *OPENINGS] for code in codes_sent(ast.parse(path.read_text()))}
    assert told == sent | CODES_WITHOUT_A_LINE_OF_OURS


def codes_sent(module: ast.Module) -> Iterator[int]:
    """Yield the codes that are given to a call: `close(CloseCode.POLICY, …)`, `Close(code=CloseCode.POLICY)`."""
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
            names = [ast.unparse(argument).partition("CloseCode.") for argument in given]
            yield from (getattr(CloseCode, name) for before, _, name in names if name and not before)


# --- figures ---


def test_figures_are_those_that_processes_serve() -> None:
    told = [(name, kind, what) for name, _, kind, what in table(DEPLOYMENT, "Metrics")]
    assert told == [figure_told(key) for key in FIGURES]


def counted(key: str) -> dict[str, int]:
    """Return counters as a process has them."""
    if FIGURES[key].family is HistogramMetricFamily:
        return Durations(key).counters()
    return {f"{key}:{' '.join(FIGURES[key].labels)}" if FIGURES[key].labels else key: 0}


def figure_told(key: str) -> tuple[str, str, str]:
    """Return a figure as the table has it: its name without the process's prefix, its type, its meaning."""
    help_line, type_line, *_ = Metrics("", lambda: counted(key)).text().splitlines()
    name, _, kind = type_line.removeprefix("# TYPE _").partition(" ")
    what = help_line.removeprefix(f"# HELP _{name} ")
    return f"`{name}`", kind, what[0].lower() + what[1:]


# --- links and files ---


def links() -> Iterator[tuple[Path, str]]:
    """Yield every link of the documentation that leads to a place in the repository."""
    for page in [*PAGES, ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if "://" not in target:
                yield page, target


@pytest.mark.parametrize(("page", "target"), sorted(links()))
def test_links_lead_to_files_and_headings(page: Path, target: str) -> None:
    path, _, heading = target.partition("#")
    file = page.parent / path if path else page
    assert file.exists()
    assert not heading or heading in [anchor(line) for line in file.read_text().splitlines() if line.startswith("#")]


def anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lstrip("# ").lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_are_there(page: Path) -> None:
    named = [name for name in quoted(page.read_text()) if re.fullmatch(FILE, name)]
    assert [name for name in named if not (ROOT / name).exists() and not (page.parent / name).exists()] == []
