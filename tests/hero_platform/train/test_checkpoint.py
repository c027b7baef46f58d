import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hero_platform import files
from hero_platform.train.checkpoint import Checkpointer, CheckpointError
from hero_platform.train.host_buffer import HostBuffer
from hero_platform.train.snapshot import checkpoints, choose, latest, load


def _weights(seed: int) -> dict[str, torch.Tensor]:
    gen = torch.Generator().manual_seed(seed)
    return {
        "a.weight": torch.randn(5, 3, generator=gen),
        "odd": torch.randint(0, 9, (3,), dtype=torch.uint8, generator=gen),
        "b": torch.randn(7, dtype=torch.float64, generator=gen),
        "half": torch.randn(3, generator=gen).to(torch.bfloat16),
        "scalar": torch.tensor(seed),
        "empty": torch.zeros(0, 4),
    }


def _moments(seed: int) -> dict[str, torch.Tensor]:
    return {"m.a": torch.full((4,), float(seed)), "v.a": torch.full((4,), 0.1 * seed)}


def _save(writer: Checkpointer, step: int, score: float | None = None) -> None:
    writer.save(step, _weights(step), _moments(step), {"counts": {"a": step}, "rate": 0.1 * step}, score=score)


def _assert_is(snapshot, step: int) -> None:
    assert snapshot.step == snapshot.state["step"] == step
    assert snapshot.state["counts"] == {"a": step} and snapshot.state["rate"] == 0.1 * step
    for got, want in ((snapshot.model, _weights(step)), (snapshot.optim, _moments(step))):
        assert got.keys() == want.keys()
        assert all(torch.equal(got[k], want[k]) and got[k].dtype == want[k].dtype for k in want)


@pytest.fixture(params=["local", "remote"])
def root(request, tmp_path):
    """A folder on disk, or one on a remote file system without rename."""
    if request.param == "local":
        yield str(tmp_path / "checkpoints")
        return
    url = f"memory://{tmp_path.name}/checkpoints"
    yield url
    files.remove_tree(url)


def _entries(root: str) -> list[str]:
    return files.listdir(root)


def test_what_is_saved_comes_back(root):
    writer = Checkpointer(root, config={"name": "r"})
    assert latest(root) is None
    _save(writer, 3)
    writer.close()
    snapshot = latest(root)
    _assert_is(snapshot, 3)
    assert snapshot.config == {"name": "r"}
    assert sorted(files.listdir(snapshot.path)) == [
        "checksums.json",
        "config.json",
        "model.safetensors",
        "optim.safetensors",
        "state.json",
    ]


def test_the_state_may_change_once_it_is_copied(root):
    """Training goes on in place while the write runs."""
    publish = threading.Event()
    writer = Checkpointer(root, before_publish=lambda: publish.wait(60))
    weights, moments = _weights(1), _moments(1)
    writer.prepare(weights, moments)
    assert writer.wait_copied() is None, "there was no save"
    writer.save(1, weights, moments, {"counts": {"a": 1}, "rate": 0.1})
    stall_s = writer.wait_copied()
    assert stall_s is not None and stall_s >= 0 and writer.wait_copied() is None, "told once"
    for tensor in (*weights.values(), *moments.values()):
        tensor.fill_(77)
    publish.set()
    writer.wait()
    _assert_is(latest(root), 1)


def test_file_is_what_the_safetensors_library_reads(tmp_path):
    tensors = _weights(1) | {"view": torch.arange(12.0).view(3, 4).t()}
    buffer = HostBuffer(tensors)
    buffer.begin(tensors)
    buffer.fill()
    with open(tmp_path / "x.safetensors", "wb") as stream:
        size, _ = buffer.write(stream)
    assert size == (tmp_path / "x.safetensors").stat().st_size
    back = load_file(tmp_path / "x.safetensors")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[k], tensors[k]) for k in tensors)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_copy_is_behind_all_work_queued_before(tmp_path):
    weights = {"w": torch.zeros(1 << 24, device="cuda")}
    buffer = HostBuffer(weights)
    product = torch.eye(4096, device="cuda")
    for _ in range(100):  # tenths of a second, queued in milliseconds
        product = product @ product
        weights["w"] += product[0, 0]
    buffer.begin(weights)
    assert not torch.cuda.current_stream().query(), "the work has to be under way still"
    thread = threading.Thread(target=buffer.fill)
    thread.start()
    thread.join()
    weights["w"].fill_(77)
    with open(tmp_path / "x.safetensors", "wb") as stream:
        buffer.write(stream)
    assert torch.equal(load_file(tmp_path / "x.safetensors")["w"], torch.full((1 << 24,), 100.0))


