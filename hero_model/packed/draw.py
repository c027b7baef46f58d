"""Counter-based randomness: every draw is a pure function of (seed, stream, step, key, position) (design D3).

There is no generator to walk along: a number depends only on what it is for, so the same video gets the same masks in
the same step however a batch is split, ordered or resumed. The mixer is splitmix64's finaliser (Steele, Lea and Flood,
"Fast splittable pseudorandom number generators", 2014), applied to whole arrays.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum

import numpy as np

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


class Stream(IntEnum):
    """What a draw is for. Two uses never share a stream, so they are independent; numbers are frozen once released."""

    EPOCH = 1  # order of a corpus in one epoch
    TASK = 2  # which mixture entry a step runs
    TOKEN_MASK = 3  # MLM: is this token predicted, and how is it replaced
    TOKEN_REPLACE = 4  # MLM: which random token
    FRAME_MASK = 5  # MFM: is this frame masked
    FRAME_SELECT = 6  # FOM: does this frame move
    FRAME_ORDER = 7  # FOM: where it moves
    QUERY = 8  # VSM: which subtitles become queries
    SPAN_DROP = 9  # VSM and moment retrieval: is the span loss left out this step
    NEGATIVE_VIDEO = 10  # ranking with one sampled negative: which video
    NEGATIVE_QUERY = 11  # ranking with one sampled negative: which query
    BOOTSTRAP = 12  # intervals of a metric: which queries a resample holds


def hash_id(text: str) -> int:
    """Hash an id to 64 bits, equal in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def uniform(seed: int, stream: int, step: int, keys: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Draw one number per (key, position).

    Args:
        seed: of the run.
        stream: a `Stream`.
        step: optimizer step (or epoch).
        keys: `[n]` uint64, usually the hash of a video's id.
        positions: `[n]` ints, which draw of that key it is.

    Returns:
        `[n]` float64 in [0, 1), with 53 random bits each.
    """
    salt = 0
    for part in (seed, int(stream), step):
        salt = _mix_scalar((salt + part + 1) * _GOLDEN)
    bits = combine(np.asarray(keys, dtype=np.uint64) + np.uint64(salt), positions)
    return (bits >> np.uint64(11)) * 2.0**-53


def permutation(seed: int, stream: int, step: int, n: int) -> np.ndarray:
    """Shuffle `arange(n)`; returns `[n]` int64."""
    draws = uniform(seed, stream, step, np.arange(n, dtype=np.uint64), np.zeros(n, dtype=np.int64))
    return np.argsort(draws, kind="stable")


def fold(keys: np.ndarray, positions: np.ndarray, values: np.ndarray) -> int:
    """Sum a 64-bit hash of every (key, position, value): a fingerprint that no order and no split changes.

    Args:
        keys: `[n]` uint64.
        positions: `[n]` ints.
        values: `[n]` ints or bools.

    Returns:
        The sum modulo 2**64. Fingerprints of parts add up, modulo 2**64, to that of the whole.
    """
    return int(_mix(combine(keys, positions) + _spread(values)).sum(dtype=np.uint64))


def fold_ids(keys: np.ndarray) -> int:
    """Fingerprint which examples a batch holds, apart from anything drawn for them. `[n]` uint64 keys."""
    return fold(keys, np.full(len(keys), -1), np.zeros(len(keys), dtype=np.int64))


def combine(keys: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Hash (key, position) to a new key: `[n]` uint64, `[n]` ints -> `[n]` uint64."""
    return _mix(_mix(np.asarray(keys, dtype=np.uint64)) + _spread(positions))


def add_folds(*parts: int) -> int:
    """Add fingerprints modulo 2**64."""
    return sum(parts) & _WORD


def _spread(values: np.ndarray) -> np.ndarray:
    """Send small integers far apart. `[n]` ints -> `[n]` uint64."""
    return (np.asarray(values).astype(np.int64).astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)


def _mix(words: np.ndarray) -> np.ndarray:
    """Scramble 64-bit words: a bijection in which each input bit flips each output bit half of the time."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(_MIX_1)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(_MIX_2)
    return words ^ (words >> np.uint64(31))


def _mix_scalar(word: int) -> int:
    """Do the same to one Python int (NumPy scalars would warn of the wanted overflow)."""
    return int(_mix(np.array([word & _WORD], dtype=np.uint64))[0])
