"""Writing captions: greedy and beam search over packed memories of any lengths, with a key/value cache (hero.md 4.6).

Every caption being written has the same number of words, so self-attention needs no layout; its beams are the queries
of one sequence whose memory is the moment's frames. A caption whose beams have all ended leaves the batch.

Legend: M captions to write, N of them still being written, W beams, t words so far, P rows of all memories, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hero_model.config import TextIds
from hero_model.nn.decoder import CaptionHead, DecoderLayer, Memory, with_zero_state
from hero_model.nn.losses import wide
from hero_model.packed.batch import Layout
from hero_model.packed.pack import offsets_of, spans


@dataclass(frozen=True)
class Search:
    """How captions are searched."""

    num_beams: int = 1  # 1: greedy
    max_tokens: int = 30  # of a caption, its end token included
    length_penalty: float = 0.0  # finished beams are compared by log-probability / words ** this; the end is a word

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: no beam, or no word.
        """
        if self.num_beams < 1 or self.max_tokens < 1:
            raise ValueError(f"a search needs at least one beam and one token, not {self.num_beams}, {self.max_tokens}")


class Beams(NamedTuple):
    """The best caption of each moment."""

    tokens: np.ndarray  # [words] int64, caption after caption, without special tokens at either end
    offsets: np.ndarray  # [M + 1] int64
    scores: np.ndarray  # [M] float64, sum of the log-probabilities of its words and its end

    def at(self, order: np.ndarray) -> Beams:
        """The captions in another order: `order[i]` says which one becomes the i-th."""
        lengths = np.diff(self.offsets)[order]
        return Beams(self.tokens[spans(self.offsets[:-1][order], lengths)], offsets_of(lengths), self.scores[order])

    def lists(self) -> list[list[int]]:
        """The captions as lists of token ids."""
        return [part.tolist() for part in np.split(self.tokens, self.offsets[1:-1])]


@dataclass
class _Cache:
    """What one layer remembers of the captions being written."""

    keys: Tensor  # [N * W, t, H, d] of the words
    values: Tensor
    read: tuple[Tensor, Tensor]  # [P, H, d] keys and values of the memories

    def extend(self, key: Tensor, value: Tensor) -> None:
        """Add one word, `[N * W, H, d]`."""
        self.keys = torch.cat([self.keys, key[:, None]], dim=1)
        self.values = torch.cat([self.values, value[:, None]], dim=1)

    def pick(self, beams: Tensor, memory_rows: Tensor | None) -> None:
        """Keep these beams, in this order, and these rows of the memories (None: all)."""
        self.keys, self.values = self.keys.index_select(0, beams), self.values.index_select(0, beams)
        if memory_rows is not None:
            key, value = (part.index_select(0, memory_rows) for part in self.read)
            self.read = (key, value)


@torch.no_grad()
def search(head: CaptionHead, states_FD: Tensor, memory: Memory, words_VD: Tensor, text: TextIds, how: Search) -> Beams:
    """Write the most probable caption of each memory that the search finds.

    A beam that has ended keeps its place with its score, so with one beam this is greedy decoding.

    Args:
        head: The decoder; in evaluation mode.
        states_FD: `[F, D]` from `Hero.encode_video`.
        memory: M sequences; sorted by length they run fastest.
        words_VD: `[V, D]` word embedding.
        text: Special ids: a caption starts with `cls` and ends with `sep`.
        how: Settings.

    Raises:
        ValueError: captions may be longer than the decoder has positions.
    """
    if how.max_tokens > head.positions.num_embeddings:
        raise ValueError(
            f"captions of up to {how.max_tokens} tokens need as many positions; this decoder has "
            f"{head.positions.num_embeddings}"
        )
    lengths = np.repeat(*np.array(memory.layout.runs, dtype=np.int64).reshape(-1, 2).T)
    device, width = states_FD.device, how.num_beams
    words = np.full((len(lengths), how.max_tokens), text.sep)
    scores = np.zeros(len(lengths))
    states_FD = with_zero_state(states_FD)
    caches = [_start(layer, states_FD, memory, len(lengths) * width) for layer in head.stack]
    live = np.arange(len(lengths))  # captions still being written
    tokens = torch.full((len(live), width, 1), text.cls, device=device)
    # The beams of a caption start equal: only the first may go on, or they would stay equal.
    sums = torch.full((len(live), width), -torch.inf, device=device)
    sums[:, 0] = 0.0
    for step in range(how.max_tokens):
        if not len(live):
            break
        log_probs = _next_words(head, caches, tokens[:, :, -1], step, Layout.of(lengths[live]).to(device), words_VD)
        ended = tokens[:, :, -1] == text.sep if step else torch.zeros_like(tokens[:, :, -1], dtype=torch.bool)
        sums, parents, chosen = _best(sums, log_probs, ended, text.sep)
        tokens = torch.cat([tokens.gather(1, parents[:, :, None].expand_as(tokens)), chosen[:, :, None]], dim=2)
        done = (chosen == text.sep).all(dim=1).cpu().numpy() | (step + 1 == how.max_tokens)
        best, best_sums = _winners(tokens[:, :, 1:], sums, text.sep, how.length_penalty)
        words[live[done], : step + 1] = best.cpu().numpy()[done]
        scores[live[done]] = best_sums.cpu().numpy()[done]
        kept = np.flatnonzero(~done)
        tokens, sums, parents = (x[torch.from_numpy(kept).to(device)] for x in (tokens, sums, parents))
        _prune(caches, parents, kept, lengths[live])
        live = live[kept]
    ends = (words == text.sep).argmax(axis=1)
    num_words = np.where((words == text.sep).any(axis=1), ends, how.max_tokens)
    return Beams(words[np.arange(how.max_tokens) < num_words[:, None]], offsets_of(num_words), scores)


