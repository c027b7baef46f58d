"""docs/scaling.md holds what benchmarks/scaling.py computes."""

from __future__ import annotations

from pathlib import Path

from benchmarks import scaling

PAGE = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text("utf-8")


def test_the_page_holds_the_tables():
    for table in scaling.report(price=4.0).split("\n\n"):
        assert table in PAGE, f"docs/scaling.md does not hold\n{table}"


def test_more_gpus_are_quicker_and_dearer():
    seconds = [scaling.step_s(gpus) for gpus in (1, 8, 64)]
    assert sorted(seconds, reverse=True) == seconds
    assert seconds[0] < 8 * seconds[1] < 64 * seconds[2]
