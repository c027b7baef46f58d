"""The caption decoder over padded captions and padded memories, and its greedy search without a cache (hero.md 4.6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from oracle.layers import INNER_EPS, OUTER_EPS, layer_norm, linear, table
from oracle.model import Batch, Oracle
from oracle.tasks import Outputs
from torch import Tensor

WORDS = "v_encoder.f_encoder.embeddings.word_embeddings"
IGNORED = -1


def captioning(oracle: Oracle, batch: Batch, smoothing: float) -> Outputs:
    """Scores and losses of every next word. Without smoothing the mean counts padding too, as officially."""
    states, mask = memories(oracle, batch)
    logits = decode(oracle, batch["cap_input_ids"], states, mask)
    targets = batch["cap_tgt_ids"].flatten()
    plain = F.cross_entropy(logits.flatten(0, 1), targets, ignore_index=IGNORED, reduction="none")
    out = {"encoder_outputs": states, "logits": logits, "loss_per_token": plain, "loss_per_token_lsr0": plain}
    if smoothing:
        valid = targets != IGNORED
        log_probs = logits.flatten(0, 1)[valid].log_softmax(-1)
        wanted = torch.full_like(log_probs, smoothing / (log_probs.shape[1] - 1))
        wanted[torch.arange(len(wanted)), targets[valid]] = 1 - smoothing
        loss = F.kl_div(log_probs, wanted, reduction="none").sum(-1)
        out["loss_per_token"] = out[f"loss_per_token_lsr{smoothing:g}"] = loss
    return out | {"total": out["loss_per_token"].mean()}


def greedy(oracle: Oracle, batch: Batch, bos: int, eos: int, steps: int) -> list[list[int]]:
    """The whole prefix is decoded again at each step; captions are cut at their first end token."""
    states, mask = memories(oracle, batch)
    tokens = torch.full((len(mask), 1), bos)
    for _ in range(steps):
        scores = decode(oracle, tokens, states, mask)[:, -1]
        tokens = torch.cat([tokens, scores.argmax(-1, keepdim=True)], dim=1)
    rows = tokens[:, 1:].tolist()
    return [row[: row.index(eos)] if eos in row else row for row in rows]


def memories(oracle: Oracle, batch: Batch) -> tuple[Tensor, Tensor]:
    """The frame states of every caption's moment, zero beyond its end: [C, M, D], and their mask [C, M]."""
    clips, mask = oracle.clips(batch), batch["cap_attn_mask"]
    rows = []
    for clip, ranges in zip(clips, batch["clip_ranges"], strict=True):
        for start, end in ranges:
            rows.append(F.pad(clip[start:end], (0, 0, 0, mask.shape[1] - (end - start))))
    return torch.stack(rows), mask


def decode(oracle: Oracle, ids_CL: Tensor, memory_CMD: Tensor, mask_CM: Tensor) -> Tensor:
    """Scores of the word after each given one: [C, L, V]."""
    weights, length = oracle.weights, ids_CL.shape[1]
    x = table(weights, WORDS, ids_CL, padding_idx=1) + table(weights, "position_embeddings", torch.arange(length))
    x = layer_norm(weights, "emb_LayerNorm", x, OUTER_EPS)
    later = torch.ones(length, length).triu(1).expand(len(ids_CL), 1, length, length)
    absent = (1 - mask_CM)[:, None, None, :]
    index = 0
    while (name := f"decoder.layer.{index}") and f"{name}.self_attention.query.weight" in weights:
        x = _attend(oracle, f"{name}.self_attention", f"{name}.add_norm_1", x, x, later)
        x = _attend(oracle, f"{name}.dec_enc_attention", f"{name}.add_norm_2", x, memory_CMD, absent)
        wide = F.gelu(linear(weights, f"{name}.intermidiate.dense", x))
        x = _add(oracle, f"{name}.add_norm_3", wide, x)
        index += 1
    name = "v_encoder.f_encoder.lm_head"
    x = layer_norm(weights, f"{name}.LayerNorm", F.gelu(linear(weights, f"{name}.dense", x)), OUTER_EPS)
    return F.linear(x, weights[f"{WORDS}.weight"], weights[f"{name}.bias"])


def _attend(oracle: Oracle, name: str, after: str, x_CLD: Tensor, memory_CMD: Tensor, hidden: Tensor) -> Tensor:
    """Multi-head attention; `hidden` keys (1) get -10000 added."""

    def split(part: str, states: Tensor) -> Tensor:
        return (
            linear(oracle.weights, f"{name}.{part}", states).unflatten(-1, (oracle.heads.decoder, -1)).transpose(1, 2)
        )

    query, key, value = split("query", x_CLD), split("key", memory_CMD), split("value", memory_CMD)
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + hidden.to(query.dtype) * -10000.0
    return _add(oracle, after, (scores.softmax(-1) @ value).transpose(1, 2).flatten(2), x_CLD)


def _add(oracle: Oracle, name: str, x: Tensor, residual: Tensor) -> Tensor:
    x = linear(oracle.weights, f"{name}.dense", x) + residual
    return layer_norm(oracle.weights, f"{name}.LayerNorm", x, INNER_EPS)
