"""Schemas and parameters of strangers: refused where they could hurt, and never expensive."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.capabilities.expansion import MAX_NODES
from gateway.capabilities.patterns import MAX_PATTERN_BYTES
from gateway.capabilities.schemas import PATTERN_BYTES_A_NODE, Schemas, compile_schema
from protocol.errors import InvalidFrame, InvalidParameters

MANY = {f"k{number}": 1 for number in range(30_000)}


def check(schema: Any, parameters: Any) -> None:
    body = parameters if isinstance(parameters, bytes) else json.dumps(parameters).encode()
    compile_schema(schema, "here").check(msgspec.Raw(body))


def refusal(schema: Any) -> str:
    return costly_refusal(schema)[0]


def costly_refusal(schema: Any) -> tuple[str, int]:
    """Return why a schema is refused, and the effort until then, in nodes."""
    spent: list[int] = []
    with pytest.raises(InvalidFrame) as caught:
        compile_schema(schema, "here", spent.append)
    assert caught.value.message.startswith("`here`: ")
    return caught.value.message, sum(spent)


def complaint(schema: Any, parameters: Any) -> InvalidParameters:
    with pytest.raises(InvalidParameters) as caught:
        check(schema, parameters)
    return caught.value


class NeverAsked:
    """Stands for a compiled schema where nothing may be checked against it."""

    def validate(self, instance: Any) -> None:
        raise AssertionError("the check was made")

    def is_valid(self, instance: Any) -> bool:
        raise AssertionError("the check was made")


def items(schema: Any) -> Any:
    return {"properties": {"a": {"items": schema}}}


def doubled(levels: int, *, names: str = "d{}", references: str = "#/$defs/d{}") -> dict[str, Any]:
    """Return definitions of which each names the next one twice."""
    twice = {names.format(n): {"allOf": [{"$ref": references.format(n + 1)}] * 2} for n in range(levels)}
    return {**twice, names.format(levels): True}


def test_first_fault_is_named_with_its_path() -> None:
    error = complaint({"properties": {"a": {"items": {"type": "integer"}}}}, {"a": [1, "x"]})
    assert error.message == '`parameters/a/1`: "x" is not of type "integer"'
    assert error.details == {"path": "/a/1"}


def test_fault_of_the_whole_has_the_empty_path() -> None:
    assert complaint({"required": ["a"]}, {}).details == {"path": ""}


def test_path_is_a_json_pointer() -> None:
    error = complaint({"properties": {"a/b~": {"type": "integer"}}}, {"a/b~": "x"})
    assert error.details == {"path": "/a~1b~0"}


def test_sound_parameters_pass() -> None:
    check({"type": "object", "required": ["a"]}, {"a": None})
    check(True, {})
    check({"$ref": "#/$defs/a%20b~1c", "$defs": {"a b/c": {"required": ["x"]}}}, {"x": 1})


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"$ref": "file:///etc/passwd"}, "must stay within the schema"),
        ({"$ref": "http://127.0.0.1:1/schema"}, "must stay within the schema"),
        ({"$ref": "#name", "$anchor": "name"}, "must stay within the schema"),
        ({"$ref": "#/$defs/none"}, "names nothing"),
        ({"$ref": "#/allOf/-1", "allOf": [True]}, "not a JSON Schema"),
        ({"$ref": "#"}, "leads back to itself"),
        ({"allOf": [{"anyOf": [{"not": {"$ref": "#"}}]}]}, "leads back to itself"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/%61"}}}, "leads back to itself"),
        ({"items": {"$ref": "#"}, "unevaluatedItems": False}, "not supported beside references that lead back"),
        ({"$dynamicRef": "#x"}, "$dynamicRef is not supported"),
        ({"$recursiveRef": "#"}, "$recursiveRef is not supported"),
        ({"type": "nothing"}, "not a JSON Schema"),
        ({"$schema": "http://127.0.0.1:1/meta"}, "Unknown meta-schema"),
        ({"pattern": "((a{100}){100}){100}"}, "not a JSON Schema"),
        ({"pattern": "(?=((a{100}){100}){100})"}, "not a JSON Schema"),
        ({"pattern": "(?=a"}, "not a JSON Schema"),
        ({"properties": {str(number): {} for number in range(2000)}}, "larger than 2000 nodes"),
    ],
)
def test_schema_is_refused(schema: Any, why: str) -> None:
    assert why in refusal(schema)


@pytest.mark.parametrize("levels", [11, 27, 40])
def test_doubling_references_are_refused_before_they_are_all_followed(levels: int) -> None:
    why, nodes = costly_refusal({"$ref": "#/$defs/d0", "$defs": doubled(levels)})
    assert "the JSON Schema is refused" in why
    assert nodes <= MAX_NODES + 1


@pytest.mark.parametrize(
    ("draft", "keyword"),
    [
        ("https://json-schema.org/draft/2020-12/schema", "$id"),
        ("http://json-schema.org/draft-07/schema#", "$id"),
        ("http://json-schema.org/draft-04/schema#", "id"),
    ],
)
def test_doubling_references_cannot_hide_behind_a_name_of_their_own(draft: str, keyword: str) -> None:
    """Inside a named schema, `#/definitions/d0` means the named schema's, which the walk from the root never sees."""
    definitions = doubled(27, references="#/definitions/d{}")
    hidden = {keyword: "http://example.com/a", "allOf": [{"$ref": "#/definitions/d0"}], "definitions": definitions}
    harmless: dict[str, Any] = {f"d{number}": {} for number in range(28)}
    schema = {"allOf": [{"$ref": "#/definitions/r"}], "definitions": {**harmless, "r": hidden}}
    assert "at the top only" in refusal({"$schema": draft, **schema})


