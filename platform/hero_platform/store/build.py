"""Build a store from a source with Ray Data: one row of the dataset is one shard, built by one task (design D8).

The driver sees ids, counts and digests, never features. A worker holds one shard and one video at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa

from hero_platform import files, transfer
from hero_platform.ray_cluster import cluster, joined
from hero_platform.sources.base import FilmSource, Planned, RawVideo, Reject, Source
from hero_platform.store import plan as planning
from hero_platform.store.annotations import ipc_bytes, write_annotations
from hero_platform.store.manifest import INDEX, MANIFEST, REJECTS, SHARDS, Manifest
from hero_platform.store.media import MEDIA, media_bytes
from hero_platform.store.plan import Plan
from hero_platform.store.rows import RowRules, VideoRow, make_row
from hero_platform.store.schema import INDEX_SCHEMA
from hero_platform.store.shard import ShardInfo, ShardWriter, finished_shard, write_shard
from hero_platform.store.tokens import TokenizerSpec

SHARD_BYTES = 256 << 20


@dataclass(frozen=True)
class BuildSettings:
    """What a store is made like; all of it is in the plan. See `build`."""

    corpus: str
    feature_set: str
    tokenizer: TokenizerSpec
    keep_float32: bool
    shard_bytes: int

    @property
    def dtype(self) -> str:
        """Type of a stored feature."""
        return "float32" if self.keep_float32 else "float16"

    def describe(self, source: dict[str, Any]) -> dict[str, Any]:
        """The settings of a plan, with what a source says of itself."""
        return planning.describe_settings(
            self.corpus, self.feature_set, self.dtype, self.shard_bytes, self.tokenizer.describe(), source
        )

    def as_arguments(self) -> dict[str, Any]:
        """These settings as keyword arguments of `build`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def build(
    source: Source,
    out: str,
    *,
    corpus: str,
    feature_set: str,
    tokenizer: TokenizerSpec,
    shard_bytes: int = SHARD_BYTES,
    keep_float32: bool = False,
    workers: int = 2,
    progress: bool = True,
    record: Mapping[str, Any] | None = None,
) -> Manifest:
    """Build the store at `out`, or continue an interrupted build of the same input there.

    Args:
        source: where the videos come from.
        out: a folder or `s3://` URL that is empty, or holds the same build, unfinished or finished.
        corpus: name of the data set.
        feature_set: name of the visual features, so that several of one corpus stand side by side.
        tokenizer: what texts without tokens are tokenised with, and whose special ids the store carries.
        shard_bytes: about how large a shard gets.
        keep_float32: store features as float32, not float16.
        workers: tasks at once; each holds up to `shard_bytes`. Ray is started here unless it already runs.
        progress: show a bar with rate and time left on stderr.
        record: what the manifest's build entry shall say besides.

    Raises:
        ValueError: the source is unusable, has no good video, or `out` holds another build.
    """
    started = time.monotonic()
    settings = BuildSettings(corpus, feature_set, tokenizer, keep_float32, shard_bytes)
    where = _where(source)
    planned, known_bad = source.plan()
    videos, repeated = planning.order_videos(planned, where)
    described = settings.describe(source.provenance())
    plan = planning.load_plan(out, described, planning.digest_videos(videos))
    if plan is not None and files.exists(files.join(out, MANIFEST)):
        return Manifest.read(out)
    if not videos:
        raise ValueError(f"the source has no video to build from ({len(known_bad)} rejected)" + _first(known_bad))
    with ray_cluster(workers) as slots:
        if plan is None:
            plan = _new_plan(source, videos, settings, described, [*known_bad, *repeated], where)
            files.makedirs(files.join(out, SHARDS))
            plan.write(out)
        files.remove_partial(out)
        files.remove_partial(files.join(out, SHARDS))
        rules = RowRules(plan.frame_dim, settings.dtype, settings.tokenizer)
        infos = _build_shards(source, out, plan, rules, where, slots, progress)
    return _publish(source, out, plan, infos, settings, where, time.monotonic() - started, record)


@contextmanager
def ray_cluster(workers: int) -> Iterator[int]:
    """Yield how many of `workers` tasks Ray can run at once; starts a small local Ray unless there is one."""
    # Ray's notes on actors and datasets mean nothing to who builds a store; its log files keep them
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
    with ExitStack() as stack:
        with _silent_stderr():  # where Ray's core acknowledges the log level, once per start
            stack.enter_context(cluster(workers, fewest=1, crowded=True))
        yield _slots(workers)


