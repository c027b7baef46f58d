"""A corpus' annotations against a store: counts, strangers, times outside, and which moments can be found.

Legend: N annotations, A annotated spans of one, C moments a model may answer in a video, n frames of that video.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from hero_model.metrics.retrieval import AGREE, AGREE_FROM, length_mask, temporal_iou
from hero_platform.corpora.base import Corpus
from hero_platform.sources.base import Annotation, Reject
from hero_platform.store.reader import FeatureStore

THRESHOLDS = (0.5, 0.7)
SHOWN = 5  # examples of each kind of finding


def corpus_report(
    corpus: Corpus, split: str, examples: Sequence[Annotation], rejects: Sequence[Reject], store: FeatureStore
) -> dict[str, Any]:
    """JSON-ready facts about one file of annotations; `examples` name videos as the store does."""
    row_of, index = store.index.row_of, store.index
    interval_s = float(store.rows([0]).interval_s[0])
    videos = Counter(example.video for example in examples if example.video)
    strangers = [video for video in videos if video not in row_of]
    matched = [(example, row_of[example.video]) for example in examples if example.video in row_of]
    timed = [(example, row, _spans(example)) for example, row in matched if len(_spans(example))]
    outside = [
        example.id for example, row, spans in timed if spans.max() > index.durations_s[row] + interval_s
    ]  # a last frame may be shorter than the interval
    facts: dict[str, Any] = {
        "corpus": corpus.name,
        "split": split,
        "annotations": len(examples),
        "rejects": [{"where": reject.where, "id": reject.id, "reason": reject.reason} for reject in rejects],
        "videos": len(videos),
        "hidden_videos": sum(not example.video for example in examples),
        "unmatched_videos": len(strangers),
        "unmatched_annotations": sum(videos[video] for video in strangers),
        "unmatched_examples": strangers[:SHOWN],
        "with_times": len(timed),
        "times_outside": len(outside),
        "times_outside_examples": outside[:SHOWN],
        "interval_s": interval_s,
    }
    if interval_s != corpus.interval_s:
        facts["published_interval_s"] = corpus.interval_s
    if corpus.kind == "moments" and timed:
        frames = np.minimum([index.num_frames[row] for _, row, _ in timed], corpus.max_frames)
        facts["reachable"] = reachability(
            [spans for _, _, spans in timed], frames, interval_s, shortest=corpus.shortest, longest=corpus.longest
        )
    return facts


def reachability(
    spans_s: Sequence[np.ndarray],
    num_frames: np.ndarray,
    interval_s: float,
    *,
    shortest: int,
    longest: int,
    thresholds: Sequence[float] = THRESHOLDS,
) -> dict[str, float]:
    """Share of moments that some allowed answer meets (hero.md 4.2): an upper bound of every recall.

    Args:
        spans_s: N arrays `[A, 2]` of seconds; of four or more, an answer must meet two.
        num_frames: `[N]` frames of each moment's video.
        interval_s: seconds between frames.
        shortest: an answer has more frames than this ...
        longest: ... and at most so many.
        thresholds: least overlaps.

    Returns:
        `label`: share whose own label, rounded to frames, is an allowed answer; and the share by threshold, as "0.7".
    """
    hits = np.zeros(len(thresholds))
    labels = 0
    cells_of = {n: np.argwhere(length_mask(n, shortest, longest)) for n in np.unique(num_frames).tolist()}
    for own, n in zip(spans_s, num_frames.tolist(), strict=True):
        first = min(int(own[0, 0] / interval_s), n - 1)
        last = min(max(int(np.ceil(own[0, 1] / interval_s)) - 1, first + 1), n - 1)
        labels += shortest <= last - first < longest
        overlap_CA = temporal_iou((cells_of[n] + [0, 1])[:, None] * interval_s, own[None])
        needed = AGREE if len(own) >= AGREE_FROM else 1
        for place, threshold in enumerate(thresholds):
            hits[place] += bool(((overlap_CA >= np.float32(threshold)).sum(axis=1) >= needed).any())
    shares = {f"{threshold:g}": float(hit / len(spans_s)) for threshold, hit in zip(thresholds, hits, strict=True)}
    return {"label": labels / len(spans_s), **shares}


def format_corpus_report(facts: dict[str, Any]) -> str:
    """Lay `corpus_report` out as text."""
    lines = [
        f"annotations  {facts['annotations']:,} of {facts['corpus']} {facts['split']} about {facts['videos']:,} videos"
        + (f", {facts['hidden_videos']:,} with their video hidden" if facts["hidden_videos"] else ""),
        f"unmatched    {facts['unmatched_annotations']:,} annotations of {facts['unmatched_videos']:,} videos that the "
        f"store has not{_such_as(facts['unmatched_examples'])}",
        f"times        {facts['with_times']:,} with times, {facts['times_outside']:,} of them beyond their video"
        + _such_as(facts["times_outside_examples"]),
    ]
    if "reachable" in facts:
        share = facts["reachable"]
        lines.append(
            f"reachable    at {facts['interval_s']:g} s a frame: {share['label']:.1%} of labels are allowed answers; "
            + ", ".join(f"{share[cut]:.1%} of moments at IoU {cut}" for cut in share if cut != "label")
        )
    if "published_interval_s" in facts:
        published = facts["published_interval_s"]
        lines.append(f"interval     {facts['interval_s']:g} s between frames; published results used {published:g} s")
    lines.append(f"rejects      {len(facts['rejects']):,}")
    lines += [f"  {reject['where']}: {reject['reason']}" for reject in facts["rejects"]]
    return "\n".join(lines)


def _spans(example: Annotation) -> np.ndarray:
    """[A, 2] seconds of all annotators; A is 0 where there is no time."""
    if example.spans:
        return np.array(example.spans, dtype=np.float64)
    known = not np.isnan(example.start_s)
    return np.array([[example.start_s, example.end_s]] if known else np.zeros((0, 2)), dtype=np.float64)


def _such_as(examples: Sequence[str]) -> str:
    return f" (such as {', '.join(examples)})" if examples else ""