def test_doubling_references_cannot_hide_behind_percent_signs() -> None:
    harmless = {f"%64{number}": True for number in range(28)}
    schema = {"$ref": "#/$defs/d0", "$defs": {**harmless, **doubled(27, references="#/$defs/%64{}")}}
    assert "the JSON Schema is refused" in refusal(schema)


@pytest.mark.parametrize("wrap", [lambda inner: {"items": inner}, lambda inner: {"anyOf": [inner]}])
def test_deep_schema_is_refused(wrap: Any) -> None:
    schema: Any = True
    for _ in range(70):
        schema = wrap(schema)
    assert "nested deeper than 64" in refusal(schema)


@pytest.mark.parametrize("pattern", ["^(a+)+$", "^(a|a?){50}$", "(a*)*b", "([ab]|a)*c{20}", r"^(\w+\s?)*$"])
def test_pattern_that_is_for_ever_to_an_engine_that_backtracks_is_matched_to_the_end(pattern: str) -> None:
    assert complaint({"properties": {"a": {"pattern": pattern}}}, {"a": "a" * 100_000 + "!"}).details == {"path": "/a"}


def _nested(keyword: str, levels: int) -> Any:
    return {"type": "string"} if not levels else {keyword: [_nested(keyword, levels - 1)] * 2}


def _unevaluated(levels: int) -> Any:
    return True if not levels else {"unevaluatedProperties": False, "anyOf": [_unevaluated(levels - 1)]}


@pytest.mark.parametrize(
    ("schema", "parameters"),
    [
        (items(_nested("anyOf", 9)), {"a": [1] * 100_000}),
        (items(_nested("oneOf", 9)), {"a": ["x"] * 100_000}),
        (items({"enum": [number + 0.5 for number in range(50_000)]}), {"a": [49_999.5] * 50_000}),
        (items({"enum": [[number] for number in range(50_000)]}), {"a": [[49_999]] * 20_000}),
        (items({"enum": [*map(str, range(50_000)), [1], 49_999]}), {"a": [49_999] * 50_000}),
        (_unevaluated(31), MANY),
        ({"properties": {"a": {"uniqueItems": True}}}, {"a": [2**63 + number for number in range(40_000)]}),
        ({"properties": {"a": {"uniqueItems": True}}}, {"a": [[2**62 + number] for number in range(40_000)]}),
        ({"patternProperties": {f"(a|b)*{number}": True for number in range(500)}}, MANY),
    ],
)
def test_costly_check_is_refused_before_it_is_made(schema: Any, parameters: Any) -> None:
    checker = compile_schema(schema, "here")
    checker._compiled = NeverAsked()
    with pytest.raises(InvalidParameters, match="too large to be checked"):
        checker.check(msgspec.Raw(msgspec.json.encode(parameters)))


