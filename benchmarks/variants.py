"""What `benchmarks.step` times: the same videos and draws, packed for the model and padded as the official code pads.

A `Variant` is one way to compute a step: its losses, its parameters and its optimizer. Variants must agree on losses
and gradients before a time means anything (`check`).
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.tv_like import SEED, TEXT
from hero_model.multitask import MultiTaskHero
from hero_model.nn.layers import compile_blocks
from hero_model.official import official_name, renamed
from hero_model.packed.batch import Examples, VideoRows
from hero_model.tasks import Fom, Mfm, Mlm, Task, Vsm
from hero_model.tasks.base import At, TaskBatch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from oracle import collate, tasks
from oracle.collate import Query, Segment, Video
from oracle.model import Heads, Oracle
from oracle.optim import AdamW, clip

from hero_platform.train.optim import OfficialAdamW, clip_gradients, param_groups, set_learning_rate

AT = At(SEED, 0)
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4  # relative, as in the parity tests
RATE, CLIP, DECAY, BETAS = 3e-5, 1.0, 0.01, (0.9, 0.98)  # of the published pre-training


@dataclass(frozen=True)
class Variant:
    """One way to compute steps."""

    name: str
    losses: Mapping[str, Callable[[], Tensor]]  # kind -> the loss of a step, with gradient
    parameters: Mapping[str, Tensor]  # by official names where those differ
    gradients: Callable[[], Mapping[str, Tensor]]  # official name -> gradient
    update: Callable[[], None]  # clips, steps and forgets the gradients


def packed(model: MultiTaskHero, batches: Mapping[str, TaskBatch], *, compiled: bool = False) -> Variant:
    """The product, eager or with compiled blocks (then a copy of the model is compiled and `model` stays as it is)."""
    if compiled:
        model = copy.deepcopy(model)
        compile_blocks(model)
    optimizer = OfficialAdamW(param_groups(model.named_parameters(), official_name, weight_decay=DECAY), betas=BETAS)
    set_learning_rate(optimizer, RATE)

    def update() -> None:
        clip_gradients(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Variant(
        "packed, compiled" if compiled else "packed, eager",
        {kind: lambda kind=kind, batch=batch: packed_loss(model, kind, batch) for kind, batch in batches.items()},
        dict(model.named_parameters()),
        lambda: renamed({name: p.grad for name, p in model.named_parameters() if p.grad is not None}),
        update,
    )


def padded(model: MultiTaskHero, batches: Mapping[str, Any]) -> Variant:
    """The oracle (tests/oracle) with the same weights, in the official layout, updated one parameter after another."""
    cfg = model.hero.cfg
    weights = {name: part.detach().clone().requires_grad_() for name, part in renamed(model.state_dict()).items()}
    heads = Heads(cfg.cross.num_heads, cfg.temporal.num_heads, cfg.query.num_heads)
    oracle = Oracle(weights, heads, padding_effects=False)
    optimizer = AdamW(BETAS, DECAY)

    def loss(kind: str) -> Tensor:
        batch, task = batches[kind], model.tasks[kind]
        if isinstance(task, Mlm):
            return tasks.mlm(oracle, batch, cfg.vocab_pad)["total"]
        if isinstance(task, Vsm):
            ranking = tasks.Ranking(task.span_weight, task.ctx_weight, task.query_weight, task.margin)
            return tasks.retrieval(oracle, batch, ranking)["total"]
        return (tasks.mfm_nce if isinstance(task, Mfm) else tasks.fom)(oracle, batch)["total"]

    def gradients() -> dict[str, Tensor]:
        return {name: weight.grad for name, weight in weights.items() if weight.grad is not None}

    def update() -> None:
        optimizer.step(weights, clip(gradients(), CLIP)[0], RATE)
        for weight in weights.values():
            weight.grad = None

    losses = {kind: lambda kind=kind: loss(kind) for kind in batches}
    return Variant("padded oracle", losses, weights, gradients, update)


def both_ways(
    kinds: Iterable[Task], rows: VideoRows, device: torch.device, *, pad: bool = True
) -> tuple[dict[str, TaskBatch], dict[str, Any]]:
    """Draw once; pack for the model and (`pad`) collate for the oracle. Batches wait on the device."""
    flat, boxes = {}, {}
    for task in kinds:
        examples = Examples(rows)
        drawn: Any = task.draw(examples, AT, TEXT)
        batch = task.assemble(examples, drawn, TEXT)
        flat[task.kind] = batch.to(device)
        if pad:
            collated = {"mlm": collate.mlm_batch, "mfm": collate.mfm_batch, "fom": collate.fom_batch}
            videos = _oracle_videos(task, rows, drawn, batch)
            boxes[task.kind] = _to(collated.get(task.kind, collate.query_batch)(videos), device)
    return flat, boxes


def _to(value: Any, device: torch.device) -> Any:
    """Move every tensor of what collate returned."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _to(part, device) for key, part in value.items()}
    return [_to(part, device) for part in value] if isinstance(value, list) else value


def packed_loss(model: MultiTaskHero, kind: str, batch: Any) -> Tensor:
    """The weighted mean losses, as the trainer takes them from a task."""
    task = model.tasks[kind]
    output = model(kind, batch, AT)
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
            torch.from_numpy(rows.frames[at]).float(), [segment(s) for s in range(*rows.segment_offsets[number:][:2])]
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


def check(variant: Variant, reference: Variant) -> dict[str, float]:
    """Compare losses and gradients of every task.

    Returns:
        Largest relative distance of a loss ("loss"), and of all gradients of a task as one vector ("gradient").

    Raises:
        SystemExit: they are not the same, so that a time would mean nothing.
    """
    worst = {"loss": 0.0, "gradient": 0.0}
    for kind in variant.losses:
        values, grads = [], []
        for side in (variant, reference):
            loss = side.losses[kind]()
            loss.backward()
            values.append(float(loss.detach()))
            grads.append(side.gradients())
        got, want = values
        ours, theirs = grads
        norm = torch.stack([grad.norm() for grad in theirs.values()]).norm()
        missed = torch.stack([(ours[name] - grad).norm() for name, grad in theirs.items()]).norm() / norm
        extra = [float(grad.norm() / norm) for name, grad in ours.items() if name not in theirs]
        found = {"loss": abs(got - want) / abs(want), "gradient": max([float(missed), *extra])}
        if found["loss"] > LOSS_TOLERANCE or found["gradient"] > GRADIENT_TOLERANCE:
            raise SystemExit(
                f"{kind}: loss {got} {variant.name}, {want} {reference.name}; gradients differ by {missed:.1e}"
            )
        worst = {name: max(value, found[name]) for name, value in worst.items()}
        for tensor in (*variant.parameters.values(), *reference.parameters.values()):
            tensor.grad = None
    return worst
