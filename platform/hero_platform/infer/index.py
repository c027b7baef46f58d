"""The videos of a store, encoded by a checkpoint, in files that are mapped into memory: what a search reads.

    HERO_HOME/indexes/<digest>/    states.npy [F, D] float32   inverse_norms.npy [F] float32
                                   rows.npy, num_frames.npy [B] int64   interval_s.npy [B] float64   index.json

The digest covers that of the store, that of the weights and how the task packs videos, so an index is never stale:
another checkpoint or other data have another index. It is built under another name and renamed when it is whole;
`index.json` has the size of every file. Two processes that build the same one do it twice, and one of them wins.

Legend: B videos, F frames of all videos as they are searched, D hidden width.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from hero_model.embedder import Embedder
from hero_model.retriever import Retriever, VideoIndex, inverse_norms
from hero_platform import files, home
from hero_platform.infer.search import Encoded, Part, Request
from hero_platform.scratch import scratch
from hero_platform.store.manifest import canonical_json
from hero_platform.store.reader import FeatureStore

FORMAT = 1
ABOUT = "index.json"
STATES = "states.npy"
_SMALL = ("inverse_norms", "rows", "num_frames", "interval_s")  # files beside the states


@dataclass(frozen=True)
class Wanted:
    """What an index is of."""

    store: FeatureStore
    checkpoint: str  # its folder
    weights: str  # hex SHA-256 of its weights
    retriever: Retriever

    @property
    def identity(self) -> dict[str, Any]:
        """All that its numbers depend on."""
        task = asdict(self.retriever.embedder.task)
        packing = {name: task.get(name) for name in ("max_frames", "context", "flat", "video_only")}
        return {"format": FORMAT, "store": self.store.digest, "weights": self.weights, "packing": packing}

    @property
    def folder(self) -> Path:
        """Where it lies, or will."""
        digest = hashlib.sha256(canonical_json(self.identity)).hexdigest()
        return Path(home.indexes_dir()) / digest[:32]

    @property
    def rows(self) -> np.ndarray:
        """[B] int64 rows of the store: all of them, by length, so that videos of equal length are encoded together."""
        return np.argsort(self.store.index.num_frames, kind="stable")


def open_index(wanted: Wanted) -> VideoIndex | None:
    """Map an index; None where there is none.

    Raises:
        ValueError: it is damaged.
    """
    folder = wanted.folder
    if not folder.exists():
        return None
    try:
        about = files.read_json(folder / ABOUT)
        for name, size in about["files"].items():
            if (folder / name).stat().st_size != size:
                raise ValueError(f"{name} was cut off")
        # copy on write: nothing writes, and PyTorch warns of arrays that nobody may write to
        states, inverse, rows, num_frames, interval_s = (
            np.lib.format.open_memmap(folder / name, mode="c") for name in (STATES, *(f"{name}.npy" for name in _SMALL))
        )
        ids = wanted.store.index.ids[rows]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder} is no whole index ({error}): remove it, and it is built again") from error
    return VideoIndex(ids, interval_s, np.asarray(num_frames), torch.from_numpy(states), torch.from_numpy(inverse))


def build_index(wanted: Wanted, *, workers: int = 0, threads: int = 1, show: bool = False) -> VideoIndex:
    """Encode all videos and write their index, in this process or on Ray workers.

    Raises:
        ValueError: the store is not one this model can read, or the disk has no room for the index.
        SearchFailed: a worker died or failed.
    """
    lengths = _lengths(wanted)
    width = wanted.retriever.embedder.module.hero.cfg.hidden_size
    needed = int(lengths.sum()) * (width + 1) * 4
    Path(home.indexes_dir()).mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(home.indexes_dir()).free) < needed:
        raise ValueError(
            f"the index needs {needed / 1e9:.1f} GB and {home.indexes_dir()} has {free / 1e9:.1f} GB left: free some, "
            "or name another place with HERO_HOME"
        )
    began = time.perf_counter()
    with scratch("hero-index-", home.indexes_dir()) as folder:
        made = Path(folder) / "made"
        made.mkdir()
        _write(made, wanted, lengths, width, _encoded(wanted, workers, threads), show)
        about = {
            **wanted.identity,
            "checkpoint": wanted.checkpoint,
            "videos": len(lengths),
            "frames": int(lengths.sum()),
            "width": width,
            "build": {"seconds": round(time.perf_counter() - began, 2), "workers": workers},
            "files": {path.name: path.stat().st_size for path in sorted(made.iterdir())},
        }
        files.write_json(made / ABOUT, about)
        try:
            os.rename(made, wanted.folder)
        except OSError:
            if not wanted.folder.exists():
                raise
            # another process was quicker: its index is the same
    index = open_index(wanted)
    assert index is not None, "renamed by this process or another"
    return index


def _lengths(wanted: Wanted) -> np.ndarray:
    """[B] int64 frames of each video as it is searched."""
    lengths = wanted.store.index.num_frames[wanted.rows].astype(np.int64)
    return np.minimum(lengths, wanted.retriever.embedder.task.max_frames)


def _encoded(wanted: Wanted, workers: int, threads: int) -> Iterator[Encoded]:
    """All videos in pieces, from workers in any order."""
    nobody = np.zeros(0, dtype=np.int64)
    request = Request(wanted.rows, nobody, nobody)
    embedder: Embedder = wanted.retriever.embedder
    if not workers:
        yield from Part(embedder, wanted.store, None, request).hand_out_videos()
        return
    from hero_platform.infer.on_ray import Workers, on_ray

    who = Workers(workers, wanted.checkpoint, threads)
    with on_ray(who, wanted.store, None, embedder.task, request) as team:
        yield from team.stream("hand_out_videos")


def _write(
    folder: Path, wanted: Wanted, lengths: np.ndarray, width: int, encoded: Iterable[Encoded], show: bool
) -> None:
    """Write each piece where it belongs. Into a plain file: a full disk is an error there, and not a SIGBUS."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    small: dict[str, np.ndarray] = {
        "inverse_norms": np.empty(offsets[-1], np.float32),
        "rows": wanted.rows,
        "num_frames": lengths,
        "interval_s": np.empty(len(lengths)),
    }
    header = {"descr": "<f4", "fortran_order": False, "shape": (int(offsets[-1]), width)}
    bar = tqdm(total=len(lengths), desc="encoding videos", unit="video", disable=None if show else True)
    with open(folder / STATES, "wb") as stream, bar, closing(iter(encoded)) as pieces:  # type: ignore[type-var]
        np.lib.format.write_array_header_1_0(stream, header)
        start = stream.tell()
        for first, timing, states_FD in pieces:
            last = first + len(timing.num_frames)
            assert np.array_equal(timing.num_frames, lengths[first:last]), "the store says how long a video is"
            stream.seek(start + int(offsets[first]) * width * 4)
            stream.write(np.ascontiguousarray(states_FD).data)
            small["inverse_norms"][offsets[first] : offsets[last]] = inverse_norms(torch.from_numpy(states_FD)).numpy()
            small["interval_s"][first:last] = timing.interval_s
            bar.update(last - first)
        stream.flush()
        os.fsync(stream.fileno())
    for name, column in small.items():
        np.save(folder / f"{name}.npy", column)