def test_last_ones_and_the_best_are_kept(root):
    writer = Checkpointer(root, keep_last=2, best_metric="eval/r1")
    for step, score in ((10, 0.2), (20, 0.9), (30, float("nan")), (40, 0.9), (50, None), (60, 0.1)):
        _save(writer, step, score)
    writer.close()
    assert list(checkpoints(root)) == [20, 50, 60]
    assert files.read_json(files.join(root, "best.json")) == {"step": 20, "score": 0.9, "metric": "eval/r1"}
    assert load(choose(root, "best")).step == 20
    assert load(choose(root, "last")).step == 60
    assert load(choose(root, 50)).step == 50
    with pytest.raises(ValueError, match=r"no checkpoint of step 40 .* there are 20, 50, 60"):
        choose(root, 40)


def test_low_scores_can_be_good_and_a_restart_remembers_the_best(root):
    for step, score in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.5)):
        writer = Checkpointer(root, keep_last=1, best_mode="min")
        _save(writer, step, score)
        writer.close()
    assert list(checkpoints(root)) == [2, 4]
    assert choose(root, "best") == checkpoints(root)[2]


def test_choose_without_scores_or_checkpoints(root):
    with pytest.raises(ValueError, match="there is no checkpoint under"):
        choose(root, "last")
    writer = Checkpointer(root)
    _save(writer, 1)
    writer.close()
    with pytest.raises(ValueError, match="has a score yet"):
        choose(root, "best")


def _damage(root: str, step: int, name: str, how: str) -> None:
    path = files.join(checkpoints(root)[step], name)
    data = bytearray(files.read_bytes(path))
    if how == "missing":
        files.remove(path)
        return
    if how == "cut":
        data = data[: len(data) // 2]
    else:
        data[len(data) // 2] ^= 1 << 3
    files.write_bytes(path, bytes(data))


@pytest.mark.parametrize("how", ["flip", "cut", "missing"])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optim.safetensors", "state.json", "config.json", "checksums.json"]
)
def test_a_damaged_checkpoint_is_skipped_with_a_reason(root, name, how, caplog):
    writer = Checkpointer(root, config={"name": "run"})
    _save(writer, 10)
    _save(writer, 20)
    writer.close()
    _damage(root, 20, name, how)
    with caplog.at_level(logging.ERROR):
        snapshot = latest(root)
    _assert_is(snapshot, 10)
    if (name, how) != ("checksums.json", "missing"):  # without it there is no checkpoint to speak of
        assert "skipping checkpoint" in caplog.text and f"step_00000020/{name}" in caplog.text


def test_every_flipped_bit_of_a_checkpoint_is_seen(tmp_path):
    root = str(tmp_path)
    writer = Checkpointer(root)
    _save(writer, 1, 0.5)
    writer.close()
    folder = Path(checkpoints(root)[1])
    rng = random.Random(0)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for _ in range(40):
            data = bytearray(whole)
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(bytes(data))
            try:
                _assert_is(load(str(folder)), 1)  # white space of the record may change unseen, values may not
                assert path.name == "checksums.json" and json.loads(data)["score"] == 0.5
            except ValueError:
                pass
        path.write_bytes(whole)
    _assert_is(load(str(folder)), 1)


def test_a_run_that_went_back_replaces_what_was_damaged(root):
    """Damaged steps neither count among the last K, nor as best, nor stay."""
    writer = Checkpointer(root, keep_last=1)
    _save(writer, 10, 0.1)
    writer.close()
    writer = Checkpointer(root, keep_last=2)
    _save(writer, 20, 0.9)
    writer.close()
    _damage(root, 20, "model.safetensors", "flip")
    assert latest(root).step == 10
    writer = Checkpointer(root, keep_last=1, resumed_from=10)
    _save(writer, 15, 0.05)
    writer.wait()
    assert list(checkpoints(root)) == [10, 15]
    assert choose(root, "best") == checkpoints(root)[10]
    _save(writer, 20, 0.9)
    writer.close()
    assert list(checkpoints(root)) == [20]
    _assert_is(load(choose(root, "best")), 20)


def test_a_damaged_checkpoint_is_not_kept_for_a_good_one(root):
    """The next save may lie behind the damaged step: then that one must not push a good one out of the last K."""
    writer = Checkpointer(root)
    _save(writer, 10)
    _save(writer, 20)
    writer.close()
    _damage(root, 20, "model.safetensors", "flip")
    writer = Checkpointer(root, keep_last=2, resumed_from=latest(root).step)
    _save(writer, 25)
    writer.close()
    assert list(checkpoints(root)) == [10, 25]


def test_a_damaged_step_is_written_again(root):
    writer = Checkpointer(root)
    _save(writer, 10)
    writer.wait()
    _damage(root, 10, "optim.safetensors", "cut")
    assert latest(root) is None
    _save(writer, 10)
    writer.close()
    _assert_is(load(choose(root, "last")), 10)


def test_saving_a_step_twice_keeps_the_first(root):
    writer = Checkpointer(root)
    _save(writer, 10)
    writer.wait()
    before = files.read_bytes(files.join(checkpoints(root)[10], "checksums.json"))
    _save(writer, 10, 0.5)
    writer.close()
    assert files.read_bytes(files.join(checkpoints(root)[10], "checksums.json")) == before


def test_a_failed_write_surfaces_at_the_next_call_and_leaves_nothing(root):
    def fail() -> None:
        raise OSError("disk full")

    writer = Checkpointer(root, before_publish=fail)
    _save(writer, 1)
    with pytest.raises(CheckpointError, match=r"step_00000001 failed: disk full"):
        _save(writer, 2)
    writer.close()
    assert checkpoints(root) == {}
    Checkpointer(root).close()
    assert _entries(root) == []


def test_keep_last_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match=r"checkpoint\.keep_last must be at least 1, not 0"):
        Checkpointer(str(tmp_path), keep_last=0)


