"""The OpenAPI document: bodies as the types have them that are decoded and encoded, routes as `contract` has them."""

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from agent_api import contract
from agent_api.audit.contract import AUDIT, RECORD
from agent_api.audit.contract import PATH as AUDIT_PATH
from agent_api.commands.bodies import CommandResult
from agent_api.events.contract import EVENTS
from agent_api.events.contract import PATH as EVENTS_PATH
from agent_api.http.problems import Problem
from protocol.errors import Code
from protocol.records import ClientRecord
from protocol.runtime.version import SERVICE_VERSION

COMMAND_PATH = "/api/command"
DESCRIPTION = (
    "Find connected applications and have them execute commands inside their users' sessions. "
    "Everything below `/api` needs a token: a JWT with the role `agent` or `admin`."
)


class Application(FastAPI):
    """FastAPI as a router, with a document of our own."""

    def __init__(self) -> None:
        super().__init__(
            title="AgentBridge agent API",
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,
            generate_unique_id_function=lambda route: route.name,
        )

    def openapi(self) -> dict[str, Any]:
        """Return the document; it is made once."""
        if self.openapi_schema is None:
            self.openapi_schema = _document(self)
        return self.openapi_schema


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=SERVICE_VERSION, description=DESCRIPTION, routes=app.routes)
    ours = {COMMAND_PATH: {"post": contract.COMMAND}, EVENTS_PATH: {"get": EVENTS}, AUDIT_PATH: {"get": AUDIT}}
    document["paths"] = ours | document["paths"]
    document["components"] = {
        "schemas": _schemas(),
        "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
    }
    return document


def _schemas() -> dict[str, Any]:
    """Return the schemas of all bodies; what the types leave open (raw JSON) is said by hand."""
    types = (CommandResult, Problem, ClientRecord)
    _, schemas = msgspec.json.schema_components(types, ref_template=contract.SCHEMA_PATH)
    schemas["Problem"]["properties"]["code"] = {"type": "string", "enum": [code.value for code in Code]}
    schemas["ClientRecord"]["properties"]["capabilities"] = contract.CAPABILITY_LIST
    schemas["ClientRecord"]["required"] = sorted(schemas["ClientRecord"]["properties"])  # defaults are told, too
    return {**schemas, "AuditRecord": RECORD, **contract.SCHEMAS}
