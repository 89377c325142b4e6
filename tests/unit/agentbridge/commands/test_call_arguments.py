import click
import pytest

from agentbridge.commands.call import parse_rest, parse_words
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
        (["add", "title"], "is not a parameter"),
        (["=x"], "is not a parameter"),
        ([":=1"], "is not a parameter"),
        (["count:=one"], "is not JSON"),
        (["deep:=" + "[" * 100_000], "is not JSON"),
        (["a=1", "a:=2"], "given twice"),
    ],
)
def test_wrong_parameter_is_explained(rest: list[str], sentence: str) -> None:
    with pytest.raises(click.UsageError, match=sentence):
        parse_rest(rest)


def test_first_word_is_the_client_unless_the_user_is_named() -> None:
    assert parse_words(["c1", "add", "a=1"], None, None) == ("c1", "add", ["a=1"])
    assert parse_words(["add", "a=1"], "ann", "todo") == (None, "add", ["a=1"])
    assert parse_words(["list", "clear"], "ann", None) == (None, "list", ["clear"])


@pytest.mark.parametrize(
    ("words", "user", "app", "sentence"),
    [
        (["add"], None, None, "write CLIENT TARGET"),
        (["add", "title=x"], None, None, "write CLIENT TARGET"),
        (["title=x"], "ann", None, "--user USER TARGET"),
        (["c1", "add"], None, "todo", "--app goes with --user"),
    ],
)
def test_call_that_names_nobody_or_nothing_is_explained(
    words: list[str], user: str | None, app: str | None, sentence: str
) -> None:
    with pytest.raises(click.UsageError, match=sentence):
        parse_words(words, user, app)
