"""What a person sees while waiting: bars on a terminal, a line now and then elsewhere, nothing when quiet."""

from __future__ import annotations

import io
import sys

import pytest

from anomaly_cli.commands import console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def report_three_images(quiet: bool) -> None:
    with console.progress(quiet) as progress:
        for done in range(1, 4):
            progress("scoring", done, 3)
        progress("drawing", 1, 3)


def test_quiet_progress_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    report_three_images(quiet=True)

    assert capsys.readouterr() == ("", "")


def test_short_work_without_a_terminal_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    report_three_images(quiet=False)

    assert capsys.readouterr() == ("", "")


def test_long_work_without_a_terminal_gives_a_line_every_few_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr("anomaly_cli.commands.console.time.monotonic", lambda: next(clock))

    with console.progress(quiet=False) as progress:
        for done in range(1, 9):
            progress("scoring", done, 100)
        progress("drawing", 1, 100)

    assert capsys.readouterr().err.splitlines() == [
        "scoring: 4 of 100, 0.7/s, 144 s left",
        "scoring: 7 of 100, 0.6/s, 159 s left",
    ]


def test_on_a_terminal_there_are_bars_that_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")

    report_three_images(quiet=False)

    assert "scoring" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[2K")  # the last line is erased


@pytest.mark.parametrize(("count", "text"), [(0, "0 files"), (1, "1 file"), (2, "2 files")])
def test_a_count_of_one_is_singular(count: int, text: str) -> None:
    assert console.plural(count, "file") == text


@pytest.mark.parametrize(
    ("text", "encoding", "shown"),
    [
        ("plain é ≥ 🦊", "utf-8", "plain é ≥ 🦊"),
        ("é ≥", "ascii", r"\xe9 \u2265"),
        ("é ≥", None, "é ≥"),
        ("bad \udcff", "utf-8", r"bad \udcff"),
        ("a\nb\rc\td\x1b[0m\x7f\x9b", "utf-8", r"a\x0ab\x0dc\x09d\x1b[0m\x7f\x9b"),
    ],
)
def test_what_cannot_be_shown_on_one_line_is_escaped(text: str, encoding: str | None, shown: str) -> None:
    assert console.escaped(text, encoding) == shown