@pytest.mark.parametrize(
    ("schema", "parameters"),
    [
        (items({"enum": [str(number) for number in range(7000)]}), {"a": ["6999"] * 10_000}),
        ({"properties": {"a": {"uniqueItems": True}}}, {"a": [str(number) for number in range(20_000)]}),
        ({"properties": {"a": {"uniqueItems": True}}}, {"a": [2**62 + number for number in range(400)]}),
        (items({"properties": {"a": {"type": "string"}}}), {"a": [{"a": "x", "b": 1}] * 10_000}),
    ],
)
def test_large_but_cheap_parameters_pass(schema: Any, parameters: Any) -> None:
    check(schema, parameters)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":' + b"9" * 100_000 + b"}",
        b'{"a":1e999}',
        b'{"a":"\\ud800"}',
        b'{"\\udfff":1}',
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":\xff}',
    ],
)
def test_what_json_or_python_cannot_hold_is_invalid(body: bytes) -> None:
    complaint({"properties": {"a": {"type": "integer"}}}, body)


def test_numbers_beyond_64_bits_are_compared_exactly() -> None:
    schema = {"properties": {"a": {"type": "integer", "maximum": 2**64}}}
    check(schema, {"a": 2**64})
    complaint(schema, {"a": 2**64 + 1})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
KEYWORDS = """
    $ref $defs $id id $schema allOf anyOf not if type enum const pattern items properties uniqueItems multipleOf
    minimum maxLength required format contains
"""
keywords = st.sampled_from(KEYWORDS.split())
schemas_of_strangers = st.recursive(
    json_values | st.sampled_from(["#", "#/$defs/a", "#/a%", "string", "object", "(", "email"]),
    lambda inner: st.dictionaries(keywords, inner, max_size=4) | st.lists(inner, max_size=3),
    max_leaves=20,
)


@settings(max_examples=300)
@given(schema=st.dictionaries(keywords, schemas_of_strangers, max_size=5), parameters=json_values)
def test_nothing_but_our_own_errors_is_raised(schema: dict[str, Any], parameters: Any) -> None:
    try:
        checker = compile_schema(schema, "here")
    except InvalidFrame:
        return
    try:
        checker.check(msgspec.Raw(msgspec.json.encode(parameters)))
    except InvalidParameters:
        return


@settings(max_examples=200)
@given(body=st.binary(max_size=40) | st.text(max_size=40).map(lambda text: b'{"a":' + text.encode() + b"}"))
def test_arbitrary_bytes_as_parameters_raise_our_own_error_only(body: bytes) -> None:
    checker = compile_schema({"properties": {"a": {"uniqueItems": True, "pattern": "a"}}}, "here")
    try:
        checker.check(msgspec.Raw(body))
    except InvalidParameters:
        return


def test_equal_schemas_are_compiled_once() -> None:
    known = Schemas()
    assert known.checker({"type": "object"}, "a") is known.checker({"type": "object"}, "b")


def test_schemas_used_longest_ago_are_forgotten() -> None:
    known = Schemas(max_compiled=3)
    first = known.checker({"minimum": 0}, "here")
    second = known.checker({"minimum": 1}, "here")
    known.checker({"minimum": 2}, "here")
    assert known.checker({"minimum": 0}, "here") is first
    known.checker({"minimum": 3}, "here")
    assert known.checker({"minimum": 0}, "here") is first
    assert known.checker({"minimum": 1}, "here") is not second


def test_pattern_that_is_slow_to_match_is_not_matched_against_much() -> None:
    """Such a pattern takes its size times the length: 2 s for these, in which no other client would be served."""
    schema = {"properties": {"bits": {"pattern": "[01]*1[01]{500}x"}}}
    assert "too large to be checked" in complaint(schema, {"bits": "01" * 450_000}).message
    check(schema, {"bits": "0" * 1000 + "1" + "0" * 500 + "x"})


def test_simple_patterns_are_matched_against_a_long_text() -> None:
    words = {f"w{number}": {"pattern": "^[a-z ]+$"} for number in range(10)}
    check({"properties": words}, {"w0": "many words " * 20_000})


