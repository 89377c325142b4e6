import msgspec

from agentbridge import output


def test_columns_are_aligned() -> None:
    shown = output.table(["CLIENT", "USER"], [["c1", "ann"], ["a-long-id", ""]])
    assert shown.split("\n")[1:] == ["c1         ann", "a-long-id"]
    assert "CLIENT     USER" in shown


def test_stranger_s_escape_sequences_do_not_reach_the_terminal() -> None:
    row = output.table(["APP"], [["\x1b[31mred\x07\x9b2J\n"]]).split("\n")[1]
    assert row == r"\x1b[31mred\x07\x9b2J\n"


def test_readable_json_is_spread_and_safe() -> None:
    assert output.readable({"a": "ü\x9b"}) == '{\n  "a": "ü\\x9b"\n}'


def test_one_line_json_keeps_its_value_on_one_line() -> None:
    assert output.one_line({"a": msgspec.Raw('[1,\n "ü"]'.encode()), "b": "x y"}) == '{"a":[1,"ü"],"b":"x y"}'


def test_urls_are_shown_without_passwords() -> None:
    assert output.without_password("nats://user:secret@a:4222, tls://b:4222") == "nats://a:4222, tls://b:4222"
