"""Room for trials: how many fit, and the arithmetic when they do not."""

from __future__ import annotations

import pytest

from hero_platform.tune.need import Need


@pytest.mark.parametrize(
    ("need", "asked", "left", "cpus", "gpus", "expected"),
    [
        (Need(1, 0.0), 0, 9, 4, 0, 4),
        (Need(1, 0.0), 0, 2, 4, 0, 2),
        (Need(2, 0.0), 1, 9, 5, 0, 1),
        (Need(1, 0.1), 0, 99, 64, 1, 10),
        (Need(1, 0.25), 0, 99, 64, 2, 8),
        (Need(4, 4.0), 0, 99, 64, 8, 2),
    ],
)
def test_as_many_as_fit(need, asked, left, cpus, gpus, expected):
    assert need.at_once(asked, left, cpus, gpus) == expected


@pytest.mark.parametrize(
    ("need", "asked", "words"),
    [
        (Need(8, 0.0), 0, "a trial takes 8 CPUs; there are 4 CPUs and 1 GPU"),
        (Need(1, 2.0), 0, "a trial takes 1 CPU and 2 GPUs; there are 4 CPUs and 1 GPU"),
        (
            Need(1, 0.5),
            3,
            "a trial takes 1 CPU and 0.5 GPUs, 3 at once take 3 CPUs and 1.5 GPUs; there are 4 CPUs and 1 GPU: "
            "use --concurrency 2 or less",
        ),
    ],
)
def test_what_does_not_fit_is_said_with_the_arithmetic(need, asked, words):
    with pytest.raises(ValueError) as refused:
        need.at_once(asked, 9, 4, 1)
    assert str(refused.value) == words
