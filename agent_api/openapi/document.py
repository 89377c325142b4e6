"""The OpenAPI document: bodies from the types that are decoded and encoded, routes from `schemas`."""

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from agent_api.commands.orders import CommandResult
from agent_api.http.connections import COMMAND_PATH
from agent_api.http.problems import Problem
from agent_api.mcp.endpoint import PATH as MCP_PATH
from agent_api.openapi import examples, schemas
from agent_api.openapi.audit import AUDIT, RECORD
from agent_api.openapi.audit import PATH as AUDIT_PATH
from agent_api.openapi.events import EVENTS
from agent_api.openapi.events import PATH as EVENTS_PATH
from agent_api.openapi.tools import CALL, CALL_PATH, MCP
from protocol.errors import Code
from protocol.records import ClientRecord
from protocol.runtime.version import SERVICE_VERSION

DESCRIPTION = (
    "Find connected applications and have them execute commands inside their users' sessions. "
    "Everything below `/api` needs a token: a JWT with the role `agent` or `admin`. "
    "`HEAD` is answered wherever `GET` is."
)


class Application(FastAPI):
    """FastAPI as a router, with our own document."""

    def __init__(self) -> None:
        super().__init__(
            title="AgentBridge agent API",
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,
            generate_unique_id_function=lambda route: route.name,
        )

    def openapi(self) -> dict[str, Any]:
        """Return the document. It is made once."""
        if self.openapi_schema is None:
            self.openapi_schema = _document(self)
        return self.openapi_schema


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=SERVICE_VERSION, description=DESCRIPTION, routes=app.routes)
    ours = {
        COMMAND_PATH: {"post": schemas.COMMAND},
        CALL_PATH: {"post": CALL},
        MCP_PATH: {"post": MCP},
        EVENTS_PATH: {"get": EVENTS},
        AUDIT_PATH: {"get": AUDIT},
    }
    document["paths"] = ours | document["paths"]
    document["tags"] = schemas.GROUPS
    document["components"] = {
        "schemas": _schemas(),
        "examples": examples.components(),
        "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
    }
    return document


def _schemas() -> dict[str, Any]:
    """Return the schemas of all bodies. Fields that are raw JSON in the types are described by hand."""
    types = (CommandResult, Problem, ClientRecord)
    _, of_types = msgspec.json.schema_components(types, ref_template=schemas.SCHEMA_PATH)
    of_types["Problem"]["properties"]["code"] = {"type": "string", "enum": [code.value for code in Code]}
    of_types["ClientRecord"]["properties"]["capabilities"] = schemas.CAPABILITY_LIST
    of_types["ClientRecord"]["required"] = sorted(of_types["ClientRecord"]["properties"])  # defaults are sent
    return {**of_types, "AuditRecord": RECORD, **schemas.SCHEMAS}
