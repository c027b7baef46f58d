"""What tests of commands share: arguments of a short pre-training run."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture
def short_run(tiny_store: str) -> Callable[..., list[str]]:
    """Words of `jobs.train` for a small run under a name, without a tracker; `more` comes last and wins."""

    def words(name: str, *more: str) -> list[str]:
        store = ["--store", f"synthetic={tiny_store}", "--model", "debug", "--batch", "8", "--name", name]
        return ["pretrain_synthetic", *store, "--tracking.kind", "none", "--evaluation.every", "0", *more]

    return words
