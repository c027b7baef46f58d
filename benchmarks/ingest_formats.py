"""The loaders that `benchmarks.ingest` compares: each writes the same videos in its format and reads packed batches.

A batch is what the packed model needs, as tensors: frames fp16 `[F, V]`, tokens, and the lengths that divide them. The
LMDB of HERO alone gives what the official code gives: fp32 features, padded, from Python lists.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
BATCH = 32
MANY = 64 << 20  # bytes of a shard, as in the store
FIELDS = ("frames", "tokens", "num_tokens", "segment_frames", "num_owned")  # of one video, arrays
INTS = FIELDS[1:]

Video = Mapping[str, np.ndarray]
Batch = dict[str, Any]
Epoch = Callable[[np.ndarray | None], Iterator[Batch]]  # rows in this order, or None: as they lie


def pack(videos: Sequence[Video]) -> Batch:
    """Concatenate the arrays of videos."""
    batch = {name: torch.from_numpy(np.concatenate([video[name] for video in videos])) for name in FIELDS}
    batch["num_frames"] = torch.tensor([len(video["frames"]) for video in videos])
    batch["num_segments"] = torch.tensor([len(video["num_tokens"]) for video in videos])
    return batch


def in_batches(order: np.ndarray) -> list[np.ndarray]:
    """Rows of each batch."""
    return [order[at : at + BATCH] for at in range(0, len(order), BATCH)]


def _either(in_order: Any, items: Any) -> Epoch:
    """An epoch of a library: its own loader in order, or a collection read by number."""

    def epoch(order: np.ndarray | None) -> Iterator[Batch]:
        if order is None:
            yield from in_order
        else:
            yield from (pack([items[int(row)] for row in rows]) for rows in in_batches(order))

    return epoch


# -- this project ------------------------------------------------------------------------------------------------------


def open_store(folder: Path) -> Epoch:
    """Mapped Arrow shards, read by number; each row's checksum is compared when it is first read."""
    from hero_platform.store.reader import FeatureStore

    store = FeatureStore.open(str(folder / "store"))

    def epoch(order: np.ndarray | None) -> Iterator[Batch]:
        for rows in in_batches(np.arange(len(store)) if order is None else order):
            got = store.rows(rows)
            lengths = {"num_frames": got.frame_offsets, "num_segments": got.segment_offsets}
            lengths |= {"num_tokens": got.token_offsets, "num_owned": got.segment_frame_offsets}
            arrays = {"frames": got.frames, "tokens": got.tokens, "segment_frames": got.segment_frames}
            arrays |= {name: np.diff(offsets) for name, offsets in lengths.items()}
            yield {name: torch.from_numpy(array) for name, array in arrays.items()}

    return epoch


# -- HERO's databases, read as the official code reads them ------------------------------------------------------------


def write_lmdb(videos: Callable[[], Iterator[Video]], folder: Path) -> None:
    """A feature database (msgpack of fp32 arrays) and a subtitle database (lz4 frames of msgpack)."""
    import lmdb
    import lz4.frame
    import msgpack
    import msgpack_numpy

    features, texts = (
        lmdb.open(str(folder / name), map_size=1 << 36) for name in ("resnet_slowfast_1.5", "tv_subtitles.db")
    )
    with features.begin(write=True) as video_db, texts.begin(write=True) as text_db:
        for number, video in enumerate(videos()):
            value = msgpack.dumps({"features": video["frames"].astype(np.float32)}, default=msgpack_numpy.encode)
            video_db.put(_key(number), value)
            ends = [np.cumsum(video[name])[:-1] for name in ("num_tokens", "num_owned")]
            tokens, owned = (
                [part.tolist() for part in np.split(video[name], end)]
                for name, end in zip(("tokens", "segment_frames"), ends, strict=True)
            )
            record = {"input_ids": tokens, "unique_sub2frames": [list(pair) for pair in enumerate(owned)]}
            text_db.put(_key(number), lz4.frame.compress(msgpack.dumps(record, use_bin_type=True)))
    for database in (features, texts):
        database.sync(True)
        database.close()


def open_lmdb(folder: Path) -> Epoch:
    """Each item decoded to Python lists and fp32 tensors, then the official collate (tests/oracle) pads the batch."""
    import lmdb
    import lz4.frame
    import msgpack
    import msgpack_numpy

    sys.path.insert(0, str(ROOT / "tests"))
    from oracle.collate import Segment, video_batch
    from oracle.collate import Video as Item

    features, texts = (
        lmdb.open(str(folder / name), readonly=True, readahead=False, max_readers=4096 * 8)
        for name in ("resnet_slowfast_1.5", "tv_subtitles.db")
    )
    video_db, text_db = features.begin(buffers=True), texts.begin(buffers=True)

    def item(number: int) -> Item:
        value = msgpack.loads(
            video_db.get(_key(number)), object_hook=msgpack_numpy.decode, raw=False, strict_map_key=False
        )
        frames = torch.tensor(value["features"]).float()
        record = msgpack.loads(lz4.frame.decompress(text_db.get(_key(number))), raw=False)
        owned = dict(record["unique_sub2frames"])
        return Item(frames, [Segment([2, *ids], owned[i]) for i, ids in enumerate(record["input_ids"])])

    def epoch(order: np.ndarray | None) -> Iterator[Batch]:
        for rows in in_batches(np.arange(features.stat()["entries"]) if order is None else order):
            yield video_batch([item(int(row)) for row in rows])

    return epoch


