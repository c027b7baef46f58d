"""What the step loop needs from other ranks, over torch.distributed or for one process alone. No Ray here."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Comm:
    """Collectives among the ranks of a run. With one rank each is the identity, and no process group is needed."""

    rank: int = 0
    world: int = 1

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks, the same bits on each."""
        if self.world > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def gather_rows(self, rows: Tensor) -> tuple[Tensor, int]:
        """Rows `[n_r, ...]` of every rank, rank after rank, and where this rank's begin. No gradient flows."""
        if self.world == 1:
            return rows, 0
        sizes = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(self.world)]
        dist.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
        counts = [int(size) for size in sizes]
        widest = rows.new_zeros((max(counts), *rows.shape[1:]))
        widest[: len(rows)] = rows
        parts = [torch.empty_like(widest) for _ in counts]
        dist.all_gather(parts, widest)
        start = sum(counts[: self.rank])
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]), start

    def gather_lines(self, line: str, device: torch.device) -> list[str]:
        """A line of text from every rank, rank after rank; those without one are left out.

        Args:
            line: of this rank; empty: it has none.
            device: where this rank's tensors are.
        """
        sent = torch.tensor(list(f"{line}\n".encode()), dtype=torch.uint8, device=device)
        return [each for each in bytes(self.gather_rows(sent)[0].tolist()).decode().split("\n") if each]
