"""Checkpoints on storage that fails: tried again, done without for a while, and never the only good one removed."""

from __future__ import annotations

import errno
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hero_model.config import debug
from hero_model.tasks import Mlm
from hero_platform import files
from hero_platform.config import CheckpointConfig, Entry, EvaluationConfig, RunConfig, ScaleConfig, StoreRef
from hero_platform.train import checkpoint
from hero_platform.train.checkpoint import Checkpointer, CheckpointError
from hero_platform.train.lease import LeaseLost
from hero_platform.train.resolve import resolve
from hero_platform.train.snapshot import checkpoints, choose, latest, load
from hero_platform.train.worker import Surroundings, train


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(checkpoint, "FIRST_PAUSE_S", 0.001)


@pytest.fixture(params=["local", "remote"])
def root(request, tmp_path):
    """A folder on disk, or one on a remote file system without rename."""
    if request.param == "local":
        yield str(tmp_path / "checkpoints")
        return
    url = f"memory://{tmp_path.name}/checkpoints"
    yield url
    files.remove_tree(url)


class Storage:
    """Fails as often as it is told to, just before a checkpoint becomes visible."""

    def __init__(self) -> None:
        self.failures = 0
        self.calls = 0
        self.error: Exception = OSError("SlowDown: reduce your request rate")

    def __call__(self) -> None:
        self.calls += 1
        if self.failures:
            self.failures -= 1
            raise self.error


def _save(writer: Checkpointer, step: int, score: float | None = None) -> None:
    writer.save(step, {"w": torch.full((9,), float(step))}, {"m.w": torch.zeros(9)}, {}, score=score)


def _settled(writer: Checkpointer) -> None:
    """Until the write under way is over."""
    end = time.monotonic() + 30
    while not writer._pending.done():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_write_is_tried_again(root, caplog):
    storage = Storage()
    writer = Checkpointer(root, before_publish=storage)
    storage.failures = 2
    _save(writer, 5)
    writer.close()
    assert storage.calls == 3 and caplog.text.count("SlowDown") == 2 and "trying again in" in caplog.text
    assert load(choose(root, "last")).step == 5 and writer.failed == 0


def test_training_goes_on_until_too_many_in_a_row_fail(root, caplog):
    storage = Storage()
    writer = Checkpointer(root, before_publish=storage, max_failed=2)
    _save(writer, 1)
    writer.wait()
    storage.failures = 3
    _save(writer, 2)
    _settled(writer)
    writer.check()
    assert "step_00000002 failed: SlowDown" in caplog.text and "the newest one is of step 1" in caplog.text
    assert "training goes on, and stops when the next 1 fail too" in caplog.text and writer.failed == 1
    _save(writer, 3)
    writer.wait()
    assert writer.failed == 0 and latest(root).step == 3
    storage.failures = 6
    _save(writer, 4)
    _save(writer, 5)
    _settled(writer)
    with pytest.raises(
        CheckpointError, match=r"step_00000005 failed: SlowDown.*\(3 attempts\); the newest one is of step 3"
    ):
        writer.check()
    writer.close()
    assert list(checkpoints(root)) == [1, 3]
    Checkpointer(root).close()
    assert files.listdir(root) == ["step_00000001", "step_00000003"], "the next writer sweeps what was half written"


def test_the_last_one_has_to_be_written(root):
    storage = Storage()
    writer = Checkpointer(root, before_publish=storage, max_failed=9)
    storage.failures = 3
    _save(writer, 1)
    with pytest.raises(CheckpointError, match="there is none yet"):
        writer.close()


def test_no_space_is_not_waited_for(root):
    storage = Storage()
    storage.error = OSError(28, "No space left on device")
    writer = Checkpointer(root, before_publish=storage, max_failed=9)
    _save(writer, 1)
    writer.wait()
    storage.failures = 1
    _save(writer, 2)
    with pytest.raises(CheckpointError, match=r"failed: no space is left; the newest one is of step 1"):
        _save(writer, 3)
    assert storage.calls == 2
    writer.close()


