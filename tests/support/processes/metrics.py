"""What a process says at `/metrics`, read by the library's parser."""

import httpx
from prometheus_client.parser import text_string_to_metric_families

from support.processes.child import Process


async def figures(http: httpx.AsyncClient) -> dict[str, float]:
    """Return the values of a process's figures by their names."""
    answer = await http.get("/metrics")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert answer.headers["Cache-Control"] == "no-store"
    families = text_string_to_metric_families(answer.text)
    return {sample.name: sample.value for family in families for sample in family.samples}


def of_gateway(gateway: Process) -> httpx.AsyncClient:
    """Return an HTTP client of a gateway, without a token."""
    base = gateway.url.replace("ws://", "http://").removesuffix("/ws")
    return httpx.AsyncClient(base_url=base, trust_env=False)
