"""Captions of a split: every clip of its `captions` annotations described once by a trained model (hero.md 4.6)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hero_model.multitask import MultiTaskHero
from hero_model.nn.generate import Search
from hero_model.tasks import Captioning
from hero_model.text import Tokenizer
from hero_platform.config import RunConfig
from hero_platform.store.reader import FeatureStore
from hero_platform.store.table import AnnotationTable


@dataclass(frozen=True)
class Clips:
    """The moments of a split that are to be described; several annotations may be about one."""

    store: FeatureStore
    table: AnnotationTable
    ids: tuple[str, ...]  # the annotations' `group`, else the video and the times
    rows: np.ndarray  # [M] int64, row of the table: each clip's first annotation
    references: dict[str, list[str]]  # clip -> its captions; a clip of a hidden split has none

    @classmethod
    def open(cls, store: FeatureStore, split: str) -> Clips:
        """Group the split's `captions` annotations.

        Raises:
            ValueError: the store has none for this split, or none about a video it holds.
        """
        table = store.annotations("captions", split)
        texts = table.table.column("text").to_pylist()
        first: dict[str, int] = {}
        references: dict[str, list[str]] = {}
        for row in np.flatnonzero(table.video_rows >= 0).tolist():
            start_s, end_s = table.spans_s[row]
            clip = (table.groups[row] if table.groups else "") or f"{table.videos[row]} {start_s:g}-{end_s:g}"
            first.setdefault(clip, row)
            references.setdefault(clip, []).extend([texts[row]] if texts[row] else [])
        if not first:
            raise ValueError(f"{store.root}: no caption of split {split!r} is about a video of this store")
        return cls(store, table, tuple(first), np.array(list(first.values())), references)


def describe_clips(
    module: MultiTaskHero,
    config: RunConfig,
    clips: Clips,
    tokenizer: Tokenizer,
    how: Search,
    *,
    device: torch.device | None = None,
    block: int = 32,
) -> dict[str, str]:
    """Write one caption per clip; how videos fall into blocks changes nothing beyond rounding.

    Args:
        module: the model, in evaluation mode.
        config: the run it comes from.
        clips: what to describe.
        tokenizer: turns token ids into text; it must be the one the store was built with.
        how: settings of the search.
        device: where to run; None: a GPU if there is one.
        block: videos encoded at once.

    Raises:
        ValueError: the run trained no captions, or the tokenizer is another one.
    """
    task = next((entry.task for entry in config.mixture if isinstance(entry.task, Captioning)), None)
    if task is None:
        raise ValueError(f"run {config.name} trained no captioning: nothing in it writes captions")
    if tokenizer.text_ids != config.text:
        raise ValueError(f"the tokenizer's special ids {tokenizer.text_ids} are not those of the run, {config.text}")
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    head: Any = module.to(device).heads[task.head_name]
    videos = clips.table.video_rows[clips.rows]
    needed = np.unique(videos)
    needed = needed[np.argsort(clips.store.index.num_frames[needed], kind="stable")]
    written: dict[str, str] = {}
    for start in range(0, len(needed), block):
        rows = needed[start : start + block]
        here = np.flatnonzero(np.isin(videos, rows))
        place = np.argsort(rows)[np.searchsorted(np.sort(rows), videos[here])]
        spans_s = clips.table.spans_s[clips.rows[here]]
        batch = task.moments(clips.store.rows(rows), spans_s, place, config.text).to(device)
        with (
            torch.inference_mode(),
            torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16"),
        ):
            found = task.describe(module.hero, head, batch, config.text, how)
        for moment, ids in zip(here.tolist(), found.lists(), strict=True):
            # The rows that pad the vocabulary are no words, though the decoder may choose them (hero.md 1.13).
            written[clips.ids[moment]] = tokenizer.decode([i for i in ids if i < config.text.vocab_size])
    return {clip: written[clip] for clip in clips.ids}


def submission_lines(clips: Clips, written: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The official result file, one clip a line; ids that are numbers are written as numbers."""
    for clip, row in zip(clips.ids, clips.rows.tolist(), strict=True):
        yield {
            "vid_name": clips.table.videos[row],
            "clip_id": int(clip) if clip.isdecimal() else clip,
            "ts": [None if np.isnan(time) else time for time in clips.table.spans_s[row].tolist()],
            "descs": [{"desc": written[clip]}],
        }
