"""What sharing a video's frames between the answers of a question saves, at base size (hero.md 4.4).

The official code copies a video once for each answer. Here the readings of a question name the frames they show, which
lie once in the batch and are projected once. The same questions are packed both ways: as they are, and with each answer
as a question of its own about a copy of the video of its own. Scores and loss are compared first; then features packed,
peak memory and the time of forward and backward are measured, each way in a process of its own.

python -m benchmarks.readings [--questions 2] [--repeats 3] [--clock wall|cpu] [--record]
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.results import record, row
from hero_model.config import TextIds, base
from hero_model.multitask import MultiTaskHero
from hero_model.nn.losses import span_cross_entropy
from hero_model.packed.batch import Examples, Layout, VideoRows
from hero_model.packed.draw import hash_id
from hero_model.packed.pack import Texts, offsets_of, spans
from hero_model.tasks import VideoQa
from hero_model.tasks.video_qa import QuestionBatch, Questions

TEXT = TextIds()
TASK = VideoQa(span_weight=0.0)  # spans are pooled over the answers of a question, which copies cannot do
ANSWERS, FRAMES, SEGMENTS, WORDS, QUESTION, ANSWER = 5, 51, 22, 11, 13, 5  # TVQA's means (hero.md 5.7, 7.1)
TOLERANCE = 1e-5  # relative, as in the parity tests
WAYS = ("shared", "copied")


def rows_of(num_videos: int) -> VideoRows:
    """Videos of TV's mean size; every frame belongs to a subtitle."""
    rng = np.random.default_rng(0)
    frames, segments = num_videos * FRAMES, num_videos * SEGMENTS
    cuts = np.linspace(0, FRAMES, SEGMENTS + 1).round().astype(np.int64)
    ids = tuple(f"video-{i}" for i in range(num_videos))
    return VideoRows(
        ids=ids,
        keys=np.array([hash_id(name) for name in ids], dtype=np.uint64),
        interval_s=np.full(num_videos, 1.5),
        frames=rng.standard_normal((frames, base().frame_dim), dtype=np.float32).astype(np.float16),
        frame_offsets=np.arange(num_videos + 1) * FRAMES,
        segment_offsets=np.arange(num_videos + 1) * SEGMENTS,
        tokens=rng.integers(TEXT.random_low, TEXT.random_high, segments * WORDS).astype(np.int32),
        token_offsets=np.arange(segments + 1) * WORDS,
        segment_frames=np.tile(np.arange(FRAMES), num_videos),
        segment_frame_offsets=offsets_of(np.tile(np.diff(cuts), num_videos)),
    )


def questions_of(num_videos: int) -> Questions:
    """One question a video, with five answers."""
    rng = np.random.default_rng(1)
    answers = num_videos * ANSWERS

    def texts(count: int, length: int) -> Texts:
        words = rng.integers(TEXT.random_low, TEXT.random_high, count * length)
        return Texts(words, np.arange(count + 1) * length)

    return Questions(
        texts=texts(num_videos, QUESTION),
        answers=texts(answers, ANSWER),
        answer_offsets=np.arange(num_videos + 1) * ANSWERS,
        labels=rng.integers(0, ANSWERS, num_videos),
        spans=np.full((num_videos, 2), -1),
        video_Q=np.arange(num_videos),
        keys_Q=np.arange(num_videos, dtype=np.uint64),
    )


def copied(rows: VideoRows, asked: Questions) -> tuple[VideoRows, Questions]:
    """Each answer as a question of its own about a copy of its video."""
    videos = np.repeat(asked.video_Q, ANSWERS)
    each = np.arange(len(videos))

    def parts(values: np.ndarray, size: int) -> np.ndarray:
        return values[spans(videos * size, np.full(len(videos), size))]

    repeated = replace(
        rows,
        ids=tuple(f"{rows.ids[video]}-{i}" for i, video in enumerate(videos.tolist())),
        keys=rows.keys[videos],
        interval_s=rows.interval_s[videos],
        frames=parts(rows.frames, FRAMES),
        frame_offsets=np.arange(len(videos) + 1) * FRAMES,
        segment_offsets=np.arange(len(videos) + 1) * SEGMENTS,
        tokens=parts(rows.tokens, SEGMENTS * WORDS),
        token_offsets=np.arange(len(videos) * SEGMENTS + 1) * WORDS,
        segment_frames=np.tile(np.arange(FRAMES), len(videos)),
        segment_frame_offsets=offsets_of(parts(np.diff(rows.segment_frame_offsets), SEGMENTS)),
    )
    words = asked.texts.tokens.reshape(-1, QUESTION)[videos].ravel()
    alone = Questions(
        texts=Texts(words, np.arange(len(videos) + 1) * QUESTION),
        answers=asked.answers,
        answer_offsets=np.arange(len(videos) + 1),
        labels=np.zeros(len(videos), dtype=np.int64),
        spans=np.full((len(videos), 2), -1),
        video_Q=each,
        keys_Q=each.astype(np.uint64),
    )
    return repeated, alone


