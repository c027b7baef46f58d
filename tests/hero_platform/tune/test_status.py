"""What a sweep says while it runs: on a terminal, as a terminal shows it, and in a log."""

from __future__ import annotations

import io
import re

import pytest

from hero_platform.tune import status as module
from hero_platform.tune.status import Cost, Status, trials_table
from hero_platform.tune.study import Objective, Row

UP = (Objective("val/r1", "max"),)


def row(number: int, state: str, *results: float, rungs: dict[int, float] | None = None, **more) -> Row:
    values = {"optim.lr": 1e-3 * (number + 1)}
    reason = more.pop("reason", "")
    return Row(number, state, values, results, rungs or {}, reason, more.pop("slot", number), **more)


class Terminal(io.StringIO):
    """Keeps what is written; `screen` is what a terminal shows of it."""

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        lines = [""]
        for part in re.split(r"(\033\[\d*[FJ]|\n)", self.getvalue()):
            if part == "\n":
                lines.append("")
            elif up := re.fullmatch(r"\033\[(\d+)F", part):
                at = len(lines) - 1 - int(up[1])
                assert at >= 0, "above the top"
            elif part == "\033[J":
                lines = [*lines[:at], ""]
            else:
                lines[-1] += part
        return lines[:-1]


@pytest.fixture
def always(monkeypatch):
    """No pause between two redraws."""
    monkeypatch.setattr(module, "REDRAW_EVERY_S", 0.0)
    monkeypatch.setenv("COLUMNS", "100")


def test_a_terminal_shows_one_table_and_each_end_once(always):
    terminal = Terminal()
    shown = Status("s", 4, UP, Cost("GPU-hours", 0.5, 1.5), terminal)
    rows = [row(0, "running"), row(1, "running", 0.3, rungs={10: 0.3})]
    shown.show(rows, 2)
    assert [line.split("|")[0].strip() for line in terminal.screen()][:1] == ["s: 0 of 4 trials"]
    for _ in range(3):
        shown.show(rows, 2)
    assert len(terminal.screen()) == 1 + 2 + 2, "the status line, the head with its rule, two trials"
    rows = [row(0, "finished", 0.41, rungs={10: 0.2, 20: 0.41}), *rows[1:]]
    shown.ended(rows[0])
    assert terminal.screen() == ["s: trial 0 finished 0.41"]
    rows.append(row(2, "running"))
    shown.show(rows, 2)
    screen = terminal.screen()
    assert screen[0] == "s: trial 0 finished 0.41" and "1 of 4 trials" in screen[1] and "1.5 GPU-hours" in screen[1]
    assert "best 0.41 (trial 0)" in screen[1] and "left" in screen[1]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in screen[2:]]
    assert cells[0] == ["trial", "state", "step", "val/r1", "optim.lr"]
    assert [each[:4] for each in cells[2:]] == [
        ["0", "finished", "20", "0.41"],
        ["1", "running", "10", "0.3"],
        ["2", "running", "-", "-"],
    ]


def test_lines_wider_than_the_terminal_are_cut(always, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    terminal = Terminal()
    Status("a-long-name", 4, UP, Cost("CPU-hours", 1.0, 0.0), terminal).show([row(0, "running")], 1)
    assert {len(line) for line in terminal.screen()} == {20}


def test_a_log_has_a_line_now_and_then():
    log = io.StringIO()
    shown = Status("s", 3, UP, Cost("CPU-hours", 1.0, 0.0), log)
    rows = [row(0, "pruned", 0.1, reason="stopped after step 10"), row(1, "failed", reason="no such store")]
    for _ in range(50):
        shown.show(rows, 1)
    for each in rows:
        shown.ended(each)
    assert log.getvalue().splitlines() == [
        "s: 2 of 3 trials | 1 running | 1 pruned | 1 failed | 0 CPU-hours",
        "s: trial 0 pruned 0.1: stopped after step 10",
        "s: trial 1 failed: no such store",
    ]


def test_the_best_of_more_trials_than_fit_come_first():
    rows = [row(number, "finished", float(number), rungs={5: float(number)}) for number in range(12)]
    rows.append(row(12, "running", slot=0, parent=11, forked_at=5))
    table = trials_table(rows, UP)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert [each[0] for each in cells[2:-1]] == [str(number) for number in range(11, 1, -1)]
    assert cells[0][4] == "from" and cells[2][4] == "-" and table.splitlines()[-1] == "... and 3 more"
