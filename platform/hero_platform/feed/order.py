"""Which examples a step reads, and which rank and micro-batch holds each (designs D3, D4).

Every epoch is a fresh global permutation; a batch may cross from one epoch into the next, so each example is read
exactly once an epoch. The order does not know the number of workers: they only share out a batch already fixed.
"""

from __future__ import annotations

import numpy as np

from hero_model.packed.draw import Stream, permutation


class EpochOrder:
    """The infinite stream of example positions of one mixture entry."""

    def __init__(self, num_examples: int, seed: int, stream: int) -> None:
        """Order `num_examples` examples; `stream` keeps entries of one run independent of each other."""
        if num_examples < 1:
            raise ValueError("there are no examples to order")
        self._num = num_examples
        self._seed = seed
        self._stream = stream
        self._cache: dict[int, np.ndarray] = {}

    def batch(self, ordinal: int, size: int) -> np.ndarray:
        """Positions `[size]` (int64) of the `ordinal`-th batch."""
        where = np.arange(ordinal * size, (ordinal + 1) * size)
        epochs = where // self._num
        parts = [self._epoch(int(e))[where[epochs == e] % self._num] for e in np.unique(epochs)]
        return np.concatenate(parts)

    def _epoch(self, epoch: int) -> np.ndarray:
        known = self._cache  # prefetch threads share it: a dict that is there is never changed, only replaced
        if epoch not in known:
            order = permutation(self._seed, Stream.EPOCH, (self._stream << 32) + epoch, self._num)
            known = {e: p for e, p in known.items() if e == epoch - 1} | {epoch: order}
            self._cache = known
        return known[epoch]


def share(batch: int, pool: int, nce_pool: int, micro_batch: int, rank: int, world: int) -> list[list[np.ndarray]]:
    """Places in the global batch that `rank` of `world` reads: per pool a list of micro-batches.

    Groups of `nce_pool` consecutive places stay whole. Groups of a pool are dealt in contiguous runs, as evenly as
    possible; each rank gets at least one group of every pool (checked by `config.check`).

    Returns:
        `[pools][micro-batches]` arrays of int64 places in `[0, batch)`.
    """
    groups = np.arange(batch).reshape(-1, pool // nce_pool, nce_pool)
    per_micro = max(micro_batch // nce_pool, 1) if micro_batch else pool // nce_pool
    pools = []
    for of_pool in groups:
        mine = np.array_split(of_pool, world)[rank]
        pools.append([mine[i : i + per_micro].reshape(-1) for i in range(0, len(mine), per_micro)])
    return pools
