"""`/docs`: Swagger UI for `/openapi.json`. Its files come from a package, so that it works in a closed network."""

from importlib.resources import files

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

ASSETS = str(files("fastapi_offline") / "static")
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>AgentBridge agent API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/assets/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/assets/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null});\n'


def install(app: Starlette) -> None:
    """Add the page and its files to an application."""
    app.add_route("/docs", _page)
    app.add_route("/docs/start.js", _start)
    app.mount("/docs/assets", StaticFiles(directory=ASSETS))


async def _page(request: Request) -> Response:
    return HTMLResponse(PAGE, headers={"content-security-policy": CONTENT_SECURITY_POLICY})


async def _start(request: Request) -> Response:
    return Response(START, media_type="text/javascript")
