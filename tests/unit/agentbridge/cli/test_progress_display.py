"""Progress as a line for people."""

import pytest

from agentbridge.cli.progress_display import described
from protocol.messages import ProgressMessage


def line(progress: float, total: float | None = None, message: str | None = None, columns: int = 79) -> str:
    return described(ProgressMessage(request_id="r", seq=1, progress=progress, total=total, message=message), columns)


@pytest.mark.parametrize(
    ("progress", "total", "shown"),
    [
        (0, 8, "[------------------------]   0%"),
        (2, 8, "[######------------------]  25%"),
        (8, 8, "[########################] 100%"),
        (9, 8, "[########################] 100%"),
        (-1, 8, "[------------------------]   0%"),
        (1e300, 1e-300, "[########################] 100%"),
        (0.5, None, "0.5"),
        (1234567, 0, "1.23457e+06"),
        (3, -1, "3"),
    ],
)
def test_bar_is_as_long_as_the_part_that_is_done(progress: float, total: float | None, shown: str) -> None:
    assert line(progress, total) == shown


def test_message_stands_beside_it_and_cannot_move_the_cursor() -> None:
    assert line(1, None, "a\r\n\x1b[2Jb") == r"1  a\r\n\x1b[2Jb"


@pytest.mark.parametrize(("columns", "shown"), [(5, "1  ab"), (6, "1  ab"), (7, "1  ab中"), (0, "")])
def test_line_fits_into_the_terminal(columns: int, shown: str) -> None:
    assert line(1, None, "ab中c", columns) == shown
