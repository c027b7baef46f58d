"""HERO in the official padded batch layout: slow, readable, sharing with the product only the weights (design D2).

A batch is a dict with the keys of the official collate functions (hero.md 1.6). `padding_effects` is the one switch:
on, the two results that depend on how long a batch was padded come out as in the official code (hero.md 1.15);
off, nothing depends on padding.

Legend: B videos, S segments, L padded segment length, T padded clip length, Q queries, V frame feature width, D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from oracle.layers import (
    OUTER_EPS,
    Weights,
    attention,
    layer_norm,
    linear,
    mask_logits,
    project,
    table,
    transformer,
)
from torch import Tensor

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Heads:
    """Attention heads of each stack: they cannot be read off the weights (hero.md 1.2)."""

    cross: int
    temporal: int
    query: int
    decoder: int = 0


@dataclass(frozen=True)
class Oracle:
    """The shared encoders. Tasks are functions over it in oracle/tasks.py."""

    weights: Weights
    heads: Heads
    padding_effects: bool = True

    # -- cross-modal encoder -------------------------------------------------------------------------------------

    def embed_text(self, ids_SL: Tensor, positions_1L: Tensor) -> Tensor:
        """Word + position + type row 1, normalised: [S, Lt, D]."""
        name = "v_encoder.f_encoder.embeddings"
        x = table(self.weights, f"{name}.word_embeddings", ids_SL, padding_idx=1)
        x = x + table(self.weights, f"{name}.position_embeddings", positions_1L)
        x = x + self._type_row()
        return layer_norm(self.weights, f"{name}.LayerNorm", x, OUTER_EPS)

    def embed_frames(self, feats_SKV: Tensor, positions_1K: Tensor, masks_SK: Tensor | None) -> Tensor:
        """Projected features + position inside the segment + type row 1: [S, Lv, D]."""
        name = "v_encoder.f_encoder.img_embeddings"
        x = feats_SKV
        if masks_SK is not None:
            x = x + table(self.weights, f"{name}.mask_embedding", masks_SK.long(), padding_idx=0)
        x = linear(self.weights, f"{name}.img_linear", layer_norm(self.weights, f"{name}.img_LayerNorm", x, OUTER_EPS))
        x = x + table(self.weights, f"{name}.position_embeddings", positions_1K) + self._type_row()
        return layer_norm(self.weights, f"{name}.LayerNorm", x, OUTER_EPS)

    def segment_input(self, batch: Batch) -> Tensor:
        """Frames and text of every segment gathered into one sequence, padding at its end: [S, L, D]."""
        text = self.embed_text(batch["f_sub_input_ids"], batch["f_sub_pos_ids"])
        frames = self.embed_frames(batch["f_v_feats"], batch["f_v_pos_ids"], batch.get("f_v_masks"))
        both = torch.cat([frames, text], dim=1)
        index = batch["f_gather_index"].unsqueeze(-1).expand(-1, -1, both.shape[-1])
        return both.gather(1, index)

    def cross_modal(self, x_SLD: Tensor, mask_SL: Tensor) -> Tensor:
        """The cross-modal transformer over segments or, in text-only mode, over texts."""
        return transformer(self.weights, "v_encoder.f_encoder.encoder", x_SLD, mask_SL, self.heads.cross)

    # -- clips ---------------------------------------------------------------------------------------------------

    def matched_frames(self, batch: Batch, hidden_SLD: Tensor) -> Tensor:
        """Frame outputs of each segment put back at their place in the clip, zero elsewhere: [B, T, D]."""
        num, length = batch["c_v_feats"].shape[:2]
        videos, slots, rows, columns = [], [], [], []
        start = 0
        for video, entries in enumerate(batch["sub_idx2frame_idx"]):
            for segment, frames in entries:
                for column, frame in enumerate(frames):
                    videos.append(video)
                    slots.append(frame)
                    rows.append(start + segment)
                    columns.append(column)
            start += batch["num_subs"][video]
        zeros = hidden_SLD.new_zeros(num, length, hidden_SLD.shape[-1])
        place = (torch.tensor(videos, dtype=torch.long), torch.tensor(slots, dtype=torch.long))
        return zeros.index_put(place, hidden_SLD[rows, columns], accumulate=True)

    def frame_branch(self, batch: Batch) -> Tensor:
        """The residual branch over raw clip features: [B, T, D]."""
        x = batch["c_v_feats"]
        if "c_v_masks" in batch:
            x = x + table(self.weights, "v_encoder.mask_embedding", batch["c_v_masks"].long(), padding_idx=0)
        return project(self.weights, "v_encoder.frame_transform", x)

    def fused(self, batch: Batch) -> Tensor:
        """Frames before the temporal transformer (encode_clip off): [B, T, D]."""
        hidden = self.cross_modal(self.segment_input(batch), batch["f_attn_masks"])
        return self.frame_branch(batch) + self.matched_frames(batch, hidden)

    def embed_clip(self, x_BTD: Tensor) -> Tensor:
        """Temporal position and LayerNorm: the temporal transformer's input."""
        name = "v_encoder.c_encoder.embeddings"
        x = x_BTD + table(
            self.weights, f"{name}.position_embeddings", torch.arange(x_BTD.shape[1], device=x_BTD.device)
        )
        return layer_norm(self.weights, f"{name}.LayerNorm", x, OUTER_EPS)

    def temporal(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """The temporal transformer over whole clips."""
        x = self.embed_clip(x_BTD)
        return transformer(self.weights, "v_encoder.c_encoder.encoder", x, mask_BT, self.heads.temporal)

    def clips(self, batch: Batch) -> Tensor:
        """Encoded clips: [B, T, D]."""
        return self.temporal(self.fused(batch), batch["c_attn_masks"])

    def clips_with_texts(self, batch: Batch, name: str) -> Tensor:
        """Clips encoded with the text of `<name>_input_ids` behind their frames, which alone are kept: [B, T, D]."""
        text = self.embed_text(batch[f"{name}_input_ids"], batch[f"{name}_pos_ids"])
        x = torch.cat([self.embed_clip(self.fused(batch)), text], dim=1)
        mask = torch.cat([batch["c_attn_masks"], batch[f"{name}_attn_masks"]], dim=1)
        x = transformer(self.weights, "v_encoder.c_encoder.encoder", x, mask, self.heads.temporal)
        return x[:, : batch["c_attn_masks"].shape[1]]

    # -- queries -------------------------------------------------------------------------------------------------

    def query_tokens(self, batch: Batch) -> Tensor:
        """Text-only mode of the cross-modal encoder: [Q, Lq, D]."""
        x = self.embed_text(batch["query_input_ids"], batch["query_pos_ids"])
        return self.cross_modal(x, batch["query_attn_masks"])

    def queries(self, batch: Batch) -> Tensor:
        """One vector per query: [Q, D] (hero.md 1.10)."""
        mask = batch["query_attn_masks"]
        x = project(self.weights, "q_feat_attn.query_input_proj", self.query_tokens(batch))
        name = "q_feat_attn.query_pos_embed"
        x = x + table(self.weights, f"{name}.position_embeddings", torch.arange(x.shape[1], device=x.device))
        x = layer_norm(self.weights, f"{name}.LayerNorm", x, OUTER_EPS)
        x = attention(self.weights, "q_feat_attn.query_self_attention", x, mask, self.heads.query)
        scores = linear(self.weights, "q_feat_attn.modular_vector_mapping", x)
        share = mask_logits(scores, mask.unsqueeze(-1)).softmax(dim=1)
        return (share * x).sum(dim=1)

    # -- alignment -----------------------------------------------------------------------------------------------

    def video_scores(self, query_QD: Tensor, clips_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Largest cosine of a query with any frame of a video: [Q, B]."""
        query = F.normalize(query_QD, dim=-1, eps=1e-5)
        clips = F.normalize(clips_BTD, dim=-1, eps=1e-5)
        cosine = torch.einsum("qd,btd->qbt", query, clips)
        return mask_logits(cosine, mask_BT.unsqueeze(0)).max(dim=-1).values

    def span_logits(self, query_QD: Tensor, clips_BTD: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Start and end logits of every query on every video: 2 x [Q, B, T]."""
        query = linear(self.weights, "video_query_linear", query_QD)
        scores = torch.einsum("qd,btd->qbt", query, clips_BTD)
        if not self.padding_effects:
            scores = scores * mask_BT.to(scores.dtype)
        return self._smooth("video_st_predictor", scores, mask_BT), self._smooth("video_ed_predictor", scores, mask_BT)

    def _smooth(self, name: str, scores_QBT: Tensor, mask_BT: Tensor) -> Tensor:
        kernel = self.weights[f"{name}.weight"]
        num_queries, num_videos, length = scores_QBT.shape
        flat = scores_QBT.reshape(num_queries * num_videos, 1, length)
        out = F.conv1d(flat, kernel, padding=kernel.shape[-1] // 2).view(num_queries, num_videos, length)
        return mask_logits(out, mask_BT.unsqueeze(0))

    def _type_row(self) -> Tensor:
        return self.weights["v_encoder.f_encoder.embeddings.token_type_embeddings.weight"][1]
