"""The library of the Model Context Protocol costs nothing before the first request."""

import subprocess
import sys

LATE = {"mcp", "mcp_types", "httpx2", "jsonschema_rs"}
CODE = f"import sys, agent_api.service; print(sorted({LATE} & set(sys.modules)))"


def test_agent_api_imports_neither_the_library_nor_schemas_by_itself() -> None:
    command = [sys.executable, "-c", CODE]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout.strip() == "[]"
