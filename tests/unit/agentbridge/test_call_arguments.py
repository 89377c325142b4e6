import click
import pytest

from agentbridge.commands.call import parse_rest
from protocol import codec


def parsed(*rest: str) -> tuple[str | None, object]:
    action, parameters = parse_rest(rest)
    return action, codec.decode_value(parameters)


def test_first_word_without_an_equals_sign_is_the_action() -> None:
    assert parsed("clear") == ("clear", {})
    assert parsed("clear", "all:=true") == ("clear", {"all": True})
    assert parsed("title=Milk") == (None, {"title": "Milk"})
    assert parsed() == (None, {})


def test_value_is_text_or_json() -> None:
    given = ["text=1", "number:=1", 'list:=["a"]', "null:=null", "empty=", "equation=a=b", "url=http://a:=b"]
    assert parsed(*given)[1] == {
        "text": "1",
        "number": 1,
        "list": ["a"],
        "null": None,
        "empty": "",
        "equation": "a=b",
        "url": "http://a:=b",
    }


@pytest.mark.parametrize(
    ("rest", "sentence"),
    [
        (["add", "title"], "is no parameter"),
        (["=x"], "is no parameter"),
        ([":=1"], "is no parameter"),
        (["count:=one"], "is no JSON"),
        (["deep:=" + "[" * 100_000], "is no JSON"),
        (["a=1", "a:=2"], "given twice"),
    ],
)
def test_wrong_parameter_is_explained(rest: list[str], sentence: str) -> None:
    with pytest.raises(click.UsageError, match=sentence):
        parse_rest(rest)
