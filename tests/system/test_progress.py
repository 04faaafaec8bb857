"""Laws of the line for people, on a terminal and elsewhere."""

import io
import re
import shutil

import pytest

from block_recurrent.system import progress
from block_recurrent.system.progress import ProgressBoard, ProgressLine, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when told to."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0, "0s"),
        (0.4, "0s"),
        (59.4, "59s"),
        (59.6, "1m 00s"),
        (93, "1m 33s"),
        (3599, "59m 59s"),
        (3599.5, "1h 00m"),
        (3660, "1h 01m"),
        (100 * 3600 + 59, "100h 00m"),
    ],
)
def test_durations_have_two_units(seconds, text):
    assert duration(seconds) == text


def test_a_terminal_shows_one_line_that_is_rewritten(clock):
    stream = Terminal()
    line = ProgressLine(stream)
    for text in ("a long line", "short", "last"):
        line.show(text)
    assert stream.getvalue().split("\r") == ["", "a long line", "short      ", "last "]
    line.end()
    assert stream.getvalue().endswith("last \n")


def test_an_end_on_a_terminal_covers_the_line_and_leaves_it(clock):
    stream = Terminal()
    line = ProgressLine(stream)
    line.show("in progress")
    line.end("done")
    line.show("next")
    assert stream.getvalue() == "\rin progress\rdone       \n\rnext"


def test_elsewhere_lines_are_ten_seconds_apart(clock):
    stream = io.StringIO()
    line = ProgressLine(stream)
    for second in range(25):
        clock[0] = 1000.0 + second
        line.show(f"second {second}")
    assert stream.getvalue() == "second 0\nsecond 10\nsecond 20\n"


def test_elsewhere_an_end_is_always_written(clock):
    stream = io.StringIO()
    line = ProgressLine(stream)
    line.show("first")
    line.end("result")
    line.end()
    assert stream.getvalue() == "first\nresult\n"


def test_the_first_run_says_that_it_compiles_and_how_long_it_took(clock):
    stream = io.StringIO()
    line = ProgressLine(stream)
    for _ in range(2):
        line.compiling("the step")
        clock[0] += 93
        line.compiled("the step")
    line.compiled("another step")
    assert (
        stream.getvalue() == "compiling the step ...\ncompiled the step and ran it once: 1m 33s\n"
    )


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_quiet_writes_nothing(kind, clock):
    stream = kind()
    line = ProgressLine(stream, quiet=True)
    line.show("text", always=True)
    line.end("text")
    line.end()
    assert stream.getvalue() == ""


def test_standard_error_is_the_default(clock, capsys):
    ProgressLine().show("text")
    assert capsys.readouterr() == ("", "text\n")


def test_a_line_that_nobody_reads_any_more_ends_no_work():
    class Closed(Terminal):
        def write(self, text):
            raise BrokenPipeError

    line = ProgressLine(Closed())
    line.show("in progress")
    line.end("done")


def test_without_standard_error_nothing_is_written(monkeypatch):
    """As where a shell closed it before the program began."""
    monkeypatch.setattr("sys.stderr", None)
    line = ProgressLine()
    line.show("text", always=True)
    line.end("text")


def screen(output: str) -> list[str]:
    """The lines of a terminal after some output."""
    lines = [""]
    for part in re.split(r"(\x1b\[\d+A\x1b\[J|\n)", output):
        if part == "\n":
            lines.append("")
        elif part.startswith("\x1b"):
            del lines[-1 - int(part[2 : part.index("A")]) :]
            lines.append("")
        else:
            lines[-1] += part
    return lines[:-1]


def test_a_terminal_shows_a_line_for_each_piece_of_work_and_what_stays_above(clock):
    stream = Terminal()
    board = ProgressBoard(["a", "long"], stream)
    board.show("a", "step 1")
    board.show("a", "step 2")
    assert screen(stream.getvalue()) == ["a     step 2", "long  .", "0 of 2 done"]
    board.say("a warning")
    board.end("a", "2.5 bits", "3m 00s")
    board.show("long", "x" * 500)
    *shown, cut, below = screen(stream.getvalue())
    assert shown == ["a warning", "a     2.5 bits"] and below == "1 of 2 done, about 3m 00s left"
    assert cut == ("long  " + "x" * 500)[: shutil.get_terminal_size().columns - 1]


def test_elsewhere_a_board_prints_what_has_ended_and_once_a_minute_what_has_not(clock):
    stream = io.StringIO()
    board = ProgressBoard(["a", "b", "c"], stream)
    board.show("a", "step 1")
    board.end("b", "2.5 bits", "9s")
    clock[0] += 60
    board.show("a", "step 2")
    board.show("a", "step 3")
    board.end("a", "2.4 bits")
    expected = "b: 2.5 bits, about 9s left\n1 of 3 done, about 9s left\n  a: step 2\na: 2.4 bits\n"
    assert stream.getvalue() == expected
