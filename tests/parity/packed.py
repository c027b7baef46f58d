"""The packed model on a case: explicit draws in, golden output names and official gradient names out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from oracle.collate import Video
from oracle.tasks import Outputs, Ranking
from parity import golden
from torch import Tensor

from hero_model import official
from hero_model.config import HeroConfig, TextIds
from hero_model.multitask import MultiTaskHero
from hero_model.packed.batch import Examples, VideoRows
from hero_model.packed.masking import FrameOrder, TokenMask
from hero_model.packed.pack import Texts, offsets_of
from hero_model.tasks import Captioning, Entailment, Fom, Mfm, Mlm, MomentRetrieval, VideoQa, VideoRetrieval, Vsm
from hero_model.tasks.alignment import Alignment, AlignmentBatch, Queries
from hero_model.tasks.base import At, Task, TaskBatch
from hero_model.tasks.captioning import CaptionBatch, Captions
from hero_model.tasks.entailment import Statements
from hero_model.tasks.video_qa import Questions

AT = At(seed=0, step=0)
ENCODER_TASKS = (Mlm(), Mfm(), Fom())  # their heads are parts of every official model
# Official kinds with heads of their own; small decoders have no positions for long captions.
OWN_HEADS = {"videoqa": VideoQa(), "violin": Entailment(), "tvc": Captioning(max_tokens=1)}


def all_heads(cfg: HeroConfig) -> MultiTaskHero:
    """A new model with every pre-training head."""
    return MultiTaskHero(cfg, (*ENCODER_TASKS, Vsm(), MomentRetrieval()))


def config(folder: Path, vocab_pad: int = 0) -> HeroConfig:
    """The sizes of a set's stored weights."""
    stored, sizes = golden.stored_weights(folder), golden.sizes(folder)
    cfg = official.config_from_official(
        golden.model_config(folder), frame_dim=sizes["width"], max_segment_frames=sizes["segment_frames"]
    )
    return replace(
        cfg,
        vocab_size=len(stored["v_encoder.f_encoder.lm_head.bias"]),
        vocab_pad=vocab_pad,
        span_kernel=stored["video_st_predictor.weight"].shape[-1],
        fom_classes=sizes["fom_classes"],
    )


def load(folder: Path, vocab_pad: int = 0, task: str = "") -> MultiTaskHero:
    """The packed model with a set's weights; the heads outside the encoder are those of an official task."""
    cfg = config(folder, vocab_pad)
    model = MultiTaskHero(cfg, (*ENCODER_TASKS, OWN_HEADS[task])) if task in OWN_HEADS else all_heads(cfg)
    official.load_official(golden.stored_weights(folder, task), model)
    return model


def text_ids(folder: Path) -> TextIds:
    """Special ids of a set."""
    ids, sizes = golden.read_json(folder / "spec.json")["special_ids"], golden.sizes(folder)
    low, high = ids["v_range"]
    return TextIds(ids["CLS"], ids["PAD"], ids["SEP"], ids["MASK"], sizes["vocab"], low, high)


# -- tasks and batches -------------------------------------------------------------------------------------------


def task_of(
    kind: str, *, context: int = 0, ranking: Ranking | None = None, video_only: bool = False, smoothing: float = 0.1
) -> Task:
    """Our task for an official kind; limits that would cut something are off."""
    if kind == "mlm":
        return Mlm(context=context, max_tokens=10**6)
    if kind in ("mfm-nce", "mffr"):
        return Mfm(context=context, loss="nce" if kind == "mfm-nce" else "regression")
    if kind == "fom":
        return Fom(context=context)
    if kind == "tvc":
        return Captioning(context=context, smoothing=smoothing)
    if kind in OWN_HEADS:
        return replace(OWN_HEADS[kind], context=context)
    assert ranking is not None
    common = {
        "context": context,
        "span_weight": ranking.span_weight,
        "ctx_weight": ranking.ctx_weight,
        "query_weight": ranking.query_weight,
        "margin": ranking.margin,
        "ranking": ranking.ranking,
        "hard_start": -1 if ranking.hard_pool is None else 0,
        "hard_pool": ranking.hard_pool or 1,
        "hard_weight": ranking.hard_weight,
    }
    if kind == "vsm":
        return Vsm(max_tokens=10**6, **common)
    return (VideoRetrieval if kind == "vr" else MomentRetrieval)(video_only=video_only, **common)


