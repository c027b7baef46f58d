"""Does pre-training pay on the synthetic corpus, and for the right reason?

For each seed (another corpus, model and order): moment retrieval fine-tuned from pre-training and from scratch with
the same recipe, steps, batch and seed; from scratch at two more learning rates, so that the comparison is with its
best; and the control: pre-training on a corpus whose subtitles come from other videos, so that words and frames tell
nothing about each other. If the gain came from anything but that relation, the control would keep it.

Run it as `python -m benchmarks.learning`; a seed takes about five minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from hero_platform import files, home
from hero_platform.report.table import Line, markdown
from jobs import build_store, evaluate, train
from jobs.demo import CORPUS_FLAGS, SPLIT

RATES = ("3e-3", "6e-3", "1e-2")  # the recipe's own is the second
SHOWN = ("vcmr_r1_iou05", "vcmr_r10_iou05", "vcmr_r1_iou07", "vcmr_r10_iou07", "svmr_r1_iou07", "vr_r1")


def main(argv: Sequence[str] | None = None) -> None:
    """Train, evaluate and print one table per seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3], help="settings were chosen on seed 0")
    parser.add_argument("--home", help="keep the runs here (default: a temporary folder)")
    own = parser.parse_args(argv)
    with contextlib.ExitStack() as stack:
        os.environ["HERO_HOME"] = own.home or stack.enter_context(tempfile.TemporaryDirectory(prefix="hero-learning-"))
        for seed in own.seeds:
            print(f"\nseed {seed}\n\n{markdown(_lines(seed), SHOWN)}", flush=True)


def _lines(seed: int) -> list[Line]:
    """Every start of one seed, evaluated on the same queries."""
    real, shuffled = _store(seed, "real"), _store(seed, "shuffled", "--shuffle-subtitles")
    starts = {"pre-trained": _pretrain(seed, "real", real), "shuffled subtitles": _pretrain(seed, "shuffled", shuffled)}
    lines = []
    for label, start in starts.items():
        lines.append(_finetune(label, f"{start}-tuned", real, seed, "--init-from", start))
    for rate in RATES:
        lines.append(_finetune(f"from scratch, lr {rate}", f"scratch-{rate}-{seed}", real, seed, "--optim.lr", rate))
    return lines


def _store(seed: int, kind: str, *more: str) -> str:
    path = files.join(home.root(), "stores", f"{kind}-{seed}")
    _run(build_store.main, "synthetic", "--out", path, "--seed", str(seed), *CORPUS_FLAGS, *more)
    return path


def _pretrain(seed: int, kind: str, store: str) -> str:
    name = f"pretrain-{kind}-{seed}"
    _train("pretrain_synthetic", name, store, seed)
    return name


def _finetune(label: str, name: str, store: str, seed: int, *more: str) -> Line:
    _train("finetune_synthetic", name, store, seed, *more)
    result = files.join(home.run_dir(name), "evaluation.json")
    asked = ("--corpus", "synthetic", "--split", SPLIT, "--store", store)
    _run(evaluate.main, "--run", name, *asked, "--json", result)
    found: dict[str, Any] = files.read_json(result)
    return Line(label, found["metrics"], found["intervals"])


def _train(recipe: str, name: str, store: str, seed: int, *more: str) -> None:
    settings = ("--seed", str(seed), "--tracking.kind", "none", "--evaluation.every", "0")
    _run(train.main, recipe, "--name", name, "--store", f"synthetic={store}", *settings, *more)


def _run(job: Callable[[Sequence[str]], int], *arguments: str) -> None:
    """Run a job quietly; stop with what it said if it fails."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = job(arguments)
    if code:
        raise SystemExit(said.getvalue())


if __name__ == "__main__":
    main()
