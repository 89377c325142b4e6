"""An agent loop over HTTP: `python examples/tools/tool_loop.py URL TOKEN "Buy milk"`.

The model here is scripted, so that this runs without a provider; docs/tools.md has the loops of three. Whatever the
model is, it needs two routes: one lists the tools, the other calls one.
"""

import json
import sys
import urllib.error
import urllib.request
from typing import Any

Json = dict[str, Any]


def request(url: str, token: str, body: Any = None) -> Any:
    """Send a request; what is refused is an answer, too, for the model can read it."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers)) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as refused:
        return json.load(refused)


def model(messages: list[Json], tools: list[Json]) -> Json:
    """Call the first tool that takes a title, then tell what came of it."""
    if messages[-1]["role"] == "tool":
        return {"role": "assistant", "content": f"Done: {messages[-1]['content']}"}
    named = [tool["function"] for tool in tools]
    wanted = next(tool for tool in named if "title" in tool["parameters"].get("properties", {}))
    call = {"id": "1", "function": {"name": wanted["name"], "arguments": {"title": messages[-1]["content"]}}}
    return {"role": "assistant", "tool_calls": [call]}


def main() -> None:
    """Run the loop until the model has nothing more to call."""
    url, token, question = sys.argv[1:]
    messages: list[Json] = [{"role": "user", "content": question}]
    while True:
        tools = request(f"{url}/api/tools?format=openai", token)["tools"]
        answer = model(messages, tools)
        messages.append(answer)
        if "tool_calls" not in answer:
            print(answer["content"])
            return
        for call in answer["tool_calls"]:
            result = request(f"{url}/api/tools/{call['function']['name']}", token, call["function"]["arguments"])
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": json.dumps(result)})


if __name__ == "__main__":
    main()