def rows_of(videos: Sequence[Video]) -> VideoRows:
    """The examples as a store would hold them: own words of every subtitle, nothing masked."""
    segments = [segment for video in videos for segment in video.segments]
    words = [segment.own if segment.own is not None else _unmasked(segment)[1:] for segment in segments]
    return VideoRows(
        ids=tuple(f"video {i}" for i in range(len(videos))),
        keys=np.arange(len(videos), dtype=np.uint64),
        interval_s=np.ones(len(videos)),
        frames=torch.cat([video.frames for video in videos]).numpy(),
        frame_offsets=_offsets([video.frames for video in videos]),
        segment_offsets=_offsets([video.segments for video in videos]),
        tokens=np.array([word for part in words for word in part], dtype=np.int32),
        token_offsets=_offsets(words),
        segment_frames=np.array([frame for segment in segments for frame in segment.frames], dtype=np.int64),
        segment_frame_offsets=_offsets([segment.frames for segment in segments]),
    )


def batch_of(task: Task, videos: Sequence[Video], text: TextIds) -> TaskBatch:
    """Assemble the task's batch from the draws the examples carry."""
    examples = Examples(rows_of(videos))
    rows = examples.videos
    if isinstance(task, Mlm):
        segments = [segment for video in videos for segment in video.segments]
        seen = np.array([token for segment in segments for token in segment.text[1:]], dtype=np.int64)
        labels = np.array([label for segment in segments for label in segment.labels[1:]])
        return task.assemble(examples, TokenMask(labels >= 0, seen), text)
    if isinstance(task, Mfm):
        return task.assemble(examples, np.array([m for video in videos for m in video.mask]), text)
    if isinstance(task, Fom):
        order = np.array([slot for video in videos for slot in video.order], dtype=np.int64)
        slots = [np.array(video.targets) for video in videos]
        selected = np.concatenate([np.isin(np.arange(len(slot)), slot[slot >= 0]) for slot in slots])
        return task.assemble(examples, FrameOrder(selected, order), text)
    if isinstance(task, VideoQa):
        return task.assemble(examples, questions_of(videos), text)
    if isinstance(task, Entailment):
        return task.assemble(examples, statements_of(videos), text)
    if isinstance(task, Captioning):
        return task.assemble(examples, captions_of(videos), text)
    pairs = [(row, query) for row, video in enumerate(videos) for query in video.queries]
    if isinstance(task, Vsm):
        drawn = np.array([rows.segment_offsets[row] + query.segment for row, query in pairs])
        return task.assemble(examples, drawn, text)
    queries = Queries(
        texts=_texts([query.text[1:] for _, query in pairs]),
        targets=np.array([query.span for _, query in pairs]),
        video_Q=np.array([row for row, _ in pairs]),
        keys_Q=np.arange(len(pairs), dtype=np.uint64),
    )
    return task.assemble(examples, queries, text, with_span=bool(task.span_weight))


def questions_of(videos: Sequence[Video]) -> Questions:
    """One question a video."""
    asked = [video.question for video in videos]
    return Questions(
        texts=_texts([question.text for question in asked]),
        answers=_texts([answer for question in asked for answer in question.answers]),
        answer_offsets=_offsets([question.answers for question in asked]),
        labels=np.array([question.label for question in asked]),
        spans=np.array([question.span for question in asked]),
        video_Q=np.arange(len(videos)),
        keys_Q=np.arange(len(videos), dtype=np.uint64),
    )


def statements_of(videos: Sequence[Video]) -> Statements:
    """Any number of statements a video."""
    pairs = [(row, statement) for row, video in enumerate(videos) for statement in video.statements]
    return Statements(
        texts=_texts([statement.text for _, statement in pairs]),
        labels=np.array([statement.label for _, statement in pairs]),
        video_N=np.array([row for row, _ in pairs]),
        keys_N=np.arange(len(pairs), dtype=np.uint64),
    )


def captions_of(videos: Sequence[Video]) -> Captions:
    """Any number of captions a video."""
    pairs = [(row, caption) for row, video in enumerate(videos) for caption in video.captions]
    return Captions(
        texts=_texts([caption.text for _, caption in pairs]),
        ranges=np.array([caption.range for _, caption in pairs]),
        video_C=np.array([row for row, _ in pairs]),
        keys_C=np.arange(len(pairs), dtype=np.uint64),
    )


