"""hero_model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from hero_model.retriever import Retriever


def load(folder: str | Path, vocabulary: str | Path | None = None, *, device: str = "cpu") -> Retriever:
    """The model of a checkpoint for search: see `hero_model.retriever.load`."""
    from hero_model import retriever  # torch is imported by who needs it

    return retriever.load(folder, vocabulary, device=device)
