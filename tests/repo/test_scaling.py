"""docs/scaling.md holds what benchmarks/scaling.py computes."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCALING = runpy.run_path(str(ROOT / "benchmarks" / "scaling.py"))


def test_the_page_holds_the_tables():
    page = (ROOT / "docs" / "scaling.md").read_text("utf-8")
    for table in SCALING["report"](price=4.0).split("\n\n"):
        assert table in page, f"docs/scaling.md does not hold\n{table}"


def test_more_gpus_are_quicker_and_dearer():
    seconds = [SCALING["step_s"](gpus) for gpus in (1, 8, 64)]
    assert sorted(seconds, reverse=True) == seconds
    assert seconds[0] < 8 * seconds[1] < 64 * seconds[2]
