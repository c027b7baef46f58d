"""Forward and backward of the packed model against the padded oracle in the official layout, on the same videos.

python -m benchmarks.step [--size base|debug] [--videos 8] [--repeats 5] [--threads 2] [--clock wall|cpu]
python -m benchmarks.step --device cuda --videos 32 [--copies 8]

The videos have the statistics of TV (hero.md 7.1), the tasks the published mix MLM : MFM : FOM : VSM = 2 : 2 : 1 : 2.
The oracle (tests/oracle) gets the batch exactly as the official collate functions pad it, and no dropout runs on either
side. Both losses and gradients are compared before anything is timed. Collating is not timed. Needs torch and numpy.
The padded base model needs about 0.5 GB a video, and on two cores minutes a step: hence 8 videos unless told otherwise.

On a GPU both are compared in fp32 and timed in bf16 (autocast); besides, the packed model takes `--copies` times the
videos at once, and what it computes a second is set against a large matrix product in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.results import row
from hero_model import config as sizes
from hero_model.config import HeroConfig, TextIds
from hero_model.multitask import MultiTaskHero
from hero_model.official import renamed
from hero_model.packed.batch import Examples, VideoRows
from hero_model.packed.pack import offsets_of, spans
from hero_model.tasks import Fom, Mfm, Mlm, Task, Vsm
from hero_model.tasks.base import At, TaskBatch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from oracle import collate, tasks
from oracle.collate import Query, Segment, Video
from oracle.model import Heads, Oracle

SEED = (
    65  # of the first 100 the one whose 32 videos are most like hero.md 7.1: 720 segments padded to 41 rows (717, 42)
)
BATCH = 32  # videos of one GPU in the official recipe
AT = At(SEED, 0)
TEXT = TextIds()
MIX: dict[Task, int] = {Mlm(): 2, Mfm(): 2, Fom(): 1, Vsm(): 2}
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4  # relative, as in the parity tests

# hero.md 7.1: 51.6 frames, 22.6 subtitles of 1.9 frames and 11.4 tokens a video.
FRAMES_MEAN, FRAMES_STD, FRAMES_LIMITS = 51.6, 15.0, (15, 100)
SEGMENTS_PER_FRAME, OWNED_MEAN = 22.6 / 51.6, 1.9
TOKENS_SHAPE, TOKENS_MEAN = 4.0, 11.4


def tv_like(num_videos: int, frame_dim: int) -> VideoRows:
    """Videos of one official batch of 32 with TV's statistics, ordered by length as the feed orders them.

    Fewer than 32 are that batch's longest clip, the owner of its longest segment, and others at even distances: so the
    official code pads them exactly as it pads all 32. Equal for equal arguments.
    """
    rng = np.random.default_rng(SEED)
    frames = rng.normal(FRAMES_MEAN, FRAMES_STD, BATCH).round().clip(*FRAMES_LIMITS).astype(np.int64)
    num_frames = np.sort(frames)
    owned = [_owned(rng, int(count)) for count in num_frames]
    words = [
        rng.gamma(TOKENS_SHAPE, TOKENS_MEAN / TOKENS_SHAPE, len(video)).round().clip(1).astype(np.int64)
        for video in owned
    ]
    longest = [max(n + count for (_, n), count in zip(*video, strict=True)) for video in zip(owned, words, strict=True)]
    widest = [BATCH - 1, int(np.argmax(longest))]
    others = np.setdiff1d(np.arange(BATCH), widest)
    even = others[np.linspace(0, len(others) - 1, num_videos - len(set(widest))).round().astype(np.int64)]
    chosen = np.sort(np.concatenate([np.unique(widest), even]))
    parts = np.array([part for i in chosen for part in owned[i]])
    num_tokens = np.concatenate([words[i] for i in chosen])
    return VideoRows(
        ids=tuple(f"video-{i}" for i in chosen),
        keys=chosen.astype(np.uint64),
        interval_s=np.full(num_videos, 1.5),
        frames=rng.standard_normal((num_frames[chosen].sum(), frame_dim), dtype=np.float32),
        frame_offsets=offsets_of(num_frames[chosen]),
        segment_offsets=offsets_of(np.array([len(owned[i]) for i in chosen])),
        tokens=rng.integers(TEXT.random_low, TEXT.random_high, num_tokens.sum()).astype(np.int32),
        token_offsets=offsets_of(num_tokens),
        segment_frames=spans(parts[:, 0], parts[:, 1]),
        segment_frame_offsets=offsets_of(parts[:, 1]),
    )


def _owned(rng: np.random.Generator, num_frames: int) -> list[tuple[int, int]]:
    """First frame and number of frames of each subtitle of one video: in order, apart, with gaps between them."""
    counts = 1 + rng.poisson(OWNED_MEAN - 1, round(num_frames * SEGMENTS_PER_FRAME))
    counts = counts[np.cumsum(counts) <= num_frames]
    gaps = rng.multinomial(num_frames - counts.sum(), np.full(len(counts) + 1, 1 / (len(counts) + 1)))
    starts = np.cumsum(counts) - counts + np.cumsum(gaps[:-1])
    return list(zip(starts.tolist(), counts.tolist(), strict=True))


@dataclass(frozen=True)
class Contest:
    """One task, both ways: functions from nothing to a loss with gradient."""

    task: Task
    packed: Callable[[], Tensor]
    padded: Callable[[], Tensor]


def contest(task: Task, rows: VideoRows, model: MultiTaskHero, oracle: Oracle, device: torch.device) -> Contest:
    """Draw once; pack for the model, collate for the oracle. Both batches wait on the device."""
    examples = Examples(rows)
    drawn: Any = task.draw(examples, AT, TEXT)
    batch = task.assemble(examples, drawn, TEXT)
    videos = _oracle_videos(task, rows, drawn, batch)
    run: Callable[[Any], tasks.Outputs]
    if isinstance(task, Mlm):
        padded, run = collate.mlm_batch(videos), lambda b: tasks.mlm(oracle, b, model.hero.cfg.vocab_pad)
    elif isinstance(task, Mfm):
        padded, run = collate.mfm_batch(videos), lambda b: tasks.mfm_nce(oracle, b)
    elif isinstance(task, Fom):
        padded, run = collate.fom_batch(videos), lambda b: tasks.fom(oracle, b)
    else:
        assert isinstance(task, Vsm)
        ranking = tasks.Ranking(task.span_weight, task.ctx_weight, task.query_weight, task.margin)
        padded, run = collate.query_batch(videos), lambda b: tasks.retrieval(oracle, b, ranking)
    there, moved = batch.to(device), _to(padded, device)
    return Contest(task, lambda: _packed_loss(model, task, there), lambda: run(moved)["total"])


def _to(value: Any, device: torch.device) -> Any:
    """Move every tensor of what collate returned."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _to(part, device) for key, part in value.items()}
    return [_to(part, device) for part in value] if isinstance(value, list) else value


