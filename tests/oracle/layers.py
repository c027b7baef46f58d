"""The building blocks of the padded oracle: functions over a dict of weights with official names (hero.md 1.3-1.7).

Legend: N sequences, L padded length, D hidden, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]

INNER_EPS = 1e-12  # LayerNorms inside transformer layers
OUTER_EPS = 1e-5  # every other LayerNorm


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    """A dense layer; the bias is optional, as in the pooling vectors."""
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def layer_norm(weights: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last dimension."""
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def table(weights: Weights, name: str, ids: Tensor, padding_idx: int | None = None) -> Tensor:
    """Rows of an embedding table; `padding_idx` gets a value but no gradient."""
    return F.embedding(ids, weights[f"{name}.weight"], padding_idx=padding_idx)


def mask_logits(x: Tensor, mask: Tensor) -> Tensor:
    """The official second masking primitive: multiplicative, with -1e4 where the mask is 0."""
    keep = mask.to(x.dtype)
    return x * keep + (1 - keep) * -1e4


def attention(weights: Weights, name: str, x_NLD: Tensor, mask_NL: Tensor, num_heads: int) -> Tensor:
    """Self attention, output projection, residual and LayerNorm (BertAttention). Masked keys get -10000 added."""
    num, length, hidden = x_NLD.shape
    size = hidden // num_heads

    def split(part: str) -> Tensor:
        return linear(weights, f"{name}.self.{part}", x_NLD).view(num, length, num_heads, size).transpose(1, 2)

    scores = split("query") @ split("key").transpose(-1, -2) / size**0.5
    scores = scores + (1.0 - mask_NL.to(scores.dtype))[:, None, None, :] * -10000.0
    context = (scores.softmax(-1) @ split("value")).transpose(1, 2).reshape(num, length, hidden)
    out = linear(weights, f"{name}.output.dense", context) + x_NLD
    return layer_norm(weights, f"{name}.output.LayerNorm", out, INNER_EPS)


def transformer(weights: Weights, name: str, x_NLD: Tensor, mask_NL: Tensor, num_heads: int) -> Tensor:
    """All post-norm layers found under `<name>.layer.<n>`, in order."""
    index = 0
    while f"{name}.layer.{index}.output.dense.weight" in weights:
        layer = f"{name}.layer.{index}"
        x_NLD = attention(weights, f"{layer}.attention", x_NLD, mask_NL, num_heads)
        wide = F.gelu(linear(weights, f"{layer}.intermediate.dense", x_NLD))
        x_NLD = layer_norm(
            weights, f"{layer}.output.LayerNorm", linear(weights, f"{layer}.output.dense", wide) + x_NLD, INNER_EPS
        )
        index += 1
    return x_NLD


def mlp(weights: Weights, name: str, x: Tensor) -> Tensor:
    """The official MLPLayer: dense, GELU, LayerNorm, dense."""
    hidden = F.gelu(linear(weights, f"{name}.linear_1", x))
    return linear(weights, f"{name}.linear_2", layer_norm(weights, f"{name}.LayerNorm", hidden, OUTER_EPS))


def project(weights: Weights, name: str, x: Tensor) -> Tensor:
    """The official LinearLayer without dropout: LayerNorm, dense, ReLU."""
    return torch.relu(linear(weights, f"{name}.net.1", layer_norm(weights, f"{name}.LayerNorm", x, OUTER_EPS)))