def test_who_lost_the_run_publishes_nothing(root):
    storage = Storage()
    storage.error, storage.failures = LeaseLost("it is another's"), 1
    writer = Checkpointer(root, before_publish=storage, max_failed=9)
    _save(writer, 1)
    with pytest.raises(LeaseLost, match="it is another's"):
        writer.close()
    assert checkpoints(root) == {} and storage.calls == 1


def test_one_of_every_so_many_hours_stays(root, monkeypatch):
    minutes = 0.0
    monkeypatch.setattr(time, "time_ns", lambda: int(1e18 + minutes * 60e9))
    writer = Checkpointer(root, keep_last=2, keep_every_h=1.0)
    for step in range(1, 13):
        _save(writer, step)
        writer.wait()
        minutes += 25
    writer.close()
    assert list(checkpoints(root)) == [1, 4, 7, 10, 11, 12]
    writer = Checkpointer(root, keep_last=2, keep_every_h=1.0)  # a restart keeps them, and another setting does not
    _save(writer, 13)
    writer.close()
    assert list(checkpoints(root)) == [1, 4, 7, 10, 12, 13]
    writer = Checkpointer(root, keep_last=1)
    _save(writer, 14)
    writer.close()
    assert list(checkpoints(root)) == [14]


def test_the_only_good_one_stays_when_the_new_one_is_damaged(tmp_path, caplog):
    """A bit flips between the write and the disk."""
    root = str(tmp_path)
    flips = [False]

    def flip() -> None:
        if flips[0]:
            (weights,) = Path(root).glob("step_*.tmp-*/model.safetensors")
            data = bytearray(weights.read_bytes())
            data[-3] ^= 4
            weights.write_bytes(data)

    writer = Checkpointer(root, keep_last=1, before_publish=flip)
    _save(writer, 1)
    writer.wait()
    flips[0] = True
    _save(writer, 2)
    writer.close()
    assert list(checkpoints(root)) == [1, 2] and "old checkpoints under" in caplog.text and "SHA-256" in caplog.text
    assert latest(root).step == 1
    flips[0] = False
    writer = Checkpointer(root, keep_last=1, resumed_from=1)
    _save(writer, 2)
    writer.close()
    assert list(checkpoints(root)) == [2] and latest(root).step == 2


def test_weights_that_an_update_ruined_are_not_saved(root):
    writer = Checkpointer(root, max_failed=3)
    _save(writer, 1)
    writer.save(2, {"w": torch.tensor([1.0] * 8 + [float("inf")])}, {"m.w": torch.zeros(9)}, {})
    with pytest.raises(
        CheckpointError, match=r"of step 2: its update left values in w that .*; the newest one is of step 1"
    ):
        writer.close()
    assert list(checkpoints(root)) == [1]


def test_why_training_ended_is_told_before_what_failed_with_it(tiny_store, tmp_path, caplog):
    begun = RunConfig(
        recipe="tiny",
        mixture=(Entry(Mlm(), "synthetic"),),
        stores=(StoreRef("synthetic", tiny_store),),
        model=debug(),
        batch=4,
        pool=4,
        nce_pool=2,
        steps=9,
        evaluation=EvaluationConfig(every=0),
        scale=ScaleConfig(threads_per_worker=1, deterministic=False),  # torch's own, which other tests expect
        checkpoint=CheckpointConfig(every=2),
    )

    def progress(step: int, metrics: object) -> None:
        if step == 3:
            raise RuntimeError("the reader broke")

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    storage = SimpleNamespace(check=lambda: None, check_known=lambda: None, confirm=full)
    with pytest.raises(RuntimeError, match="the reader broke"):
        train(resolve(begun), Surroundings(str(tmp_path / "run"), lease=storage, progress=progress))
    assert "step_00000002 failed: no space is left" in caplog.text