def test_patterns_that_take_much_memory_are_bounded_together() -> None:
    """Each is 75 bytes of JSON, 4 milliseconds and a megabyte."""
    patterns = {f"p{number}": {"pattern": rf"\p{{L}}{{20}}x{number}"} for number in range(1000)}
    why, nodes = costly_refusal({"properties": patterns})
    assert "all its patterns together are too large" in why
    assert nodes < 2 * MAX_PATTERN_BYTES // PATTERN_BYTES_A_NODE  # all of them take thirty times as much


def test_schemas_with_large_patterns_are_not_all_kept() -> None:
    known = Schemas(max_pattern_bytes=2 * 1024 * 1024)
    patterns = [{"pattern": rf"^.{{1,200}}{number}$"} for number in range(20)]
    checkers = [known.checker(pattern, "here") for pattern in patterns]
    is_kept = [known.checker(patterns[number], "here") is checkers[number] for number in range(19, 11, -1)]
    assert is_kept == [True] * 7 + [False]


@pytest.mark.parametrize(
    "pattern",
    [r"^\d{4}-\d{2}-\d{2}$", r"^\w{1,64}$", r"^\S{1,64}$", "^.{1,1000}$", r"^[\w.%+-]+@[\w.-]+\.\w{2,}$", r"^\p{L}+$"],
)
def test_usual_patterns_are_taken(pattern: str) -> None:
    check({"properties": {"a": {"pattern": pattern}}}, {"b": 1})


# --- references that lead back ---

TREE: dict[str, Any] = {"properties": {"name": {"type": "string"}, "children": {"items": {"$ref": "#"}}}}
TWICE = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
EITHER: dict[str, Any] = {"anyOf": [TWICE, TWICE, {"type": "string"}]}


def nested(levels: int, leaf: Any) -> Any:
    for _ in range(levels):
        leaf = {"a": leaf}
    return leaf


def test_tree_is_checked_on_every_level_and_its_fault_is_named_by_its_place() -> None:
    check(TREE, {"name": "a", "children": [{"name": "b", "children": [{"name": "c"}]}]})
    error = complaint(TREE, {"name": "a", "children": [{"name": "b", "children": [{"name": 7}]}]})
    assert error.details == {"path": "/children/0/children/0/name"}


@pytest.mark.parametrize("levels", [1, 3, 16, 60])
def test_alternatives_that_lead_back_do_not_multiply_with_the_levels(levels: int) -> None:
    """To say what is wrong at 16 levels, the engine would take 19 seconds."""
    check(EITHER, nested(levels, "leaf"))
    assert complaint(EITHER, nested(levels, 7)).details == {"path": ""}


def test_both_branches_that_lead_back_are_checked_without_multiplying() -> None:
    branch = {"properties": {"a": {"$ref": "#"}}}
    both = {"allOf": [branch, branch]}
    check(both, nested(60, "leaf"))


def test_long_text_below_many_levels_is_not_copied_for_each() -> None:
    schema = {"type": "object", "properties": {"a": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}}
    assert "too deeply" in complaint(schema, nested(60, "x" * 500_000)).message


def test_references_that_lead_back_are_counted_once() -> None:
    kinds: dict[str, Any] = {f"k{number}": {"properties": {"a": {"$ref": "#/$defs/any"}}} for number in range(40)}
    either = {"anyOf": [{"$ref": f"#/$defs/{name}"} for name in kinds]}
    assert compile_schema({"$ref": "#/$defs/any", "$defs": {**kinds, "any": either}}, "here").nodes < 300


# --- patterns that look around ---

STRONG = r"^(?=.*\d)(?=.*[A-Z]).{8,}$"
TWO_LOOPS = "(?:(?=[a-z]*)[a-z])*(?:(?=[a-z]*)[a-z])*!"


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [(STRONG, "Password1", "password"), ("(?<!a)b", "cb", "ab"), (r"^(a+)-\1$", "aa-aa", "aa-a"), ("^(?!y)", "x", "y")],
)
def test_patterns_that_look_around_or_refer_back_are_matched(pattern: str, good: str, bad: str) -> None:
    schema = {"properties": {"p": {"pattern": pattern}}}
    check(schema, {"p": good})
    assert complaint(schema, {"p": bad}).details == {"path": "/p"}
    check({"patternProperties": {pattern: False}}, {bad: 1})
    complaint({"patternProperties": {pattern: False}}, {good: 1})


