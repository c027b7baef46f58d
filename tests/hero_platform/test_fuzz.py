"""Damaged files of every kind: a clear error that names the file, or what was written; never wrong data in silence."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hero_platform.store.reader import FeatureStore
from hero_platform.tracking.journal import FILE, Journal, read
from hero_platform.train.checkpoint import Checkpointer
from hero_platform.train.snapshot import COMMIT, latest, load

Damage = Callable[[bytes], bytes]
FUZZ = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,  # the same cases everywhere; a seed of its own would make a failure come and go
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@st.composite
def damages(draw: st.DrawFn) -> Damage:
    """Cut a file short, flip bits, or let two stretches change places."""
    kind = draw(st.sampled_from(["truncate", "flip", "swap"]))
    places = [draw(st.floats(0, 1, exclude_max=True)) for _ in range(2)]
    bit, size = draw(st.integers(0, 7)), draw(st.integers(1, 64))

    def damage(data: bytes) -> bytes:
        one, two = sorted(int(place * len(data)) for place in places)
        changed = bytearray(data)
        if kind == "truncate":
            return data[:one]
        if kind == "flip":
            changed[one] ^= 1 << bit
            changed[two] ^= 1 << (7 - bit)
        else:
            stretch = min(size, two - one, len(data) - two)
            changed[one : one + stretch], changed[two : two + stretch] = (
                data[two : two + stretch],
                data[one : one + stretch],
            )
        return bytes(changed)

    return damage


@contextlib.contextmanager
def damaged(path: Path, damage: Damage) -> Iterator[bool]:
    """Damage a file for a while; yields whether anything is different."""
    before = path.read_bytes()
    path.write_bytes(damage(before))
    try:
        yield path.read_bytes() != before
    finally:
        path.write_bytes(before)


def content(store: FeatureStore) -> list[Any]:
    """Everything a training run reads of a store."""
    rows = store.rows(np.arange(len(store)))
    found: list[Any] = [rows.ids, rows.frames.tobytes(), rows.tokens.tobytes(), rows.segment_frames.tobytes()]
    found += [rows.frame_offsets.tobytes(), rows.token_offsets.tobytes(), rows.segment_frame_offsets.tobytes()]
    found += [rows.interval_s.tobytes(), rows.segment_offsets.tobytes(), store.digest]
    for split in store.splits:
        found.append(store.rows_of(split).tobytes())
        for kind in ("moments", "questions"):
            table = store.annotations(kind, split)
            found += [table.tokens.tobytes(), table.spans_s.tobytes(), table.video_rows.tobytes()]
    return found


@pytest.fixture(scope="module")
def store(tiny_store, tmp_path_factory) -> Path:
    """A store that may be damaged."""
    return Path(shutil.copytree(tiny_store, tmp_path_factory.mktemp("fuzz") / "store"))


@pytest.mark.parametrize("pattern", ["manifest.json", "index.arrow", "shards/*.arrow", "annotations/*/*.arrow"])
@FUZZ
@given(damage=damages(), which=st.integers(0, 9))
def test_store(store, pattern, damage, which):
    expected = content(FeatureStore.open(str(store)))
    paths = sorted(store.glob(pattern))
    path = paths[which % len(paths)]
    with damaged(path, damage) as changed:
        try:
            found = content(FeatureStore.open(str(store)))
        except ValueError as error:
            assert changed and path.name in str(error), error
        else:
            assert found == expected


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """The folder of two checkpoints, of steps 1 and 2."""
    root = tmp_path_factory.mktemp("fuzz") / "checkpoints"
    writer = Checkpointer(str(root), resumed_from=0)
    for step in (1, 2):
        writer.save(step, weights(step), weights(step + 9), {"counts": {"a": step}, "step": step})
    writer.close()
    return root


def weights(step: int) -> dict[str, torch.Tensor]:
    return {"a": torch.full((5, 3), float(step)), "b": torch.arange(7) + step}


@pytest.mark.parametrize("name", ["model.safetensors", "optim.safetensors", "state.json", COMMIT])
@FUZZ
@given(damage=damages())
def test_checkpoint(saved, name, damage):
    with damaged(saved / "step_00000002" / name, damage) as changed:
        found = latest(str(saved))
        assert found is not None and (found.step == 2 or changed)
        assert all(torch.equal(found.model[key], value) for key, value in weights(found.step).items())
        assert all(torch.equal(found.optim[key], value) for key, value in weights(found.step + 9).items())
        assert found.state["counts"] == {"a": found.step}
        if found.step == 1:
            with pytest.raises(ValueError, match="step_00000002"):
                load(str(saved / "step_00000002"))


@FUZZ
@given(damage=damages())
def test_journal(tmp_path_factory, damage):
    folder = tmp_path_factory.mktemp("journal")
    journal = Journal(str(folder))
    for step in range(1, 9):
        journal.record(step, {"train/loss": 1.0 / step, "train/lr": step * 0.5})
    journal.close()
    path = folder / FILE
    whole = [(record.step, record.metrics) for record in read(str(path))]
    path.write_bytes(damage(path.read_bytes()))
    found = [(record.step, record.metrics) for record in read(str(path))]
    assert found == whole[: len(found)], "the intact prefix, and nothing else"
    again = Journal(str(folder), resume_step=4)  # it goes on, from what is left
    for step in range(5, 9):
        again.record(step, {"train/loss": 1.0 / step, "train/lr": step * 0.5})
    again.close()
    assert [record.step for record in read(str(path))][-4:] == [5, 6, 7, 8]