def packed(way: str, num_questions: int) -> QuestionBatch:
    """The batch, one way or the other; both have the same answers in the same order."""
    rows, asked = rows_of(num_questions), questions_of(num_questions)
    if way == "copied":
        rows, asked = copied(rows, asked)
    return TASK.assemble(Examples(rows), asked, TEXT)


def model_of() -> MultiTaskHero:
    """The base model, the same in every process, without dropout: the two ways draw it for different rows."""
    torch.manual_seed(0)
    return MultiTaskHero(replace(base(), dropout=0.0, attention_dropout=0.0), (TASK,))


def loss_of(model: MultiTaskHero, batch: QuestionBatch, num_questions: int) -> tuple[Tensor, Tensor]:
    """Cross entropy of the right answers, summed, and the score of every answer `[N]`."""
    scores_N = TASK.answer(model.hero, model.heads[TASK.head_name], batch).scores_N  # type: ignore[arg-type]
    labels = torch.from_numpy(questions_of(num_questions).labels)
    return span_cross_entropy(scores_N, Layout.of(np.full(num_questions, ANSWERS)), labels).loss, scores_N


def compare(num_questions: int) -> float:
    """The largest relative difference between both ways, of scores and loss."""
    torch.set_num_threads(1)
    model = model_of()
    with torch.inference_mode():
        (one, scores), (other, again) = (loss_of(model, packed(way, num_questions), num_questions) for way in WAYS)
    return max(float((scores - again).abs().max() / scores.abs().max()), float((one - other).abs() / one))


def measure(way: str, num_questions: int, repeats: int, clock: str) -> dict[str, Any]:
    """Bytes of features, seconds to pack, seconds a step and how much memory the steps added at their peak."""
    torch.set_num_threads(1)
    now = time.perf_counter if clock == "wall" else time.process_time
    model = model_of()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    packing, steps = [], []
    for _ in range(repeats + 1):  # the first one warms up
        began = now()
        batch = packed(way, num_questions)
        packing.append(now() - began)
        began = now()
        loss_of(model, batch, num_questions)[0].backward()
        model.zero_grad()
        steps.append(now() - began)
    return {
        "feature_bytes": batch.videos.frames.nbytes,
        "pack_s": statistics.median(packing[1:]),
        "step_s": steps[1:],
        "peak_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=2, help="each about a video of its own (default 2)")
    parser.add_argument("--repeats", type=int, default=3, help="steps that are timed (default 3)")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="cpu", help="cpu: for a machine that is shared")
    parser.add_argument("--record", action="store_true", help="append the row to results.md")
    own = parser.parse_args(argv)
    context = multiprocessing.get_context("spawn")  # peak memory is a process's own
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        difference = pool.submit(compare, own.questions).result()
        if difference > TOLERANCE:
            raise SystemExit(f"the two ways differ by {difference:.1e}, more than {TOLERANCE:g}: nothing is measured")
        found = {w: pool.submit(measure, w, own.questions, own.repeats, own.clock).result() for w in WAYS}
    said = _row(own, found, difference)
    if own.record:
        record(*said)
    else:
        print(row(*said))


def _row(own: argparse.Namespace, found: dict[str, dict[str, Any]], difference: float) -> tuple[str, str]:
    """What was measured, and the numbers."""
    shared, other = (found[way] for way in WAYS)
    times = {way: statistics.median(found[way]["step_s"]) for way in WAYS}
    spread = {way: f"{min(found[way]['step_s']):.1f}-{max(found[way]['step_s']):.1f}" for way in WAYS}
    title = (
        f"readings: base, {own.questions} TV-like questions of {ANSWERS} answers, shared frames against a copy each, "
        f"fp32, 1 thread, {own.clock} clock"
    )
    one, two = (f"{times[way]:.1f} ({spread[way]})" for way in WAYS)
    result = (
        f"features {shared['feature_bytes'] / 1e6:.2f} against {other['feature_bytes'] / 1e6:.2f} MB; packing "
        f"{shared['pack_s'] * 1e3:.1f} against {other['pack_s'] * 1e3:.1f} ms; forward and backward {one} "
        f"against {two} s; peak memory above the model {shared['peak_mb']:,.0f} against {other['peak_mb']:,.0f} MB; "
        f"losses and scores agree to {difference:.0e}"
    )
    return title, result


if __name__ == "__main__":
    main()