def test_what_a_dead_writer_left_is_removed(root):
    writer = Checkpointer(root)
    _save(writer, 10)
    writer.close()
    files.write_bytes(files.join(root, "step_00000020", "model.safetensors"), b"half")
    if not files.is_remote(root):
        files.write_bytes(files.join(root, "step_00000030.tmp-0a1b", "model.safetensors"), b"half")
        files.write_bytes(files.join(root, ".best.json.1-ff.partial"), b"{")
    assert list(checkpoints(root)) == [10]
    writer = Checkpointer(root)
    assert _entries(root) == ["step_00000010"]
    _assert_is(latest(root), 10)


CHILD = """
import sys, time, torch
torch.set_num_threads(1)
from hero_platform.train.checkpoint import Checkpointer
from hero_platform.train.snapshot import latest
root, stop_at = sys.argv[1], int(sys.argv[2])
step = 0
def before():
    if step == stop_at:
        print("inside", flush=True)
        time.sleep(600)
writer = Checkpointer(root, before_publish=before)
found = latest(root)
step = found.step if found else 0
while True:
    step += 1
    writer.save(step, {"w": torch.full((200_000,), float(step))}, {"m.w": torch.full((200_000,), -float(step))}, {})
    writer.wait()
    print(step, flush=True)
"""


def _start(root: str, stop_at: int) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, root, str(stop_at)], stdout=subprocess.PIPE, text=True, env=env
    )


def _kill(child: subprocess.Popen) -> None:
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()


@pytest.mark.slow
def test_killed_in_the_middle_of_a_write(tmp_path):
    """Three SIGKILLs: one with all tensors written and nothing committed, two at random times."""
    root = str(tmp_path / "checkpoints")
    child = _start(root, 3)
    lines = [child.stdout.readline().strip() for _ in range(3)]
    _kill(child)
    assert lines == ["1", "2", "inside"]
    assert any(".tmp-" in name for name in os.listdir(root)), "the kill came at the wrong moment"
    assert list(checkpoints(root)) == [1, 2]
    reached, rng = 2, random.Random(5)
    for _ in range(2):
        child = _start(root, -1)
        assert int(child.stdout.readline()) == reached + 1, "a restart goes on from the last whole checkpoint"
        time.sleep(rng.uniform(0.0, 0.1))
        _kill(child)
        reached = max(checkpoints(root))
        for path in checkpoints(root).values():
            snapshot = load(path)
            assert torch.equal(snapshot.model["w"], torch.full((200_000,), float(snapshot.step)))
            assert torch.equal(snapshot.optim["m.w"], torch.full((200_000,), -float(snapshot.step)))
    Checkpointer(root).close()
    assert latest(root).step == reached
    assert all(name.startswith("step_") and ".tmp-" not in name for name in os.listdir(root))
