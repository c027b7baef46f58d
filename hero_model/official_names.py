"""Our parameter names <-> those of the official HERO code, by one table (hero.md 2)."""

from __future__ import annotations

import re

from hero_model.official_captions import CAPTION_STEMS, shared_name

CROSS = "v_encoder.f_encoder."
_LAYER = {  # one transformer layer; "{}" stands for query, key, value
    "attention.qkv": "attention.self.{}",
    "attention.out": "attention.output.dense",
    "attention.norm": "attention.output.LayerNorm",
    "widen": "intermediate.dense",
    "narrow": "output.dense",
    "norm": "output.LayerNorm",
}
_STEMS = {  # our module -> official module; "#" stands for the layer number
    **{f"hero.cross.layers.#.{ours}": f"v_encoder.f_encoder.encoder.layer.#.{name}" for ours, name in _LAYER.items()},
    "hero.cross.text.words": "v_encoder.f_encoder.embeddings.word_embeddings",
    "hero.cross.text.positions": "v_encoder.f_encoder.embeddings.position_embeddings",
    "hero.cross.text.types": "v_encoder.f_encoder.embeddings.token_type_embeddings",
    "hero.cross.text.norm": "v_encoder.f_encoder.embeddings.LayerNorm",
    "hero.cross.frames.linear": "v_encoder.f_encoder.img_embeddings.img_linear",
    "hero.cross.frames.raw_norm": "v_encoder.f_encoder.img_embeddings.img_LayerNorm",
    "hero.cross.frames.positions": "v_encoder.f_encoder.img_embeddings.position_embeddings",
    "hero.cross.frames.mask.rows": "v_encoder.f_encoder.img_embeddings.mask_embedding",
    "hero.cross.frames.norm": "v_encoder.f_encoder.img_embeddings.LayerNorm",
    "hero.cross.pooler": "v_encoder.f_encoder.pooler.dense",
    "heads.lm": "v_encoder.f_encoder.lm_head",
    "heads.lm.dense": "v_encoder.f_encoder.lm_head.dense",
    "heads.lm.norm": "v_encoder.f_encoder.lm_head.LayerNorm",
    "hero.frame_transform.norm": "v_encoder.frame_transform.LayerNorm",
    "hero.frame_transform.linear": "v_encoder.frame_transform.net.1",
    "hero.temporal.embedding.positions": "v_encoder.c_encoder.embeddings.position_embeddings",
    "hero.temporal.embedding.norm": "v_encoder.c_encoder.embeddings.LayerNorm",
    **{
        f"hero.temporal.layers.#.{ours}": f"v_encoder.c_encoder.encoder.layer.#.{name}" for ours, name in _LAYER.items()
    },
    "hero.temporal.pooler": "v_encoder.c_encoder.pooler.dense",
    "heads.frames.hidden": "v_encoder.feat_regress.net.0",
    "heads.frames.norm": "v_encoder.feat_regress.net.2",
    "heads.frames.out": "v_encoder.feat_regress.net.3",
    "hero.mask.rows": "v_encoder.mask_embedding",
    "heads.order.hidden": "v_encoder.fom_output.linear_1",
    "heads.order.norm": "v_encoder.fom_output.LayerNorm",
    "heads.order.out": "v_encoder.fom_output.linear_2",
    "heads.query.span_query": "video_query_linear",
    "heads.query.start": "video_st_predictor",
    "heads.query.end": "video_ed_predictor",
    "heads.query.project.norm": "q_feat_attn.query_input_proj.LayerNorm",
    "heads.query.project.linear": "q_feat_attn.query_input_proj.net.1",
    "heads.query.embedding.positions": "q_feat_attn.query_pos_embed.position_embeddings",
    "heads.query.embedding.norm": "q_feat_attn.query_pos_embed.LayerNorm",
    "heads.query.attention.qkv": "q_feat_attn.query_self_attention.self.{}",
    "heads.query.attention.out": "q_feat_attn.query_self_attention.output.dense",
    "heads.query.attention.norm": "q_feat_attn.query_self_attention.output.LayerNorm",
    "heads.query.pool": "q_feat_attn.modular_vector_mapping",
    "heads.answers.pool": "qa_pool",
    "heads.answers.score.hidden": "qa_pred_head.linear_1",
    "heads.answers.score.norm": "qa_pred_head.LayerNorm",
    "heads.answers.score.out": "qa_pred_head.linear_2",
    "heads.answers.span_pool": "st_ed_pool",
    "heads.answers.span.hidden": "st_ed_pred_head.linear_1",
    "heads.answers.span.norm": "st_ed_pred_head.LayerNorm",
    "heads.answers.span.out": "st_ed_pred_head.linear_2",
    "heads.statements.pool": "violin_pool",
    "heads.statements.score.hidden": "violin_pred_head.linear_1",
    "heads.statements.score.norm": "violin_pred_head.LayerNorm",
    "heads.statements.score.out": "violin_pred_head.linear_2",
    **CAPTION_STEMS,
}
_PARTS = ("query", "key", "value")
PLACES = {  # official module -> our module, which part of it, of how many
    stem.format(part): (ours, index, len(parts))
    for ours, stem in _STEMS.items()
    for parts in [_PARTS if "{}" in stem else ("",)]
    for index, part in enumerate(parts)
}
NUMBER = re.compile(r"(?<=\.layer\.)\d+|(?<=\.layers\.)\d+")


def official_names(name: str) -> tuple[str, ...]:
    """The official name of one of our parameters, or the three of a joined query-key-value projection.

    Raises:
        ValueError: If the official model has no such parameter.
    """
    stem, leaf, number = split(shared_name(name))
    if stem not in _STEMS:
        raise ValueError(f"the official model has no parameter for {name}")
    official = f"{_STEMS[stem].replace('#', number)}.{leaf}"
    return tuple(official.format(part) for part in _PARTS) if "{}" in official else (official,)


def split(name: str) -> tuple[str, str, str]:
    """Module with "#" for the layer number, parameter, layer number (or an empty string)."""
    stem, _, leaf = name.rpartition(".")
    found = NUMBER.search(stem)
    return NUMBER.sub("#", stem), leaf, found.group() if found else ""
