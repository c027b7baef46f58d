"""The objectives over the padded oracle (hero.md 3.4-3.7, 4.2, 4.3): an official batch to its outputs.

Keys of the results are those of the golden out_*.safetensors. `total` is the scalar that training differentiates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from oracle.layers import OUTER_EPS, layer_norm, linear, mask_logits, mlp
from oracle.model import Batch, Oracle
from torch import Tensor

Outputs = dict[str, Tensor]


def mlm(oracle: Oracle, batch: Batch, vocab_pad: int) -> Outputs:
    """Masked words, from the cross-modal encoder alone. The last `vocab_pad` classes are left out of the softmax."""
    frames = torch.arange(batch["v_feat"].shape[1], device=batch["v_feat"].device).unsqueeze(0)
    segments = {
        "f_sub_input_ids": batch["input_ids"],
        "f_sub_pos_ids": batch["position_ids"],
        "f_v_feats": batch["v_feat"],
        "f_v_pos_ids": frames,
        "f_gather_index": batch["gather_index"],
    }
    hidden = oracle.cross_modal(oracle.segment_input(segments), batch["attn_masks"])
    weights, name = oracle.weights, "v_encoder.f_encoder.lm_head"
    x = F.gelu(linear(weights, f"{name}.dense", hidden[batch["txt_mask_tgt"]]))
    x = layer_norm(weights, f"{name}.LayerNorm", x, OUTER_EPS)
    words = weights["v_encoder.f_encoder.embeddings.word_embeddings.weight"]
    scores = F.linear(x, words, weights[f"{name}.bias"])
    scores = scores[:, : scores.shape[1] - vocab_pad]
    loss = F.cross_entropy(scores, batch["txt_labels"], reduction="none")
    return {"scores": scores, "loss": loss, "total": loss.mean()}


def _predicted_features(oracle: Oracle, x: Tensor) -> Tensor:
    weights, name = oracle.weights, "v_encoder.feat_regress"
    x = F.gelu(linear(weights, f"{name}.net.0", x))
    return linear(weights, f"{name}.net.3", layer_norm(weights, f"{name}.net.2", x, OUTER_EPS))


def mfm_nce(oracle: Oracle, batch: Batch) -> Outputs:
    """Masked frames against raw features of the masked and predictions of the unmasked positions."""
    clips = oracle.clips(batch)
    masked = batch["c_v_masks"]
    negative = ~masked if oracle.padding_effects else ~masked & batch["c_attn_masks"].bool()
    pred, neg_pred = _predicted_features(oracle, clips[masked]), _predicted_features(oracle, clips[negative])
    logits = torch.cat([pred @ batch["feat_targets"].T, pred @ neg_pred.T], dim=1)
    loss = F.cross_entropy(logits, torch.arange(len(pred), device=pred.device), reduction="none")
    return {
        "pred": pred,
        "neg_pred": neg_pred,
        "logits": logits,
        "loss": loss,
        "frame_embeddings": clips,
        "total": loss.mean(),
    }


def mffr(oracle: Oracle, batch: Batch) -> Outputs:
    """Masked frames regressed: the Euclidean distance per frame."""
    pred = _predicted_features(oracle, oracle.clips(batch)[batch["c_v_masks"]])
    squared = (pred - batch["feat_targets"]) ** 2
    loss = squared.sum(dim=1).sqrt()
    return {"pred": pred, "loss_elementwise": squared, "loss": loss, "total": loss.mean()}


def fom(oracle: Oracle, batch: Batch) -> Outputs:
    """Frames moved after fusion; every selected slot names the original index of its frame."""
    fused = oracle.fused(batch)
    orders = batch["shuffled_orders"].unsqueeze(-1).expand_as(fused)
    moved = torch.zeros_like(fused).scatter(1, orders, fused)
    hidden = oracle.temporal(moved, batch["c_attn_masks"])
    scores = mlp(oracle.weights, "v_encoder.fom_output", hidden).flatten(0, 1)
    loss = F.cross_entropy(scores, batch["targets"].flatten(), ignore_index=-1)
    return {"scores": scores, "loss": loss, "frame_embeddings_no_clip": fused, "total": loss}


@dataclass(frozen=True)
class Ranking:
    """Settings of the retrieval objectives: VSM, moment retrieval and, with `span_weight` 0, video retrieval."""

    span_weight: float
    ctx_weight: float
    query_weight: float
    margin: float = 0.1
    ranking: Literal["hinge", "lse"] = "hinge"
    hard_pool: int | None = None  # None: hard negatives are off
    hard_weight: float = 10.0


def retrieval(oracle: Oracle, batch: Batch, settings: Ranking) -> Outputs:
    """Span and ranking losses; the `eval_*` and `train_*` values are weighted as in the official code."""
    clips, mask, query = oracle.clips(batch), batch["c_attn_masks"], oracle.queries(batch)
    scores = oracle.video_scores(query, clips, mask)
    num_queries, num_videos = scores.shape
    out = {"frame_embeddings": clips, "query_mod": query, "q2video_scores": scores}
    video = torch.arange(num_queries, device=scores.device) // (num_queries // num_videos)
    ctx, by_query = _ranking_losses(scores, video, settings)
    out["eval_loss_neg_ctx"], out["eval_loss_neg_q"] = settings.ctx_weight * ctx, settings.query_weight * by_query
    out["train_loss_neg_ctx"] = out["eval_loss_neg_ctx"].mean()
    out["train_loss_neg_q"] = out["eval_loss_neg_q"].mean()
    out["total"] = out["train_loss_neg_ctx"] + out["train_loss_neg_q"]
    if settings.span_weight:
        start, end = oracle.span_logits(query, clips, mask)
        # As many queries as videos: query i belongs to video i, and only that pair is reported.
        paired = num_queries == num_videos
        own = torch.arange(num_queries) if paired else batch["q_vidx"]
        own_start, own_end = (x[torch.arange(num_queries), own] for x in (start, end))
        out["st_logits"], out["ed_logits"] = (own_start, own_end) if paired else (start, end)
        for name, reduction in (("eval", "sum"), ("train", "mean")):
            span = F.cross_entropy(own_start, batch["targets"][:, 0], ignore_index=-1, reduction=reduction)
            span = span + F.cross_entropy(own_end, batch["targets"][:, 1], ignore_index=-1, reduction=reduction)
            out[f"{name}_loss_st_ed"] = settings.span_weight * span
        out["total"] = out["total"] + out["train_loss_st_ed"]
    return out


def search(oracle: Oracle, videos: Batch, queries: Batch) -> Outputs:
    """Every query against every video: scores, logits and the probabilities that inference multiplies."""
    clips, query = oracle.clips(videos), oracle.queries(queries)
    start, end = oracle.span_logits(query, clips, videos["c_attn_masks"])
    return {
        "frame_embeddings": clips,
        "q2video_scores": oracle.video_scores(query, clips, videos["c_attn_masks"]),
        "st_logits": start,
        "ed_logits": end,
        "st_prob": start.softmax(-1),
        "ed_prob": end.softmax(-1),
    }


def video_qa(oracle: Oracle, batch: Batch, span_weight: float) -> Outputs:
    """Answers pooled over frames, and frames pooled over answers (hero.md 4.4)."""
    weights, num_questions = oracle.weights, len(batch["targets"])
    clips, mask = oracle.clips_with_texts(batch, "qa"), batch["c_attn_masks"]
    share = mask_logits(linear(weights, "qa_pool", clips), mask.unsqueeze(-1)).softmax(dim=1)
    logits = mlp(weights, "qa_pred_head", (share * clips).sum(dim=1)).view(num_questions, -1)
    clips, mask = (x.unflatten(0, (num_questions, -1)) for x in (clips, mask))
    share = mask_logits(linear(weights, "st_ed_pool", clips), mask.unsqueeze(-1)).softmax(dim=1)
    frames = mlp(weights, "st_ed_pred_head", (share * clips).sum(dim=1))
    masked = mask_logits(frames, mask[:, 0].unsqueeze(-1))
    answer = F.cross_entropy(logits, batch["targets"].squeeze(1), ignore_index=-1)
    ends = [F.cross_entropy(masked[..., i], batch["ts_targets"][:, i], ignore_index=-1) for i in range(2)]
    span = (ends[0] + ends[1]) / 2
    total = answer + span_weight * span
    return {"logits": logits, "st_ed_head": frames, "qa_loss": answer, "temporal_loss": span, "total": total}


def violin(oracle: Oracle, batch: Batch) -> Outputs:
    """One score per statement (hero.md 4.5)."""
    clips, mask = oracle.clips_with_texts(batch, "q"), batch["c_attn_masks"]
    share = mask_logits(linear(oracle.weights, "violin_pool", clips), mask.unsqueeze(-1)).softmax(dim=1)
    logits = mlp(oracle.weights, "violin_pred_head", (share * clips).sum(dim=1))
    loss = F.binary_cross_entropy(logits.sigmoid(), batch["targets"].to(logits.dtype))
    return {"logits": logits, "loss": loss, "total": loss}


def _ranking_losses(scores_QB: Tensor, video_Q: Tensor, settings: Ranking) -> tuple[Tensor, Tensor]:
    """Per query: its own video against the others, and itself against the queries of other videos. Both [Q]."""
    num_queries, num_videos = scores_QB.shape
    if num_videos == 1:  # nothing to rank against: officially one constant 0, not one per query
        return scores_QB.new_zeros(1), scores_QB.new_zeros(1)
    ctx, by_query = [], []
    for i in range(num_queries):
        own = video_Q[i]
        positive = scores_QB[i, own]
        ctx.append(_against(positive, scores_QB[i, torch.arange(num_videos, device=own.device) != own], settings))
        by_query.append(_against(positive, scores_QB[video_Q != own, own], settings))
    return torch.stack(ctx), torch.stack(by_query)


def _against(positive: Tensor, negatives: Tensor, settings: Ranking) -> Tensor:
    ordered = negatives.sort(descending=True).values
    if settings.ranking == "hinge":
        losses = torch.relu(settings.margin + ordered - positive)
    else:
        losses = F.softplus(ordered - positive)
    if settings.hard_pool is not None:
        hard = torch.arange(len(losses), device=losses.device) < settings.hard_pool
        losses = losses * torch.where(hard, settings.hard_weight, 0.1)
    return losses.mean()
