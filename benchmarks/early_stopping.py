"""What ASHA saves: the same trials with and without it, the steps that were trained and the best that was found.

python -m benchmarks.early_stopping --store outputs/stores/synthetic/synthetic [--trials 12] [--steps 270] [--seeds 3]

Both sweeps search the learning rate and the warm-up of `pretrain_synthetic` with `--sampler random` and one seed, so
they try the same values in the same order, one at a time, and ASHA can only stop some of them. Without it the best
value may be lower by luck of the last validation: the value of a trial is its best one on both sides.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import tempfile
from statistics import median
from typing import Any

from benchmarks.results import record


def sweep(own: argparse.Namespace, seed: int, scheduler: str) -> list[dict[str, Any]]:
    """The trials of one sweep, as `--json` has them."""
    from jobs import tune

    rung = max(own.steps // 9, 1)
    name = f"{scheduler}-{seed}"
    words = ["pretrain_synthetic", "--store", f"synthetic={own.store}", "--space", "lr_and_warmup", "--name", name]
    words += ["--trials", str(own.trials), "--sampler", "random", "--seed", str(seed), "--concurrency", "1"]
    words += ["--steps", str(own.steps), "--schedule.total", str(own.steps), "--schedule.warmup", str(rung)]
    words += ["--evaluation.every", str(rung), "--evaluation.limit", "32", "--checkpoint.every", str(rung)]
    words += ["--scheduler", scheduler, "--first-rung", str(rung), "--tracking.kind", "none"]
    facts = os.path.join(os.environ["HERO_HOME"], f"{name}.json")
    with contextlib.redirect_stdout(io.StringIO()):
        if tune.main([*words, "--json", facts]):
            raise RuntimeError(f"sweep {name} failed")
    with open(facts, encoding="utf-8") as stream:
        return list(json.load(stream)["trials"])


def trained(trials: list[dict[str, Any]]) -> int:
    """Steps over all trials."""
    return sum(max(map(int, trial["rungs"]), default=0) for trial in trials)


def best(trials: list[dict[str, Any]]) -> tuple[float, int]:
    """Value and number of the best trial that finished."""
    return min((trial["results"][0], trial["number"]) for trial in trials if trial["state"] == "finished")


def main() -> None:
    """Measure and record a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--steps", type=int, default=270)
    parser.add_argument("--seeds", type=int, default=3)
    own = parser.parse_args()
    own.store = os.path.abspath(own.store)
    saved, found = [], []
    with tempfile.TemporaryDirectory(prefix="hero-asha-") as home:
        os.environ["HERO_HOME"] = home
        for seed in range(own.seeds):
            whole, stopped = (sweep(own, seed, scheduler) for scheduler in ("none", "asha"))
            assert [trial["values"] for trial in whole] == [trial["values"] for trial in stopped]
            saved.append(1 - trained(stopped) / trained(whole))
            (least, first), (value, number) = best(whole), best(stopped)
            same = "the same trial" if first == number else f"trial {number} and not {first}"
            found.append(f"{value:.4g} against {least:.4g} ({same})")
    record(
        f"ASHA against every trial to the end: {own.trials} trials of {own.steps} steps, factor 3, one at a time",
        f"steps saved {median(saved):.0%} ({min(saved):.0%}-{max(saved):.0%} over {own.seeds} seeds); "
        f"best val/loss with and without: {'; '.join(found)}",
    )


if __name__ == "__main__":
    main()