def _texts(words: Sequence[Sequence[int]]) -> Texts:
    return Texts(np.array([word for part in words for word in part], dtype=np.int64), _offsets(words))


def _unmasked(segment) -> list[int]:
    if segment.labels is None:
        return segment.text
    return [label if label >= 0 else token for token, label in zip(segment.text, segment.labels, strict=True)]


def _offsets(parts: Sequence[Sequence]) -> np.ndarray:
    return offsets_of(np.array([len(part) for part in parts], dtype=np.int64))


# -- results ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """A case run through `task.forward`: what training sees."""

    total: Tensor  # mean losses, weighted, summed
    terms: dict[str, Tensor]  # weighted sums, and means of each "<term>/mean", and "<term>/unweighted"


def losses(model: MultiTaskHero, task: Task, batch: TaskBatch) -> Result:
    """Every loss term as the trainer takes it from a task: sums over counts, times weights."""
    output = task.forward(model.hero, model.heads[task.head_name], batch, AT)
    sums = {name: (value, batch.counts[name]) for name, value in output.sums.items()}
    if output.pooled is not None:
        sums |= task.pool_terms(output.pooled, batch.videos.clips, AT)
    weights = task.weights(AT)
    terms = {name: weights[name] * value for name, (value, _) in sums.items()}
    means = {f"{name}/mean": terms[name] / count for name, (_, count) in sums.items() if count}
    plain = {f"{name}/unweighted": value / count for name, (value, count) in sums.items() if count}
    return Result(total=sum(means.values()), terms=terms | means | plain)


def outputs(model: MultiTaskHero, task: Task, batch: TaskBatch) -> Outputs:
    """The model's outputs under golden names; clip rows stay packed, `[F, ...]` or `[Q, F]`."""
    hero, head = model.hero, model.heads[task.head_name]
    if isinstance(task, Mlm):
        return {"scores": head(hero.encode_segments(batch.videos, batch.reads), hero.words_VD)}
    if isinstance(task, VideoQa):
        said = task.answer(hero, head, batch)
        return {"logits": said.scores_N.view(batch.answers.num_sequences, -1), "st_ed_head": said.spans_P2}
    if isinstance(batch, CaptionBatch):
        states = hero.encode_video(batch.videos)
        rows = {"logits": head(batch.tokens, batch.captions, states, batch.memory, hero.words_VD)}
        rows["encoder_outputs"] = torch.cat([states, torch.zeros_like(states[:1])])[batch.memory.rows]
        layouts = (batch.captions, batch.memory.layout)
        return {
            name: torch.cat([x.tensor_split(layout.offsets[1:-1].long())[i] for i in np.argsort(batch.order)])
            for (name, x), layout in zip(rows.items(), layouts, strict=True)
        }
    if isinstance(task, Entailment):
        return {"logits": task.judge(hero, head, batch).unsqueeze(-1)}
    fused = hero.fuse(batch.videos, hero.encode_frames(batch.videos))
    out = {"frame_embeddings_no_clip": fused}
    if isinstance(task, Fom):
        return out | {"scores": head(hero.encode_clips(fused[batch.sources], batch.videos.clips))}
    states = hero.encode_clips(fused, batch.videos.clips)
    out["frame_embeddings"] = states
    if isinstance(task, Mfm):
        return out | {"pred": head(states[batch.masked]), "neg_pred": head(states[batch.unmasked])}
    assert isinstance(batch, AlignmentBatch) and isinstance(task, Alignment)
    query = head.encode(hero.encode_text(batch.queries), batch.queries.layout)[batch.places]
    start, end = head.span_logits_all(query, states, batch.videos.clips)
    scores = head.video_scores(query, states, batch.videos.clips)
    return out | {"query_mod": query, "q2video_scores": scores, "st_logits": start, "ed_logits": end}


def gradients(model: MultiTaskHero, loss: Tensor) -> dict[str, Tensor | None]:
    """Gradients by official name; None where the loss never reaches."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    found: dict[str, Tensor | None] = {}
    for name, parameter, grad in zip(names, parameters, grads, strict=True):
        parts = official.renamed({name: parameter if grad is None else grad})
        found |= parts if grad is not None else dict.fromkeys(parts)
    return found
