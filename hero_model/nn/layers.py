"""Building blocks on packed rows: normalisation, the post-norm transformer layer and small heads (hero.md 1.3, 1.7).

Legend: R packed rows, D hidden width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hero_model.config import EncoderConfig, HeroConfig
from hero_model.nn.attention import packed_attention
from hero_model.packed.batch import Layout, Reads

OUTER_NORM_EPS = 1e-5  # every LayerNorm outside a transformer layer; HeroConfig.layer_norm_eps inside (hero.md 1.3)


class LayerNorm(nn.LayerNorm):
    """LayerNorm in the dtype of its own weights, so that autocast never runs it in half precision."""

    def __init__(self, width: int, eps: float = OUTER_NORM_EPS) -> None:
        super().__init__(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension; returns the dtype of the weights."""
        return super().forward(x.to(self.weight.dtype))


class AttentionBlock(nn.Module):
    """Multi-head self-attention, output projection, dropout, residual, LayerNorm: one half of a BERT layer."""

    def __init__(self, cfg: HeroConfig, num_heads: int) -> None:
        super().__init__()
        if cfg.hidden_size % num_heads:
            raise ValueError(f"hidden_size {cfg.hidden_size} must be a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.attention_dropout = cfg.attention_dropout
        self.qkv = nn.Linear(cfg.hidden_size, 3 * cfg.hidden_size)  # rows: query, key, value
        self.out = nn.Linear(cfg.hidden_size, cfg.hidden_size)
        self.dropout = nn.Dropout(cfg.dropout)
        self.norm = LayerNorm(cfg.hidden_size, cfg.layer_norm_eps)

    def forward(self, x_RD: Tensor, layout: Layout, reads: Reads | None = None, *, causal: bool = False) -> Tensor:
        """`[R, D]` to `[R, D]`, each sequence of `layout` on its own; causal: a row sees itself and earlier rows.

        With `reads` only its n rows ask and are computed: `[n, D]`.
        """
        dropout_p = self.attention_dropout if self.training else 0.0
        if reads is None:
            return self.add(packed_attention(*self.project(x_RD), layout, dropout_p, causal=causal), x_RD)
        x_nD = x_RD.index_select(0, reads.rows)
        qkv = self.project_read(x_nD, x_RD)
        return self.add(packed_attention(*qkv, reads.layout, dropout_p, memory=layout), x_nD)

    def project(self, x_RD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each `[R, H, d]`."""
        q, k, v = self.qkv(x_RD).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        return q, k, v

    def project_read(self, x_nD: Tensor, x_RD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries `[n, H, d]` of the rows that are read, keys and values `[R, H, d]` of all."""
        parts = [x_nD.shape[-1], 2 * x_nD.shape[-1]]
        (query_weight, weight), (query_bias, bias) = self.qkv.weight.split(parts), self.qkv.bias.split(parts)
        q = F.linear(x_nD, query_weight, query_bias).unflatten(-1, (self.num_heads, -1))
        k, v = F.linear(x_RD, weight, bias).unflatten(-1, (2, self.num_heads, -1)).unbind(1)
        return q, k, v

    def add(self, context_RHd: Tensor, x_RD: Tensor) -> Tensor:
        """Output projection of the contexts, residual and LayerNorm: `[R, D]`."""
        return self.norm(self.dropout(self.out(context_RHd.flatten(1))) + x_RD)


class TransformerLayer(nn.Module):
    """Post-norm BERT layer with the exact (erf) GELU."""

    def __init__(self, cfg: HeroConfig, encoder: EncoderConfig) -> None:
        super().__init__()
        self.attention = AttentionBlock(cfg, encoder.num_heads)
        self.widen = nn.Linear(cfg.hidden_size, encoder.intermediate_size)
        self.narrow = nn.Linear(encoder.intermediate_size, cfg.hidden_size)
        self.dropout = nn.Dropout(cfg.dropout)
        self.norm = LayerNorm(cfg.hidden_size, cfg.layer_norm_eps)

    def forward(self, x_RD: Tensor, layout: Layout, reads: Reads | None = None) -> Tensor:
        """`[R, D]` to `[R, D]`, or to the `[n, D]` rows of `reads`."""
        return self.feed_forward(self.attention(x_RD, layout, reads))

    def feed_forward(self, x_RD: Tensor) -> Tensor:
        """The second half, row by row: `[R, D]` to `[R, D]`."""
        return self.norm(self.dropout(self.narrow(F.gelu(self.widen(x_RD)))) + x_RD)


class TransformerStack(nn.ModuleList):
    """The layers of one encoder. With `checkpoint_activations` a layer is run again in backward instead of stored."""

    def __init__(self, cfg: HeroConfig, encoder: EncoderConfig, *, checkpoint_activations: bool) -> None:
        super().__init__(TransformerLayer(cfg, encoder) for _ in range(encoder.num_layers))
        self.checkpoint_activations = checkpoint_activations

    def forward(self, x_RD: Tensor, layout: Layout, reads: Reads | None = None) -> Tensor:
        """`[R, D]` to `[R, D]`, or to the `[n, D]` rows of `reads`: earlier layers feed keys and values of all rows."""
        *earlier, last = self
        for layer, wanted in (*((layer, None) for layer in earlier), (last, reads)):
            if self.checkpoint_activations and torch.is_grad_enabled():
                x_RD = checkpoint(layer, x_RD, layout, wanted, use_reentrant=False)
            else:
                x_RD = layer(x_RD, layout, wanted)
        return x_RD


class Projection(nn.Module):
    """LayerNorm, dropout, linear, ReLU: how raw frames and query states enter the next stage."""

    def __init__(self, width_in: int, width_out: int, dropout: float) -> None:
        super().__init__()
        self.norm = LayerNorm(width_in)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width_in, width_out)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., width_in]` to `[..., width_out]`."""
        return F.relu(self.linear(self.dropout(self.norm(x))))


class Mlp(nn.Module):
    """Linear, GELU, LayerNorm, linear: the shape of every prediction head (no dropout, hero.md 1.14)."""

    def __init__(self, width_in: int, width_hidden: int, width_out: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width_in, width_hidden)
        self.norm = LayerNorm(width_hidden)
        self.out = nn.Linear(width_hidden, width_out)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., width_in]` to `[..., width_out]`."""
        return self.out(self.norm(F.gelu(self.hidden(x))))


def compile_blocks(module: nn.Module) -> None:
    """Compile the row-by-row blocks of a model in place: feed-forward halves, projections and prediction heads.

    Attention stays eager: its graph would depend on each batch's runs of equal length and be compiled again and again.
    The blocks depend on the number of rows only, which is dynamic, so each is compiled once. Names of parameters stay.
    """
    for part in module.modules():
        if isinstance(part, TransformerLayer):
            part.feed_forward = torch.compile(part.feed_forward, dynamic=True)  # type: ignore[method-assign]
        elif isinstance(part, Projection | Mlp):
            part.forward = torch.compile(part.forward, dynamic=True)  # type: ignore[method-assign]


def init_normal(module: nn.Module, std: float) -> None:
    """Initialise in place as HERO does inside `v_encoder` (hero.md 1.13).

    Linear and embedding weights ~ N(0, std), padding rows included, since the official code overwrites their zeros;
    linear biases 0. LayerNorms already start at weight 1, bias 0.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
