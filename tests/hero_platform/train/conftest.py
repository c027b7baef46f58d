"""The same steps by 1 to 4 ranks, computed once for all tests of this folder."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

_SCRIPT = Path(__file__).with_name("splits.py")


@pytest.fixture(scope="session")
def splits() -> ModuleType:
    """The module splits.py; this folder is not on the path, so that its names cannot shadow others."""
    spec = importlib.util.spec_from_file_location("splits", _SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def alone(splits: ModuleType, tiny_store: str) -> dict[str, Any]:
    """The results of one process."""
    return splits.everything(tiny_store, splits.Comm())


@pytest.fixture(scope="session")
def all_ranks(
    splits: ModuleType, tiny_store: str, wide_store: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, list[Any]]:
    """The results of every rank for each number of ranks; the same processes meet again, for starting is slow."""
    out = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, str(_SCRIPT)]
    started = [
        subprocess.Popen([*command, str(rank), tiny_store, wide_store, str(out)], stderr=subprocess.PIPE, text=True)
        for rank in range(max(splits.WORLDS))
    ]
    try:
        said = [process.communicate(timeout=200)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert not any(process.returncode for process in started), "\n".join(said)
    return {
        world: [torch.load(out / f"{world}-{rank}.pt", weights_only=True) for rank in range(world)]
        for world in splits.WORLDS
    }


@pytest.fixture(params=[2, 3], ids=["2 ranks", "3 ranks"])
def ranks(request: pytest.FixtureRequest, all_ranks: dict[int, list[Any]]) -> list[Any]:
    """The results of every rank of several."""
    return all_ranks[request.param]
