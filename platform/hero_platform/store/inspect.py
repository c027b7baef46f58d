"""What is in a store, for people (`format_report`) and programs (`report`)."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from hero_platform import files
from hero_platform.store.annotations import table_entries
from hero_platform.store.manifest import REJECTS
from hero_platform.store.reader import FeatureStore

_BINS = 8
_SHOWN_REJECTS = 20
_BAR = 40  # characters of the longest bar


def report(path: str) -> dict[str, Any]:
    """Everything `inspect` shows, JSON-ready; hashes every file of the store.

    Raises:
        ValueError: no store is there, or it is unfinished or unreadable.
    """
    store = FeatureStore.open(path)
    manifest, index = store.manifest, store.index
    splits = {split: len(store.rows_of(split)) for split in store.splits}
    return {
        "path": store.root,
        "digest": store.digest,
        "corpus": manifest.corpus,
        "feature_set": manifest.feature_set,
        "schema_version": manifest.schema_version,
        "frame_dim": manifest.frame_dim,
        "dtype": manifest.dtype,
        "videos": len(index),
        "splits": splits,
        "hours": float(index.durations_s.sum() / 3600),
        "shards": len(manifest.shards),
        "bytes": manifest.total("num_bytes"),
        "frames": manifest.total("num_frames"),
        "segments": manifest.total("num_segments"),
        "tokens": manifest.total("num_tokens"),
        "histograms": {
            "frames a video": _histogram(index.num_frames),
            "segments a video": _histogram(index.num_segments),
            "tokens a video": _histogram(index.num_tokens),
        },
        "rejects": [json.loads(line) for line in files.read_bytes(files.join(path, REJECTS)).splitlines()],
        "annotations": table_entries(path),
        "tokenizer": manifest.tokenizer,
        "source": manifest.source,
        "build": manifest.build,
        "damaged": store.damaged(),
    }


def format_report(value: dict[str, Any]) -> str:
    """Lay `report` out as text."""
    splits = ", ".join(f"{name} {count:,}" for name, count in value["splits"].items())
    build, hours = value["build"], value["hours"]
    length = f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
    lines = [
        f"store      {value['path']}",
        f"digest     {value['digest']}",
        f"corpus     {value['corpus']}, features {value['feature_set']}, schema {value['schema_version']}",
        f"videos     {value['videos']:,} ({splits or 'none'}), {length}",
        f"frames     {value['frames']:,} x {value['frame_dim']} {value['dtype']}",
        f"segments   {value['segments']:,} with {value['tokens']:,} tokens",
        f"size       {value['bytes'] / 1e6:,.1f} MB in {value['shards']} shards",
        f"tokenizer  {json.dumps(value['tokenizer'])}",
        f"source     {json.dumps(value['source'])}",
        f"build      {len(build['workers'])} workers, {build['seconds']:.1f} s, {build['videos_per_s']:.1f} videos/s, "
        f"{build['megabytes_per_s']:.1f} MB/s, {json.dumps(build['versions'])}",
    ]
    for name, histogram in value["histograms"].items():
        lines += ["", f"{name}: {_summary(histogram)}", *_bars(histogram)]
    lines += ["", f"annotations: {len(value['annotations'])} tables"]
    for entry in value["annotations"]:
        missing = f", {entry['num_without_video']:,} without a stored video" if entry["num_without_video"] else ""
        lines.append(
            f"  {entry['kind']} {entry['split']}: {entry['num_rows']:,} rows, {entry['num_videos']:,} videos{missing}"
        )
    rejects = value["rejects"]
    lines += ["", f"rejects: {len(rejects)}"]
    lines += [f"  {reject['id']}: {reject['reason']} ({reject['where']})" for reject in rejects[:_SHOWN_REJECTS]]
    if len(rejects) > _SHOWN_REJECTS:
        lines.append(f"  ... and {len(rejects) - _SHOWN_REJECTS} more in {REJECTS}")
    lines += ["", *([f"DAMAGED: {line}" for line in value["damaged"]] or ["digests: all files are as they were built"])]
    return "\n".join(lines)


def _histogram(values: np.ndarray) -> dict[str, list[Any]]:
    """Counts in up to 8 bins of whole numbers: bin k holds edges[k] <= value < edges[k + 1]."""
    if not len(values):
        return {"edges": [0, 1], "counts": [0], "quantiles": []}
    low, high = int(values.min()), int(values.max()) + 1
    edges = np.unique(np.linspace(low, high, _BINS + 1).round().astype(int))
    quantiles = np.quantile(values, [0, 0.05, 0.5, 0.95, 1])
    return {
        "edges": edges.tolist(),
        "counts": np.histogram(values, edges)[0].tolist(),
        "quantiles": [float(quantile) for quantile in quantiles],
    }


def _summary(histogram: dict[str, list[Any]]) -> str:
    """The quantiles in words."""
    names = ("least", "5%", "median", "95%", "most")
    return ", ".join(f"{name} {value:g}" for name, value in zip(names, histogram["quantiles"], strict=False)) or "none"


def _bars(histogram: dict[str, list[Any]]) -> list[str]:
    """One line per bin."""
    most = max([1, *histogram["counts"]])
    return [
        f"  {low:>6} - {high - 1:<6} {count:>8,} {'#' * round(_BAR * count / most)}"
        for low, high, count in zip(histogram["edges"], histogram["edges"][1:], histogram["counts"], strict=False)
    ]
