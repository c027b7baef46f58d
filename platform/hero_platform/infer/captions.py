"""Captions of a split: every clip of its `captions` annotations described once, and scored (hero.md 4.6)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from hero_model.tasks import Captioning
from hero_model.text import Tokenizer
from hero_platform.heartbeat import beat
from hero_platform.infer.caption_score import CaptionScores, mean_intervals, score_captions
from hero_platform.infer.evaluation import Model, Settings, Submission, json_lines
from hero_platform.report.plots import CaptionCase, captions_figure
from hero_platform.report.table import mean_lines
from hero_platform.store.reader import FeatureStore
from hero_platform.store.table import AnnotationTable
from hero_platform.store.tokens import TokenizerSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLOCK = 32  # videos encoded at once
NUM_SHOWN = 6  # clips in the picture


@dataclass(frozen=True)
class Clips:
    """The moments of a split that are to be described; several annotations may be about one."""

    store: FeatureStore
    table: AnnotationTable
    ids: tuple[str, ...]  # the annotations' `group`, else the video and the times
    rows: np.ndarray  # [M] int64, row of the table: each clip's first annotation
    references: dict[str, list[str]]  # clip -> its captions; a clip of a hidden split has none
    left_out: int  # annotations whose video the store has not

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
        left_out = int((table.video_rows < 0).sum())
        return cls(store, table, tuple(first), np.array(list(first.values())), references, left_out)

    def first(self, limit: int) -> Clips:
        """No more than `limit` of them."""
        ids = self.ids[:limit]
        return replace(self, ids=ids, rows=self.rows[:limit], references={clip: self.references[clip] for clip in ids})


@dataclass(frozen=True)
class CaptionEvaluation:
    """One caption for every clip of a split, and how near it is to the references where there are any."""

    clips: Clips
    written: dict[str, str]  # clip -> caption, in the order of `clips.ids`
    scores: CaptionScores | None  # None for a hidden split

    def results(self) -> dict[str, Any]:
        """Scores in percent; `note` says what was left out and why."""
        clips = self.clips
        facts = {
            "store": clips.store.digest,
            "split": clips.table.split,
            "videos": len(np.unique(clips.table.video_rows[clips.rows])),
            "clips": len(clips.ids),
            "captions_left_out": clips.left_out,
        }
        if self.scores is None:
            return {**facts, "metrics": {}, "intervals": {}, "note": "the split hides its captions"}
        row_of = dict(zip(clips.ids, clips.table.video_rows[clips.rows].tolist(), strict=True))
        return {
            **facts,
            "metrics": self.scores.values,
            "intervals": mean_intervals(self.scores, [row_of[clip] for clip in self.scores.clip_ids]),
            "note": self.scores.note,
        }

    def lines(self) -> list[str]:
        """One metric a line, then what was left out."""
        found = self.results()
        return mean_lines(found["metrics"], found["intervals"]) + ([found["note"]] if found["note"] else [])

    def predictions(self) -> Iterator[dict[str, Any]]:
        """Clip, video, times, the caption written and the references."""
        for entry in self._official():
            clip = str(entry["clip_id"])
            yield {
                "clip": clip,
                "video": entry["vid_name"],
                "span": None if None in entry["ts"] else entry["ts"],
                "caption": self.written[clip],
                "references": self.clips.references[clip],
            }

    def submission(self) -> Submission:
        """TVC's form, one clip a line; ids that are numbers are written as numbers."""
        return Submission("submission.jsonl", json_lines(self._official()))

    def figures(self) -> dict[str, Figure]:
        """A few clips with what was written and what people wrote, spread from the best to the worst."""
        order = list(self.clips.ids)
        if self.scores is not None:  # some clips may hide their captions
            order = list(self.scores.clip_ids)
            cider = dict(zip(self.scores.clip_ids, self.scores.clips["cider_d"], strict=True))
            order.sort(key=lambda clip: -cider[clip])
        places = np.linspace(0, len(order) - 1, min(NUM_SHOWN, len(order))).round().astype(int)
        return {"captions": captions_figure([self._case(order[place]) for place in places.tolist()])}

    def _case(self, clip: str) -> CaptionCase:
        row = int(self.clips.rows[self.clips.ids.index(clip)])
        start_s, end_s = self.clips.table.spans_s[row].tolist()
        video = int(self.clips.table.video_rows[row])
        return CaptionCase(
            video=str(self.clips.table.videos[row]),
            duration_s=float(self.clips.store.index.durations_s[video]),
            span_s=(start_s, end_s),
            written=self.written[clip],
            references=tuple(self.clips.references[clip]),
        )

    def _official(self) -> Iterator[dict[str, Any]]:
        for clip, row in zip(self.clips.ids, self.clips.rows.tolist(), strict=True):
            yield {
                "vid_name": self.clips.table.videos[row],
                "clip_id": int(clip) if clip.isdecimal() else clip,
                "ts": [None if np.isnan(time) else time for time in self.clips.table.spans_s[row].tolist()],
                "descs": [{"desc": self.written[clip]}],
            }


def caption_clips(clips: Clips, model: Model, task: Captioning, settings: Settings) -> CaptionEvaluation:
    """Describe every clip of a split and score what was written.

    Args:
        clips: what to describe.
        model: it must have trained `task`.
        task: how it packs.
        settings: the search, and the tokenizer where the store carries none.

    Raises:
        ValueError: the store is not one this model can read, or there is no tokenizer that fits it.
    """
    model.check_store(clips.store)
    spec = settings.tokenizer or TokenizerSpec.of_store(clips.store.root, clips.store.manifest.tokenizer)
    spec.check_fits(clips.store.manifest.tokenizer, clips.store.root)
    written = describe_clips(clips, model, task, settings, spec.load())
    known = {clip: texts for clip, texts in clips.references.items() if texts}
    scores = score_captions({clip: written[clip] for clip in known}, known) if known else None
    return CaptionEvaluation(clips, written, scores)


def describe_clips(
    clips: Clips, model: Model, task: Captioning, settings: Settings, tokenizer: Tokenizer, *, block: int = BLOCK
) -> dict[str, str]:
    """Write one caption per clip; how videos fall into blocks changes nothing beyond rounding.

    Args:
        clips: what to describe.
        model: it must have trained `task`.
        task: how it packs.
        settings: the search.
        tokenizer: turns token ids into text; it must be the one the store was built with.
        block: videos encoded at once.
    """
    text = model.config.text
    head: Any = model.module.heads[task.head_name]
    videos = clips.table.video_rows[clips.rows]
    needed = np.unique(videos)
    needed = needed[np.argsort(clips.store.index.num_frames[needed], kind="stable")]
    written: dict[str, str] = {}
    steps = range(0, len(needed), block)
    for start in tqdm(steps, desc="writing", unit="block", disable=None if model.show else True):
        beat(f"evaluation, video {start}")
        rows = needed[start : start + block]
        here = np.flatnonzero(np.isin(videos, rows))
        place = np.argsort(rows)[np.searchsorted(np.sort(rows), videos[here])]
        spans_s = clips.table.spans_s[clips.rows[here]]
        batch = task.moments(clips.store.rows(rows), spans_s, place, text).to(model.device)
        with model.running():
            found = task.describe(model.module.hero, head, batch, text, settings.writing)
        for moment, ids in zip(here.tolist(), found.lists(), strict=True):
            # The rows that pad the vocabulary are no words, though the decoder may choose them (hero.md 1.13).
            written[clips.ids[moment]] = tokenizer.decode([i for i in ids if i < text.vocab_size])
    return {clip: written[clip] for clip in clips.ids}