def _slots(workers: int) -> int:
    """How many of `workers` tasks fit the cluster beside Ray Data's own."""
    return max(1, min(workers, int(joined().get("CPU", 1)) - 1))


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Send the process's stderr, C++ libraries' included, nowhere for a moment; Python errors still raise."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class ShardTask:
    """Builds shards inside a Ray actor; the source and tokenizer are loaded once per process."""

    def __init__(self, source: Source, root: str, rules: RowRules, where: str) -> None:
        self._source, self._root, self._rules, self._where = source, root, rules, where

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        """Build the one shard of `batch`; JSON in, JSON out."""
        (task,) = batch["task"]
        name, ids = json.loads(task)
        before = copy(transfer.TOTAL)
        try:
            result = asdict(build_shard(self._source, self._root, name, ids, self._rules, self._where))
        except (ValueError, OSError) as error:
            result = {"error": f"{name}: {error}"}
        return {"result": [json.dumps(result)], "traffic": [json.dumps(transfer.TOTAL.since(before).as_dict())]}


def build_shard(source: Source, root: str, name: str, ids: Sequence[str], rules: RowRules, where: str) -> ShardInfo:
    """Build one shard from `ids`, or return the finished one that is already there."""
    if (done := finished_shard(root, name)) is not None:
        return done
    started = time.monotonic()
    assert rules.frame_dim is not None
    writer = ShardWriter(rules.frame_dim, rules.dtype)
    rejects = []
    for row in read_rows(source, ids, rules, where):
        if isinstance(row, Reject):
            rejects.append(row)
        else:
            writer.add(row)
    return write_shard(root, name, writer, rejects, started)


def read_rows(source: Source, ids: Sequence[str], rules: RowRules, where: str) -> Iterator[VideoRow | Reject]:
    """Give each of `ids` exactly once, as a good row or a reject, whatever the source does."""
    expected = set(ids)
    for raw in source.read(ids):
        if raw.id not in expected:
            yield Reject(raw.id, where, "duplicate id: the source gave this video twice or without being asked")
            continue
        expected.remove(raw.id)
        yield make_row(raw, rules, where) if isinstance(raw, RawVideo) else raw
    for missing in sorted(expected):
        yield Reject(missing, where, "missing features: the source listed this video but did not give it")


def probe_width(source: Source, ids: Sequence[str], rules: RowRules, where: str) -> int | Reject:
    """Width of the first good video in order of id, or the first reject when there is none."""
    first: Reject | None = None
    for row in read_rows(source, ids, rules, where):
        if isinstance(row, VideoRow):
            return row.frames.shape[1]
        first = first or row
    assert first is not None
    return first


def _new_plan(
    source: Source,
    videos: list[Planned],
    settings: BuildSettings,
    described: dict[str, Any],
    rejects: list[Reject],
    where: str,
) -> Plan:
    """Find the feature width in a Ray task, then cut the shards."""
    import ray

    rules = RowRules(None, settings.dtype, settings.tokenizer)
    ids = [video.id for video in videos]
    width = ray.get(ray.remote(probe_width).options(num_cpus=1).remote(source, ids, rules, where))
    if isinstance(width, Reject):
        raise ValueError(f"no usable video: all {len(ids)} were rejected" + _first([width]))
    shards = planning.cut_shards(videos, width, settings.dtype, settings.shard_bytes)
    return Plan(described, planning.digest_videos(videos), width, shards, tuple(rejects))


def _build_shards(
    source: Source, out: str, plan: Plan, rules: RowRules, where: str, slots: int, progress: bool
) -> list[ShardInfo]:
    """Run one Ray Data row per shard; results come back in any order and are sorted by name."""
    import ray.data
    from tqdm import tqdm

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    tasks = [{"task": json.dumps([planning.shard_name(i), ids])} for i, ids in enumerate(plan.shards)]
    dataset = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        ShardTask,
        fn_constructor_args=(source, out, rules, where),
        batch_size=1,
        batch_format="numpy",
        # one at a time: shards are long, and a second one queued behind a slow worker would find no other
        compute=ray.data.ActorPoolStrategy(size=min(slots, len(tasks)), max_tasks_in_flight_per_actor=1),
        num_cpus=1,
    )
    infos = []
    interval_s = 0.2 if sys.stderr.isatty() else 10.0
    bar = partial(tqdm, total=sum(map(len, plan.shards)), unit="video", desc="build", mininterval=interval_s)
    with bar(disable=not progress) as shown:
        started, megabytes = time.monotonic(), 0.0
        for row in dataset.iter_rows():
            transfer.TOTAL.add(**json.loads(row["traffic"]))
            value = json.loads(row["result"])
            if "error" in value:
                raise ValueError(value["error"])
            info = ShardInfo.from_json(value)
            infos.append(info)
            megabytes += info.num_bytes / 1e6
            shown.set_postfix_str(f"{megabytes / (time.monotonic() - started):.0f} MB/s", refresh=False)
            shown.update(info.num_rows + len(info.rejects))
    return sorted(infos, key=lambda info: info.name)


