import json
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from agentbridge.cli import output


def test_columns_are_aligned() -> None:
    shown = output.table(["CLIENT", "USER"], [["c1", "ann"], ["a-long-id", ""]])
    assert shown.split("\n")[1:] == ["c1         ann", "a-long-id"]
    assert "CLIENT     USER" in shown


def test_stranger_s_escape_sequences_do_not_reach_the_terminal() -> None:
    row = output.table(["APP"], [["\x1b[31mred\x07\x9b2J\n"]]).split("\n")[1]
    assert row == r"\x1b[31mred\x07\x9b2J\n"


def test_readable_json_is_spread_and_safe() -> None:
    assert output.readable({"a": "ü\x9b"}) == '{\n  "a": "ü\\u009b"\n}'


def test_one_line_json_keeps_its_value_on_one_line() -> None:
    assert output.one_line({"a": msgspec.Raw('[1,\n "ü"]'.encode()), "b": "x y"}) == '{"a":[1,"ü"],"b":"x y"}'


@given(value=st.recursive(st.text(max_size=8), lambda inner: st.dictionaries(st.text(max_size=4), inner, max_size=3)))
def test_json_is_the_same_value_and_cannot_rewrite_what_a_terminal_shows(value: Any) -> None:
    for shown in (output.one_line(value), output.readable(value)):
        assert all(line.isprintable() for line in shown.split("\n"))
        assert json.loads(shown) == value


def test_bidirectional_and_line_ending_characters_are_escaped_in_json() -> None:
    shown = output.one_line(["\x1b[2J", "\x9b", "\u202egnp.exe", "\u2066", "a\u2028b", "\U000e0041", "\x7f"])
    assert shown == (r'["\u001b[2J","\u009b","\u202egnp.exe","\u2066","a\u2028b","\udb40\udc41","\u007f"]')


def test_urls_are_shown_without_passwords() -> None:
    assert output.without_password("nats://user:secret@a:4222, tls://b:4222") == "nats://a:4222, tls://b:4222"
