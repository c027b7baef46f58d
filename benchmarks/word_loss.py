"""Memory of MLM's loss: a chunk of rows at a time against scores of all rows, each in a process of its own.

python -m benchmarks.word_loss [--rows 1250 5000]

1,250 rows are the predicted tokens of 32 TV-like videos, 5,000 those of 128. The hidden width is 64, so that what is
measured is scores: forward and backward of the head's last product and the cross entropy, in fp32.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

import torch
import torch.nn.functional as F

from benchmarks.results import record
from hero_model.nn.losses import token_cross_entropy
from hero_model.nn.word_loss import word_cross_entropy

WIDTH, WORDS = 64, 50272


def peak_mb(chunked: bool, rows: int) -> float:
    """Largest resident memory above what lay there before the loss, in MB; once a process."""
    torch.manual_seed(0)
    words, bias = torch.randn(WORDS, WIDTH, requires_grad=True), torch.zeros(WORDS, requires_grad=True)
    x, targets = torch.randn(rows, WIDTH, requires_grad=True), torch.randint(WORDS, (rows,))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if chunked:
        loss, _ = word_cross_entropy(x, words, bias, targets, WORDS)
    else:
        loss, _ = token_cross_entropy(F.linear(x, words, bias), targets)
    loss.backward()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6


def main() -> None:
    """Measure both for every number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1250, 5000])
    parser.add_argument("--one", nargs=2, metavar=("WAY", "ROWS"), help=argparse.SUPPRESS)
    own = parser.parse_args()
    if own.one:
        print(peak_mb(own.one[0] == "chunked", int(own.one[1])))
        return
    for rows in own.rows:
        peaks = {}
        for way in ("chunked", "whole"):
            command = [sys.executable, "-m", "benchmarks.word_loss", "--one", way, str(rows)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            peaks[way] = float(done.stdout)
        record(
            f"memory of MLM's loss: {rows:,} predicted tokens, {WORDS:,} words, fp32, forward and backward",
            f"peak {peaks['chunked']:,.0f} MB a chunk at a time, {peaks['whole']:,.0f} MB with the scores of all rows",
        )


if __name__ == "__main__":
    main()