def _packed_loss(model: MultiTaskHero, task: Task, batch: TaskBatch) -> Tensor:
    """The weighted mean losses, as the trainer takes them from a task."""
    output = model(task.kind, batch, AT)
    terms = {name: value / batch.counts[name] for name, value in output.sums.items()}
    if output.pooled is not None:
        ranked = task.pool_terms(output.pooled, batch.videos.clips, AT)
        terms |= {name: value / count for name, (value, count) in ranked.items()}
    weights = task.weights(AT)
    return torch.stack([weights[name] * value for name, value in terms.items()]).sum()


def _oracle_videos(task: Task, rows: VideoRows, drawn: Any, batch: Any) -> list[Video]:
    """The same videos and draws as the oracle's collate takes them."""
    words, inputs = rows.tokens, rows.tokens
    labels: np.ndarray | None = None
    lead, removed = TEXT.sep, set()
    if isinstance(task, Mlm):
        inputs, lead, labels = drawn.inputs, TEXT.cls, np.where(drawn.chosen, words, -1)
    elif isinstance(task, Vsm):
        removed = set(drawn.tolist())

    def segment(s: int) -> Segment:
        at = slice(*rows.token_offsets[s : s + 2])
        own = [] if s in removed else inputs[at].tolist()
        frames = rows.segment_frames[slice(*rows.segment_frame_offsets[s : s + 2])].tolist()
        return Segment([lead, *own], frames, None if labels is None else [-1, *labels[at].tolist()])

    def query(q: int) -> Query:
        text = words[slice(*rows.token_offsets[drawn[q] : drawn[q] + 2])][: task.max_tokens]
        return Query([TEXT.cls, *text.tolist()], tuple(batch.targets[q].tolist()))

    videos = []
    for number in range(rows.num_videos):
        at = slice(*rows.frame_offsets[number : number + 2])
        video = Video(
            torch.from_numpy(rows.frames[at]), [segment(s) for s in range(*rows.segment_offsets[number:][:2])]
        )
        if isinstance(task, Mfm):
            video = replace(video, mask=drawn[at].tolist())
        if isinstance(task, Fom):
            order, targets = drawn.order[at], np.full(len(video.frames), -1)
            selected = np.flatnonzero(drawn.selected[at])
            targets[order[selected]] = selected
            video = replace(video, order=order.tolist(), targets=targets.tolist())
        if isinstance(task, Vsm):
            mine = np.flatnonzero(batch.video_Q == number)
            video = replace(video, queries=tuple(query(int(q)) for q in mine))
        videos.append(video)
    return videos


