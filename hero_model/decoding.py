"""How scores become ranked moments (hero.md 4.1): settings, best lists without ties, the best spans of videos.

Legend: C pairs of a query and a video, L frames of the longest of these videos, W allowed lengths, N spans kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hero_model.tasks.moment_retrieval import MomentRetrieval


@dataclass(frozen=True)
class Decoding:
    """How scores become ranked answers; the defaults are TVR's (hero.md 4.1)."""

    alpha: float = 20.0  # a video's weight is exp(alpha * cosine)
    num_videos: int = 100  # videos of a query that are searched for spans
    num_spans: int = 200  # spans of a query that are kept
    shortest: int = 2  # a span has more than `shortest` frames ...
    longest: int = 16  # ... and at most `longest`

    @classmethod
    def of(cls, task: object, **others: int) -> Decoding:
        """With the lengths of a task that finds moments, unless `others` has them."""
        lengths = {"shortest": task.shortest, "longest": task.longest} if isinstance(task, MomentRetrieval) else {}
        return cls(**{**lengths, **others})  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        """Check the settings."""
        if not 0 <= self.shortest < self.longest:
            raise ValueError(
                f"spans need 0 <= shortest < longest, not shortest {self.shortest} and longest {self.longest}"
            )
        if min(self.num_videos, self.num_spans) < 1:
            raise ValueError("num_videos and num_spans must be at least 1")

    def seconds(self, cells: np.ndarray, interval_s: np.ndarray) -> np.ndarray:
        """Start and end of the spans of cells `[...]`, given the seconds between frames of their videos: `[..., 2]`."""
        width = self.longest - self.shortest
        first = cells // width
        last = first + cells % width + self.shortest
        return np.stack([first, last + 1], axis=-1) * interval_s[..., None]


def best_first(scores: Tensor, keep: int) -> Tensor:
    """Columns of the `keep` highest float32 scores of each row, best first and the earlier first among equals.

    `topk` alone may choose any among equals. So it gets integers that are all different: a score's bits, ordered as the
    scores are, above the column counted backwards.
    """
    bits = (scores + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    keys = (ordered.long() << 32) - torch.arange(scores.shape[1], device=scores.device)
    return keys.topk(min(keep, scores.shape[1]), dim=1).indices


def span_scores(start_CL: Tensor, end_CL: Tensor, how: Decoding) -> Tensor:
    """Start times end probability of every cell, -inf where no span is allowed: `[C, L * W]`.

    A cell is `start * W + (last - start - shortest)`. A video of fewer than L frames has probability 0 behind its last.
    """
    num_frames, width = start_CL.shape[1], how.longest - how.shortest
    padded = torch.nn.functional.pad(end_CL, (0, how.longest))
    windows_CLW = padded.unfold(1, width, 1)[:, how.shortest : how.shortest + num_frames]
    scores = (start_CL[:, :, None] * windows_CLW).flatten(1)
    return scores.masked_fill_(scores <= 0, -torch.inf)


def best_spans(start_CL: Tensor, end_CL: Tensor, how: Decoding) -> tuple[Tensor, Tensor]:
    """The best allowed spans: scores and cells, `[C, N]`; -inf beyond the allowed spans."""
    scores = span_scores(start_CL, end_CL, how)
    cells = best_first(scores, how.num_spans)
    return scores.gather(1, cells), cells