@pytest.mark.parametrize("around", ["not", "if"])
def test_match_that_takes_too_long_is_refused_whatever_stands_around_it(around: str) -> None:
    schema = {"properties": {"p": {around: {"pattern": TWO_LOOPS}, "then": False}}}
    assert "takes too long" in complaint(schema, {"p": "a" * 300}).message


@pytest.mark.parametrize(
    ("schema", "parameters"),
    [
        ({"pattern": TWO_LOOPS}, "a" * 5000),
        ({"items": {"pattern": TWO_LOOPS}}, ["a" * 200] * 100),
        ({"propertyNames": {"pattern": TWO_LOOPS}}, {"a" * 200 + str(number): 1 for number in range(100)}),
        ({"patternProperties": {TWO_LOOPS: True}}, {"a" * 200 + str(number): 1 for number in range(100)}),
        ({"anyOf": [{"pattern": TWO_LOOPS + str(number)} for number in range(60)]}, "a" * 400),
        ({"items": {"anyOf": [{"pattern": STRONG}, {"$ref": "#/properties/p"}]}}, [[["a" * 3000] * 10] * 10]),
        ({"items": {"items": {"pattern": STRONG}}}, [["a"] * 50] * 500),
    ],
)  # fmt: skip
def test_costly_matches_are_refused_before_they_are_made(schema: Any, parameters: Any) -> None:
    assert "too large to be checked" in complaint({"properties": {"p": schema}}, {"p": parameters}).message


@pytest.mark.parametrize(
    "parameters",
    [
        {"to": ["Someone8" * 4] * 100},
        {"to": ["Someone8"], "text": "many words " * 50_000},
        {"to": ["Someone8"], "rows": [{"a": "x" * 100}] * 5000},
    ],
)
def test_long_texts_beside_those_that_meet_such_a_pattern_cost_nothing(parameters: Any) -> None:
    check({"properties": {"to": {"items": {"pattern": STRONG}}, "rows": {"items": {"type": "object"}}}}, parameters)


def test_values_that_look_like_schemas_are_data() -> None:
    data = {"$ref": "http://example.com/a", "$id": "urn:x", "$dynamicRef": "#x"}
    for keyword in ("default", "const", "examples", "enum", "x-of-tomorrow"):
        value = [data] if keyword in ("examples", "enum") else data
        check({"properties": {"a": {keyword: value}}}, {"a": data})
    check({"properties": {"$ref": {"type": "string"}, "$id": {"type": "string"}}}, {"$ref": "a", "$id": "b"})


def test_data_that_a_reference_makes_a_schema_is_refused_as_one() -> None:
    hidden = {"$ref": "#/default/0", "default": [{"$id": "http://example.com/a", "$ref": "#/definitions/d0"}]}
    assert "at the top only" in refusal(hidden | {"definitions": doubled(27, references="#/definitions/d{}")})
    assert "must stay within the schema" in refusal({"$ref": "#/const", "const": {"$ref": "file:///etc/passwd"}})


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"minimum": 1, "exclusiveMinimum": True}, 2, 1),
        ({"minimum": 1, "exclusiveMinimum": False}, 1, 0),
        ({"maximum": 9, "exclusiveMaximum": True}, 8, 9),
        ({"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 1, "exclusiveMinimum": True}, 2, 1),
        ({"type": "string", "nullable": True}, None, 7),
        ({"type": "string", "enum": ["a"], "nullable": True}, None, "b"),
        ({"nullable": True, "allOf": [{"type": "string"}]}, None, 7),
        ({"type": "string", "nullable": False}, "a", None),
        ({"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "string", "nullable": True}, "a", None),
        ({"type": "array", "items": {"type": "object", "properties": {"nullable": {"type": "integer"}}}}, [{}], {}),
    ],
)
def test_words_of_openapi_are_understood(schema: Any, good: Any, bad: Any) -> None:
    top = {"$schema": schema["$schema"]} if "$schema" in schema else {}
    inner = {name: value for name, value in schema.items() if name != "$schema"}
    check({**top, "properties": {"a": inner}}, {"a": good})
    complaint({**top, "properties": {"a": inner}}, {"a": bad})