def check(rival: Contest, model: MultiTaskHero, weights: dict[str, Tensor]) -> None:
    """Both ways must compute the same loss and the same gradients.

    Raises:
        SystemExit: they do not, so that a time would mean nothing.
    """
    losses = [rival.packed(), rival.padded()]
    for loss in losses:
        loss.backward()
    got, want = (float(loss.detach()) for loss in losses)
    ours = renamed({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    theirs = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
    norm = torch.stack([grad.norm() for grad in theirs.values()]).norm()
    missed = torch.stack([(ours[name] - grad).norm() for name, grad in theirs.items()]).norm() / norm
    if abs(got - want) > LOSS_TOLERANCE * abs(want) or missed > GRADIENT_TOLERANCE:
        raise SystemExit(f"{rival.task.kind}: loss {got} packed, {want} padded; gradients differ by {missed:.1e}")
    _forget(model, weights)


def _forget(model: MultiTaskHero, weights: dict[str, Tensor]) -> None:
    """Drop gradients, as a step does."""
    for tensor in (*model.parameters(), *weights.values()):
        tensor.grad = None


def timed(loss: Callable[[], Tensor], clock: Callable[[], float], device: torch.device) -> float:
    """Seconds of one forward and backward, in bf16 on a GPU."""
    started = clock()
    with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
        computed = loss()
    computed.backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def mixed(seconds: dict[str, float]) -> float:
    """Mean seconds of a step of the mix."""
    return sum(share * seconds[task.kind] for task, share in MIX.items()) / sum(MIX.values())


def main() -> None:
    """Check, then let both take turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("base", "debug"), default="base")
    parser.add_argument("--videos", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--copies", type=int, default=8, help="times the videos at once, for the rate on a GPU")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a busy machine; 1 thread")
    own = parser.parse_args()
    if not 3 <= own.videos <= BATCH or (own.clock == "cpu" and own.threads > 1):
        parser.error(f"give 3 to {BATCH} videos, and --threads 1 for --clock cpu: waiting threads burn time too")
    clock = time.perf_counter if own.clock == "wall" else time.process_time
    torch.set_num_threads(own.threads)
    torch.manual_seed(SEED)
    cfg: HeroConfig = getattr(sizes, own.size)()
    device = torch.device(own.device)
    model = MultiTaskHero(cfg, tuple(MIX)).eval().to(device)
    weights = {name: part.detach().clone().requires_grad_() for name, part in renamed(model.state_dict()).items()}
    heads = Heads(cfg.cross.num_heads, cfg.temporal.num_heads, cfg.query.num_heads)
    oracle = Oracle(weights, heads, padding_effects=False)
    rows = tv_like(own.videos, cfg.frame_dim)
    rivals = [contest(task, rows, model, oracle, device) for task in MIX]
    for rival in rivals:
        check(rival, model, weights)
        for side in (rival.packed, rival.padded):  # the warm-up
            timed(side, clock, device)
            _forget(model, weights)
    packed, padded = [], []
    for turn in range(own.repeats):
        seconds: dict[str, dict[str, float]] = {"packed": {}, "padded": {}}
        for rival in rivals:
            for side in ("packed", "padded") if turn % 2 else ("padded", "packed"):
                seconds[side][rival.task.kind] = timed(getattr(rival, side), clock, device)
                _forget(model, weights)
        packed.append(mixed(seconds["packed"]))
        padded.append(mixed(seconds["padded"]))
        print(
            "  ".join(f"{kind} {seconds['padded'][kind] / s:.2f}x" for kind, s in seconds["packed"].items()), flush=True
        )
    ratios = [slow / fast for slow, fast in zip(padded, packed, strict=True)]
    real = len(rows.segment_frames) + len(rows.tokens) + len(rows.token_offsets) - 1
    print(
        row(
            f"step: {own.size}, {own.videos} of {BATCH} TV-like videos, 2:2:1:2, "
            + (f"fp32, {own.threads} threads, {own.clock} clock" if own.device == "cpu" else f"bf16, {_gpu()}"),
            f"packed {_spread([own.videos / s for s in packed])} videos/s, padded oracle "
            f"{_spread([own.videos / s for s in padded])}: {_spread(ratios)} times as fast "
            f"(median, min-max of {own.repeats}); {_padded_rows(rows) / real:.2f} padded rows per real one",
        )
    )
    if own.device == "cuda":
        print(_rate(model, copied(rows, own.copies), own.repeats))


def copied(rows: VideoRows, copies: int) -> VideoRows:
    """The same videos several times, as different ones."""

    def joined(offsets: np.ndarray) -> np.ndarray:
        return offsets_of(np.tile(np.diff(offsets), copies))

    num_videos = rows.num_videos * copies
    return VideoRows(
        ids=tuple(f"video-{i}" for i in range(num_videos)),
        keys=np.arange(num_videos, dtype=np.uint64),
        interval_s=np.tile(rows.interval_s, copies),
        frames=np.tile(rows.frames, (copies, 1)),
        frame_offsets=joined(rows.frame_offsets),
        segment_offsets=joined(rows.segment_offsets),
        tokens=np.tile(rows.tokens, copies),
        token_offsets=joined(rows.token_offsets),
        segment_frames=np.tile(rows.segment_frames, copies),
        segment_frame_offsets=joined(rows.segment_frame_offsets),
    )


def _rate(model: MultiTaskHero, rows: VideoRows, repeats: int) -> str:
    """Operations a second of packed steps of the mix, counted by torch, against a matrix product of 8192 cubed."""
    device = torch.device("cuda")
    one, other = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    product, flops, seconds = [], 0.0, []
    steps: dict[Task, Callable[[], Tensor]] = {}
    for task in MIX:
        examples = Examples(rows)
        batch = task.assemble(examples, task.draw(examples, AT, TEXT), TEXT).to(device)
        steps[task] = lambda task=task, batch=batch: _packed_loss(model, task, batch)
        with FlopCounterMode(display=False) as counter:
            timed(steps[task], time.perf_counter, device)
        flops += counter.get_total_flops() * MIX[task] / sum(MIX.values())
    for _ in range(repeats):
        timed_each = {}
        for task, step in steps.items():
            _forget(model, {})
            timed_each[task.kind] = timed(step, time.perf_counter, device)
        seconds.append(mixed(timed_each))
        began = time.perf_counter()
        for _ in range(20):
            one @ other
        torch.cuda.synchronize()
        product.append(20 * 2 * 8192**3 / (time.perf_counter() - began) / 1e12)
    rates = [flops / s / 1e12 for s in seconds]
    return row(
        f"matrix rate of a packed step: {rows.num_videos} TV-like videos, 2:2:1:2, bf16, {_gpu()}",
        f"{_spread(rates)} TFLOP/s, {_spread([rows.num_videos / s for s in seconds])} videos/s; a product of 8192 cubed"
        f" {_spread(product)} TFLOP/s: {_spread([a / b for a, b in zip(rates, product, strict=True)])} of it"
        f" (median, min-max of {repeats})",
    )


def _gpu() -> str:
    return torch.cuda.get_device_name()


def _padded_rows(rows: VideoRows) -> int:
    """Rows of the official cross-modal batch: segments times the longest."""
    lengths = np.diff(rows.segment_frame_offsets) + np.diff(rows.token_offsets) + 1
    return len(lengths) * int(lengths.max())


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g}-{max(values):.3g})"


if __name__ == "__main__":
    main()