def _start(layer: DecoderLayer, states_FD: Tensor, memory: Memory, num_beams: int) -> _Cache:
    read = layer.cross.read(states_FD, memory.rows)
    nothing = read[0].new_empty(num_beams, 0, *read[0].shape[1:])
    return _Cache(nothing, nothing, read)


def _next_words(
    head: CaptionHead, caches: list[_Cache], tokens_NW: Tensor, step: int, memory: Layout, words_VD: Tensor
) -> Tensor:
    """Log-probabilities of every next word, `[N, W, V]`; each layer's cache takes in the last word."""
    num, width = tokens_NW.shape
    beams = Layout.of(np.full(num, width)).to(tokens_NW.device)
    last = tokens_NW.flatten()
    x = head.embed(last, torch.full_like(last, step), words_VD)
    for layer, cache in zip(head.stack, caches, strict=True):
        query, key, value = layer.attention.project(x)
        cache.extend(key, value)
        context = F.scaled_dot_product_attention(
            query[:, :, None], cache.keys.transpose(1, 2), cache.values.transpose(1, 2)
        )
        x = layer.attention.add(context.squeeze(2), x)
        x = layer.feed_forward(layer.cross(x, beams, cache.read, memory))
    return wide(head.lm(x, words_VD)).log_softmax(-1).unflatten(0, (num, width))


def _best(sums_NW: Tensor, log_probs_NWV: Tensor, ended_NW: Tensor, end: int) -> tuple[Tensor, Tensor, Tensor]:
    """The W best continuations of each caption: their sums, which beam each continues, and its word, all `[N, W]`."""
    width, num_words = log_probs_NWV.shape[1:]
    stay = torch.full_like(log_probs_NWV[0, 0], -torch.inf)
    stay[end] = 0.0  # an ended beam has one continuation, for free
    totals = sums_NW[:, :, None] + torch.where(ended_NW[:, :, None], stay, log_probs_NWV)
    sums, places = totals.flatten(1).topk(width, dim=1)
    return sums, places // num_words, places % num_words


def _winners(tokens_NWt: Tensor, sums_NW: Tensor, end: int, length_penalty: float) -> tuple[Tensor, Tensor]:
    """The best beam of each caption: its words `[N, t]` and its sum `[N]`."""
    lengths = (tokens_NWt != end).sum(-1) + (tokens_NWt[:, :, -1] == end)
    best = (sums_NW / lengths.to(sums_NW.dtype) ** length_penalty).argmax(dim=1)
    row = torch.arange(len(best), device=best.device)
    return tokens_NWt[row, best], sums_NW[row, best]


def _prune(caches: list[_Cache], parents_NW: Tensor, kept: np.ndarray, lengths: np.ndarray) -> None:
    """Keep the chosen beams of the captions at `kept`, out of captions with memories of these lengths."""
    width, device = parents_NW.shape[1], parents_NW.device
    beams = (torch.from_numpy(kept).to(device)[:, None] * width + parents_NW).flatten()
    rows = None
    if len(kept) < len(lengths):
        rows = torch.from_numpy(spans(offsets_of(lengths)[:-1][kept], lengths[kept])).to(device)
    elif width == 1:
        return
    for cache in caches:
        cache.pick(beams, rows)
