"""The number of workers changes nothing but rounding (design D4): the same run at N = 0, 1, 2 and 4."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.slow

STEPS = ["--steps", "20", "--tracking.kind", "none", "--evaluation.every", "10", "--evaluation.limit", "8"]
NO_DROPOUT = ["--model.dropout", "0", "--model.attention-dropout", "0"]


def largest_difference(one: dict[Any, float], other: dict[Any, float]) -> float:
    """Relative, over every loss, metric, gradient norm and fingerprint of every step."""
    assert one.keys() == other.keys() and len({step for step, _ in one}) == 20
    return max(abs(one[pair] - other[pair]) / max(abs(one[pair]), 1e-12) for pair in one)


RUNS = [("fp32", (1, 2), 1e-5), pytest.param("fp64", (2, 4), 1e-10, marks=pytest.mark.chaos)]


@pytest.mark.ray
@pytest.mark.parametrize(("precision", "counts", "tolerance"), RUNS)
def test_worker_count_is_rounding(ray_session, runs, precision: str, counts: tuple[int, ...], tolerance: float):
    settings = [*STEPS, *NO_DROPOUT, "--precision", precision]
    alone = runs.train("alone", *settings)
    expected = runs.record("alone")
    for count in counts:
        result = runs.train(f"with{count}", *settings, "--scale.num-workers", str(count))
        assert result["status"] == "finished" and result["step"] == 20
        difference = largest_difference(expected, runs.record(f"with{count}"))
        if count == 1:
            assert difference == 0 and result["weights_digest"] == alone["weights_digest"]
        else:
            assert 0 < difference <= tolerance  # 0 would mean that nothing was shared out