def _publish(
    source: Source,
    out: str,
    plan: Plan,
    infos: list[ShardInfo],
    settings: BuildSettings,
    where: str,
    seconds: float,
    record: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write index, annotations, rejects and, last, the manifest."""
    index = _index(infos)
    index_bytes = ipc_bytes(index)
    files.write_bytes(files.join(out, INDEX), index_bytes)
    known = set(index.column("id").to_pylist())
    notes = write_annotations(out, source.annotations(), settings.tokenizer, known, where)
    rejects = [*plan.rejects, *(reject for info in infos for reject in info.rejects), *notes]
    lines = sorted(json.dumps(asdict(reject)) for reject in rejects)
    rejects_bytes = "".join(line + "\n" for line in lines).encode()
    files.write_bytes(files.join(out, REJECTS), rejects_bytes)
    manifest = Manifest(
        corpus=settings.corpus,
        feature_set=settings.feature_set,
        frame_dim=plan.frame_dim,
        dtype=settings.dtype,
        tokenizer=settings.tokenizer.describe(),
        shards=tuple(replace(info, rejects=[], rows=[]) for info in infos),
        index_sha256=hashlib.sha256(index_bytes).hexdigest(),
        rejects_sha256=hashlib.sha256(rejects_bytes).hexdigest(),
        num_rejects=len(rejects),
        source=plan.settings["source"],
        build={**_record(infos, seconds), **(record or {})},
        media_sha256=_write_media(source, out, known),
    )
    settings.tokenizer.write(out)
    manifest.write(out)
    return manifest


def _write_media(source: Source, out: str, known: Set[str]) -> str:
    """Write where the store's videos come from, if the source has films; returns the digest of that."""
    if not isinstance(source, FilmSource):
        return ""
    data = media_bytes(clip for clip in source.clips() if clip.video_id in known)
    files.write_bytes(files.join(out, MEDIA), data)
    return hashlib.sha256(data).hexdigest()


def _index(infos: list[ShardInfo]) -> pa.RecordBatch:
    """One small row per video, in the order of the shards."""
    from hero_model.packed.draw import hash_id

    rows = [(number, place, row) for number, info in enumerate(infos) for place, row in enumerate(info.rows)]
    columns: dict[str, list[Any]] = {
        "id": [row.id for _, _, row in rows],
        "key": [hash_id(row.id) for _, _, row in rows],
        "split": [row.split for _, _, row in rows],
        "shard": [number for number, _, _ in rows],
        "row": [place for _, place, _ in rows],
        "duration_s": [row.duration_s for _, _, row in rows],
        "num_frames": [row.num_frames for _, _, row in rows],
        "num_segments": [row.num_segments for _, _, row in rows],
        "num_tokens": [row.num_tokens for _, _, row in rows],
        "crc32": [row.crc32 for _, _, row in rows],
    }
    arrays = [pa.array(columns[field.name], field.type) for field in INDEX_SCHEMA]
    return pa.record_batch(arrays, schema=INDEX_SCHEMA)


def _record(infos: list[ShardInfo], seconds: float) -> dict[str, Any]:
    """Who built the store and how fast; not part of its digest."""
    workers: dict[str, dict[str, Any]] = {}
    for info in infos:
        name = f"{info.record['host']}:{info.record['pid']}"
        entry = workers.setdefault(name, {**info.record, "seconds": 0.0, "shards": 0})
        entry["seconds"] = round(entry["seconds"] + info.record["seconds"], 3)
        entry["shards"] += 1
    num_rows, num_bytes = sum(info.num_rows for info in infos), sum(info.num_bytes for info in infos)
    return {
        "workers": [workers[name] for name in sorted(workers)],
        "seconds": round(seconds, 3),
        "videos_per_s": round(num_rows / seconds, 3),
        "megabytes_per_s": round(num_bytes / seconds / 1e6, 3),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("hero-platform", "ray", "pyarrow", "numpy")},
        },
    }


def _where(source: Source) -> str:
    """What a reject says about the origin of a row that was read well but is no good."""
    features = source.provenance().get("features", type(source).__name__)
    return features if isinstance(features, str) else " + ".join(features)


def _first(rejects: Sequence[Reject]) -> str:
    """The first reject as the end of an error message."""
    return f"; first: {rejects[0].id or rejects[0].where}: {rejects[0].reason}" if rejects else ""
