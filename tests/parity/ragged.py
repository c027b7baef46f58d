"""Random ragged examples: every awkward shape the packed layout must get right, from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from oracle.collate import Caption, Query, Question, Segment, Statement, Video

CLS, SEP, FIRST_WORD = 0, 2, 4


LONGEST = 13  # frames of a clip, where the model's tables have that many
SPARE = 3  # rows of the clip's position table left for more padding


def videos(task: str, seed: int, num_videos: int, sizes: Mapping[str, int]) -> list[Video]:
    """Clips with unmatched frames, wordless and one-word segments, segments without frames, and a one-frame clip.

    `sizes` are those of the model (`golden.sizes`). Two queries a video for `vsm`, one for `vcmr` and `vr`; a question
    for `videoqa`, a statement or two for `violin`. The second question, if there is one, hides its answer and span.
    """
    rng = np.random.default_rng([seed, num_videos, sum(task.encode())])
    longest = min(LONGEST, sizes["fom_classes"], sizes["segment_frames"], sizes["clip_frames"] - SPARE)
    lengths = rng.integers(2, longest, endpoint=True, size=num_videos)
    if num_videos != 1 or seed == 0:
        lengths[rng.integers(num_videos)] = 1
    clips = [_video(rng, task, int(length), sizes["vocab"], sizes["width"]) for length in lengths]
    return _with_questions(rng, clips, sizes["vocab"]) if task == "videoqa" else clips


def _video(rng: np.random.Generator, task: str, length: int, vocab: int, width: int) -> Video:
    frames = torch.from_numpy(rng.standard_normal((length, width), dtype=np.float32))
    segments = _segments(rng, length, vocab)
    if task == "mlm":
        return Video(frames, [_masked(rng, segment, vocab) for segment in segments])
    if task in ("mfm-nce", "mffr"):
        mask = rng.random(length) < 0.4
        mask[rng.integers(length)] = True
        return Video(frames, segments, mask=mask.tolist())
    if task == "fom":
        return _shuffled(rng, Video(frames, segments))
    video = Video(frames, segments)
    if task == "videoqa":
        return video
    if task == "tvc":
        return replace(video, captions=_captions(rng, length, vocab))
    if task == "violin":
        labels = rng.integers(2, size=rng.integers(1, 3)).tolist()
        return replace(video, statements=tuple(Statement(_words(rng, vocab), label) for label in labels))
    return _with_own_queries(rng, video) if task == "vsm" else _with_queries(rng, video, vocab)


def _words(rng: np.random.Generator, vocab: int, at_least: int = 0) -> list[int]:
    return rng.integers(FIRST_WORD, vocab, size=rng.integers(at_least, 7)).tolist()


def _segments(rng: np.random.Generator, length: int, vocab: int) -> list[Segment]:
    """Disjoint runs of frames with gaps between them; the second segment owns no frame and has one word."""
    owner = np.sort(rng.integers(0, 4, size=length))
    owner[1:][rng.random(length - 1) < 0.25] = -1  # frames of no subtitle; the first keeps its own
    segments = []
    for number in range(4):
        indices = np.flatnonzero(owner == number).tolist()
        if indices or number == 3:
            segments.append(Segment([SEP, *_words(rng, vocab)], indices))
    segments.insert(1, Segment([SEP, *rng.integers(FIRST_WORD, vocab, size=1).tolist()], []))
    return segments


def _masked(rng: np.random.Generator, segment: Segment, vocab: int) -> Segment:
    words = segment.text[1:] or _words(rng, vocab, at_least=1)
    chosen = rng.random(len(words)) < 0.4
    chosen[0] |= not chosen.any()
    seen = [int(rng.integers(FIRST_WORD, vocab)) if c else w for w, c in zip(words, chosen, strict=True)]
    labels = [w if c else -1 for w, c in zip(words, chosen, strict=True)]
    return Segment([CLS, *seen], segment.frames, [-1, *labels])


def _shuffled(rng: np.random.Generator, video: Video) -> Video:
    length = len(video.frames)
    selected = np.flatnonzero(rng.random(length) < 0.6) if length > 1 else np.array([0])
    order, targets = np.arange(length), np.full(length, -1)
    order[selected] = rng.permutation(selected)
    targets[order[selected]] = selected
    return Video(video.frames, video.segments, order=order.tolist(), targets=targets.tolist())


def _with_queries(rng: np.random.Generator, video: Video, vocab: int) -> Video:
    """One query that stands in no subtitle, as annotations give them."""
    length = len(video.frames)
    start = int(rng.integers(length))
    end = min(max(start + 1, int(rng.integers(length))), length - 1)
    return replace(video, queries=(Query([CLS, *_words(rng, vocab)], (start, end)),))


def _captions(rng: np.random.Generator, length: int, vocab: int) -> tuple[Caption, ...]:
    """One to four captions, some of one moment, some without a word; the last one's moment starts after the clip."""
    starts = np.sort(rng.integers(length, size=rng.integers(0, 4)))
    ranges = [(int(start), int(rng.integers(start, length)) + 1) for start in starts]
    return tuple(Caption(_words(rng, vocab), span) for span in (*ranges, *ranges[:1], (length, length)))


def _with_questions(rng: np.random.Generator, videos: list[Video], vocab: int) -> list[Video]:
    """Questions with as many answers each, some without a word."""
    num_answers = int(rng.integers(2, 6))
    asked = []
    for number, video in enumerate(videos):
        length = len(video.frames)
        start = int(rng.integers(length))
        span = (start, min(start + 1 + int(rng.integers(3)), length - 1))
        answers = [_words(rng, vocab) for _ in range(num_answers)]
        label, span = (-1, (-1, -1)) if number == 1 else (int(rng.integers(num_answers)), span)
        asked.append(replace(video, question=Question(_words(rng, vocab), answers, label, span)))
    return asked


def _with_own_queries(rng: np.random.Generator, video: Video) -> Video:
    """Two of its subtitles as queries, their text gone from the clip; a video with one such subtitle asks twice."""
    owning = [i for i, segment in enumerate(video.segments) if segment.frames]
    drawn = sorted(rng.permutation(owning)[:2].tolist())
    queries = []
    for i in (drawn * 2)[:2] if len(drawn) == 1 else drawn:
        segment = video.segments[i]
        end = min(max(segment.frames[0] + 1, segment.frames[-1]), len(video.frames) - 1)
        queries.append(Query([CLS, *segment.text[1:]], (segment.frames[0], end), i))
    segments = [
        replace(segment, text=[SEP] if i in drawn else segment.text, own=segment.text[1:])
        for i, segment in enumerate(video.segments)
    ]
    return replace(video, segments=segments, queries=tuple(queries))
