import io

import pytest

from hero_model.config import base
from hero_platform import telemetry
from hero_platform.telemetry import Progress, duration, peak_flops, row_flops


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    fake = Clock()
    monkeypatch.setattr(telemetry, "time", fake)
    return fake


def test_flops_of_the_paper_model():
    """hero.md 7.1: about 85 MFLOP per token forward, 42.5 M weights."""
    assert row_flops(base()) == 3 * 2 * 42_467_328


def test_peaks():
    assert peak_flops("NVIDIA H100 80GB HBM3") == peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("NVIDIA L40S") == 362e12
    assert peak_flops("Some Other Card") is None


def test_line_tells_rate_time_left_and_losses(clock):
    stream = io.StringIO()
    progress = Progress("run", start=100, total=1000, stream=stream)
    progress.update(101, {"train/loss/mlm/tv": 3.14159, "train/loss/vsm/tv/span": 1.0})
    clock.now += 50
    progress.update(201, {"train/loss/fom/tv": 2.0})
    assert stream.getvalue().splitlines() == [
        "run: step 101 of 1,000 | loss mlm 3.142",
        "run: step 201 of 1,000 | 2.00 steps/s, 7 min left | loss fom 2.000 mlm 3.142",
    ]


def test_lines_are_rare_without_a_terminal_and_the_last_is_shown(clock):
    stream = io.StringIO()
    with Progress("run", start=0, total=35, stream=stream) as progress:
        for step in range(1, 36):
            clock.now += 1
            progress.update(step, {})
    steps = [int(line.split()[2]) for line in stream.getvalue().splitlines()]
    assert steps == [1, 11, 21, 31, 35]


def test_one_line_on_a_terminal(clock):
    stream = Terminal()
    with Progress("run", start=0, total=100, stream=stream) as progress:
        for step in (1, 2, 3):
            clock.now += 1
            progress.update(step, {})
    shown = stream.getvalue()
    assert shown.count("\n") == 1 and shown.endswith("\n")
    assert shown.split("\r\033[K")[1:] == [
        "run: step 1 of 100",
        "run: step 2 of 100 | 1.00 steps/s, 98 s left",
        "run: step 3 of 100 | 1.00 steps/s, 97 s left\n",
    ]


def test_going_back_to_a_checkpoint_starts_the_rate_again(clock):
    stream = io.StringIO()
    progress = Progress("run", start=40, total=100, stream=stream)
    for seconds, step in ((0, 50), (20, 60), (100, 41), (20, 51)):
        clock.now += seconds
        progress.update(step, {})
    assert [line.split(" | ")[1:] for line in stream.getvalue().splitlines()] == [
        [],
        ["0.50 steps/s, 80 s left"],
        [],
        ["0.50 steps/s, 98 s left"],
    ]


def test_durations():
    assert [duration(s) for s in (5, 99, 100, 5940, 12_000)] == ["5 s", "99 s", "2 min", "99 min", "3 h 20 min"]
