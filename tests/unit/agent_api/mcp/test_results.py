"""What an application answers, as the result of a tool: sound in every revision, whatever was answered."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp_types import methods

from agent_api.mcp.results import error_result, value_result
from protocol.errors import AmbiguousClient, ClientLost, CommandFailed

VERSIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28")
MODERN, LEGACY = VERSIONS[-1], VERSIONS[-2]
kinds = st.sampled_from(["text", "image", "audio", "resource", "resource_link", "other", 3])
plain = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.text(max_size=5))
fields = st.sampled_from(["text", "data", "mimeType", "uri", "name", "blob", "annotations", "_meta"])
resources = st.dictionaries(fields, plain, max_size=4)
items = st.builds(
    lambda kind, rest: {**rest, "type": kind}, kinds, st.dictionaries(fields | st.just("resource"), plain | resources)
)
answers = st.one_of(
    plain,
    st.dictionaries(st.text(max_size=5), plain),
    st.fixed_dictionaries(
        {"content": st.lists(items | plain, max_size=3)},
        optional={"isError": plain, "structuredContent": plain | resources, "_meta": plain, "resultType": plain},
    ),
)


def result_for(answer: Any, version: str) -> Any:
    """Return the result for an answer, as it is written."""
    return json.loads(msgspec.json.encode(value_result(msgspec.Raw(msgspec.json.encode(answer)), version)))


@given(answer=answers, version=st.sampled_from(VERSIONS))
def test_any_answer_is_a_sound_result(answer: Any, version: str) -> None:
    result = result_for(answer, version)
    methods.serialize_server_result("tools/call", version, {**result, "resultType": "complete"})


@pytest.mark.parametrize("version", VERSIONS)
def test_error_is_a_sound_result(version: str) -> None:
    result = error_result(AmbiguousClient("choose", details={"clients": [{"clientId": "c1"}]}))
    methods.serialize_server_result("tools/call", version, {**result, "resultType": "complete"})
    assert result["content"][0]["text"] == 'ambiguous_client: choose\n[{"clientId":"c1"}]'


def test_error_says_code_and_whether_to_try_again() -> None:
    assert error_result(ClientLost("it is gone"))["structuredContent"]["error"] == {
        "code": "client_lost",
        "message": "it is gone",
        "retryable": False,
    }
    told = error_result(CommandFailed("no", details={"code": "E1"}))["structuredContent"]["error"]
    assert told["details"] == {"code": "E1"}


@pytest.mark.parametrize(
    ("answer", "version", "result"),
    [
        ("plain", MODERN, {"content": [{"type": "text", "text": "plain"}]}),
        ({"a": 1}, LEGACY, {"content": [{"type": "text", "text": '{"a":1}'}], "structuredContent": {"a": 1}}),
        ([1], LEGACY, {"content": [{"type": "text", "text": "[1]"}]}),
        ([1], MODERN, {"content": [{"type": "text", "text": "[1]"}], "structuredContent": [1]}),
        (None, MODERN, {"content": [{"type": "text", "text": "null"}]}),
        (
            {"content": [{"type": "text", "text": "Hi"}], "isError": True},
            MODERN,
            {"content": [{"type": "text", "text": "Hi"}], "isError": True},
        ),
    ],
)
def test_answer_as_a_result(answer: Any, version: str, result: Any) -> None:
    assert result_for(answer, version) == result


def test_answer_cannot_pose_as_anything_but_a_result() -> None:
    posing = {"content": [], "resultType": "input_required", "inputRequests": {}}
    result = result_for(posing, MODERN)
    assert result.keys() == {"content", "structuredContent"}


@pytest.mark.parametrize("answer", [b"1e400", b'{"a":1e400}', b"[" * 70 + b"]" * 70, b'{"a":' * 70 + b"1" + b"}" * 70])
def test_answer_that_few_can_read_is_told_as_text(answer: bytes) -> None:
    assert value_result(msgspec.Raw(answer), MODERN) == {"content": [{"type": "text", "text": answer.decode()}]}


def test_digits_of_a_number_stay() -> None:
    result = msgspec.json.encode(value_result(msgspec.Raw(b'{"a": 1.50}'), MODERN))
    assert result == b'{"content":[{"type":"text","text":"{\\"a\\": 1.50}"}],"structuredContent":{"a": 1.50}}'