def unpadded(batch: Batch) -> Batch:
    """The packed batch that a padded one holds (not timed)."""
    lengths = batch["c_attn_masks"].sum(1)
    owned = [[frames for _, frames in entries] for entries in batch["sub_idx2frame_idx"]]
    flat = [frames for entries in owned for frames in entries]
    is_text = batch["f_sub_input_ids"] != 1  # RoBERTa's <pad>
    texts = [row[keep][1:] for row, keep in zip(batch["f_sub_input_ids"], is_text, strict=True)]
    return {
        "frames": torch.cat([x[:n] for x, n in zip(batch["c_v_feats"], lengths.tolist(), strict=True)]).half(),
        "num_frames": lengths,
        "tokens": torch.cat(texts),
        "num_tokens": torch.tensor([len(text) for text in texts]),
        "num_segments": torch.tensor(batch["num_subs"]),
        "segment_frames": torch.tensor([frame for frames in flat for frame in frames]),
        "num_owned": torch.tensor([len(frames) for frames in flat]),
    }


def _key(number: int) -> bytes:
    return f"video-{number:07d}".encode()


# -- Parquet: torch's DataLoader and Ray Data --------------------------------------------------------------------------


def write_parquet(videos: Callable[[], Iterator[Video]], folder: Path) -> None:
    """Arrays as bytes (lists read eight times as slowly), uncompressed, a row group per batch."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "parquet").mkdir()
    rows = [{name: video[name].tobytes() for name in FIELDS} for video in videos()]
    schema = pa.schema([(name, pa.large_binary()) for name in FIELDS])
    for number, at in enumerate(range(0, len(rows), 4 * BATCH)):
        table = pa.Table.from_pylist(rows[at : at + 4 * BATCH], schema=schema)
        path = folder / "parquet" / f"{number:05d}.parquet"
        pq.write_table(table, path, row_group_size=BATCH, compression="none", use_dictionary=False)


def _decoded(column: Callable[[str], Any], row: int) -> Video:
    frames = np.frombuffer(column("frames")[row], np.float16).reshape(-1, 4352)
    return {"frames": frames, **{name: np.frombuffer(column(name)[row], np.int32) for name in INTS}}


class _Group:
    """Videos of one row group."""

    def __init__(self, table: Any) -> None:
        self._columns = {name: [value.as_buffer() for value in table.column(name)] for name in FIELDS}

    def __getitem__(self, row: int) -> Video:
        return _decoded(self._columns.__getitem__, row)


def open_parquet(folder: Path) -> Epoch:
    """Torch's DataLoader, without workers: row groups in order, or for each video the row group it lies in."""
    import pyarrow.parquet as pq
    from torch.utils.data import DataLoader, IterableDataset

    open_files = [pq.ParquetFile(path, memory_map=True) for path in sorted((folder / "parquet").iterdir())]
    groups = [(file, number) for file in open_files for number in range(file.num_row_groups)]

    class InOrder(IterableDataset):
        def __iter__(self) -> Iterator[Batch]:
            for file, number in groups:
                group = _Group(file.read_row_group(number))
                yield pack([group[row] for row in range(file.metadata.row_group(number).num_rows)])

    class ByNumber:
        def __getitem__(self, row: int) -> Video:
            file, number = groups[row // BATCH]
            return _Group(file.read_row_group(number).slice(row % BATCH, 1))[0]

    return _either(DataLoader(InOrder(), batch_size=None, num_workers=0), ByNumber())


def open_ray(folder: Path) -> Epoch:
    """Ray Data's iter_torch_batches on the same files, on the cluster that is up; shuffled by random_shuffle."""
    import ray

    def together(columns: Mapping[str, np.ndarray]) -> Batch:
        return pack([_decoded(columns.__getitem__, row) for row in range(len(columns["tokens"]))])

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars, context.execution_options.preserve_order = False, True
    rows = ray.data.read_parquet(str(folder / "parquet"))

    def epoch(order: np.ndarray | None) -> Iterator[Batch]:
        read = rows if order is None else rows.random_shuffle(seed=0)
        yield from read.iter_torch_batches(batch_size=BATCH, collate_fn=together, prefetch_batches=2)

    return epoch


# -- formats of other libraries ----------------------------------------------------------------------------------------


def _streaming() -> Any:
    """mosaicml-streaming without torchvision, which only its image classes use: PyPI's needs a CUDA build of torch."""
    if "torchvision" not in sys.modules:
        for name, members in {"": (), ".datasets": ("VisionDataset",), ".transforms": (), ".transforms.functional":
                              ("to_tensor",)}.items():  # fmt: skip
            module = types.ModuleType(f"torchvision{name}")
            module.__spec__ = ModuleSpec(module.__name__, None)
            for member in members:
                setattr(module, member, type(member, (), {}))
            sys.modules[module.__name__] = module
    import streaming

    return streaming


def write_mds(videos: Callable[[], Iterator[Video]], folder: Path) -> None:
    """mosaicml-streaming's shards."""
    columns = {"frames": "ndarray:float16", **dict.fromkeys(INTS, "ndarray:int32")}
    with _streaming().MDSWriter(out=str(folder / "mds"), columns=columns, size_limit=MANY) as writer:
        for video in videos():
            writer.write(dict(video))


def open_mds(folder: Path) -> Epoch:
    """mosaicml-streaming: its own order through a DataLoader, or by number."""
    from torch.utils.data import DataLoader

    streaming = _streaming()
    streaming.base.util.clean_stale_shared_memory()
    rows = streaming.StreamingDataset(local=str(folder / "mds"), shuffle=False, batch_size=BATCH)
    return _either(DataLoader(rows, batch_size=BATCH, collate_fn=pack, num_workers=0), rows)


def write_litdata(videos: Callable[[], Iterator[Video]], folder: Path) -> None:
    """LitData's chunks, by its writer without its worker processes."""
    from litdata.streaming.cache import Cache

    cache = Cache(str(folder / "litdata"), chunk_bytes=MANY)
    for number, video in enumerate(videos()):
        cache[number] = dict(video)
    cache.done()
    cache.merge()


def open_litdata(folder: Path) -> Epoch:
    """LitData: its own order through its DataLoader, or by number."""
    import litdata

    rows = litdata.StreamingDataset(str(folder / "litdata"), shuffle=False)
    return _either(litdata.StreamingDataLoader(rows, batch_size=BATCH, collate_fn=pack, num_workers=0), rows)


def write_webdataset(videos: Callable[[], Iterator[Video]], folder: Path) -> None:
    """Tar files with an .npy per array."""
    import webdataset

    (folder / "tar").mkdir()
    with webdataset.ShardWriter(str(folder / "tar" / "%05d.tar"), maxsize=MANY, verbose=0) as writer:
        for number, video in enumerate(videos()):
            parts = {f"{name}.npy": video[name] for name in FIELDS}
            writer.write({"__key__": f"video-{number:07d}", **parts})


def open_webdataset(folder: Path) -> Epoch:
    """WebDataset in order; it has a shuffle buffer, but no exact shuffle."""
    import webdataset

    paths = [str(path) for path in sorted((folder / "tar").iterdir())]
    rows = webdataset.WebDataset(paths, shardshuffle=False, empty_check=False).decode()

    def together(samples: list[dict[str, np.ndarray]]) -> Batch:
        return pack([{name: sample[f"{name}.npy"] for name in FIELDS} for sample in samples])

    def epoch(order: np.ndarray | None) -> Iterator[Batch]:
        if order is not None:
            raise ValueError("tar files are read in order: no exact shuffle")
        yield from rows.batched(BATCH, collation_fn=together)

    return epoch


@dataclass(frozen=True)
class Loader:
    """One format and one way to read it."""

    title: str
    open: Callable[[Path], Epoch]
    write: Callable[[Callable[[], Iterator[Video]], Path], None] | None = None  # None: another one's files, or a store
    library: str | None = None  # what it needs beside the project's environment


LOADERS = {
    "store": Loader("this loader", open_store),
    "parquet": Loader("torch DataLoader on Parquet", open_parquet, write_parquet),
    "ray": Loader("Ray Data iter_torch_batches", open_ray),
    "lmdb": Loader("HERO's LMDB, official way", open_lmdb, write_lmdb, "msgpack_numpy"),
    "mds": Loader("mosaicml-streaming", open_mds, write_mds, "streaming"),
    "litdata": Loader("LitData", open_litdata, write_litdata, "litdata"),
    "webdataset": Loader("WebDataset", open_webdataset, write_webdataset, "webdataset"),
}


def videos_of(folder: Path) -> Iterator[Video]:
    """Every video of the store at `folder`/store, in order."""
    from hero_platform.store.reader import FeatureStore

    store = FeatureStore.open(str(folder / "store"))
    for row in range(len(store)):
        got = store.rows([row])
        yield {
            "frames": got.frames,
            "tokens": got.tokens.astype(np.int32),
            "num_tokens": np.diff(got.token_offsets).astype(np.int32),
            "segment_frames": got.segment_frames.astype(np.int32),
            "num_owned": np.diff(got.segment_frame_offsets).astype(np.int32),
        }
