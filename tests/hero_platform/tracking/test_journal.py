import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hero_platform import files
from hero_platform.tracking.journal import FILE, Journal, JournalError, damage, read


def _lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def test_records_come_back_in_order(tmp_path):
    journal = Journal(str(tmp_path))
    assert journal.record(1, {"train/loss/mlm/tv": 3.5, "sys/x": math.nan}) is None
    assert journal.record(2, {"stream/fingerprint": 2**60 + 1}) is None
    journal.close()
    first, second = read(str(tmp_path / FILE))
    assert first.step == 1 and first.metrics["train/loss/mlm/tv"] == 3.5 and math.isnan(first.metrics["sys/x"])
    assert second.metrics == {"stream/fingerprint": 2**60 + 1}, "whole numbers stay whole"
    assert 1.6e12 < first.t_ms <= second.t_ms
    assert second.end == (tmp_path / FILE).stat().st_size
    assert list(read(str(tmp_path / FILE), first.end)) == [second]


@pytest.mark.parametrize(
    "tail", [b'{"step":3,"t_ms":1,"met', b'{"step":3,"t_ms":1,"metrics":{}}', b"\x00\x00\x00\n", b"[]\n"]
)
def test_the_intact_prefix_is_kept(tmp_path, tail):
    journal = Journal(str(tmp_path))
    journal.record(1, {"a": 1.0})
    journal.record(2, {"a": 2.0})
    journal.close()
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole + tail)
    journal = Journal(str(tmp_path))
    assert (tmp_path / FILE).read_bytes() == whole
    assert journal.recovered_end == len(whole)
    journal.record(3, {"a": 3.0})
    journal.close()
    assert [line["step"] for line in _lines(tmp_path)] == [1, 2, 3]


def _written(folder: Path, steps: int = 5) -> list[bytes]:
    """The lines of a journal of a few steps."""
    journal = Journal(str(folder))
    for step in range(1, steps + 1):
        journal.record(step, {"train/loss": 1.0 / step})
    journal.close()
    return (folder / FILE).read_bytes().splitlines(keepends=True)


def _steps(path: Path) -> list[int]:
    return [record.step for record in read(str(path))]


def test_every_flipped_bit_is_found(tmp_path):
    lines = _written(tmp_path, 3)
    path, whole = tmp_path / "flipped.jsonl", b"".join(lines)
    for bit in range(len(lines[0]) * 8, len(lines[0] + lines[1]) * 8):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        assert _steps(path) == [1], f"bit {bit}"


@pytest.mark.parametrize(
    ("order", "intact"),
    [([0, 2, 1, 3, 4], [1]), ([1, 0, 2, 3, 4], []), ([0, 1, 3, 4], [1, 2]), ([0, 1, 1, 2], [1, 2])],
)
def test_a_line_moved_lost_or_repeated_is_found(tmp_path, order, intact):
    lines = _written(tmp_path)
    (tmp_path / FILE).write_bytes(b"".join(lines[i] for i in order))
    assert _steps(tmp_path / FILE) == intact


def test_what_was_damaged_is_said_and_kept(tmp_path, caplog):
    lines = _written(tmp_path)
    broken = lines[2].replace(b"0.3333", b"0.4444")
    (tmp_path / FILE).write_bytes(b"".join([*lines[:2], broken, *lines[3:]]))
    journal = Journal(str(tmp_path))
    assert f"line 3 of {tmp_path / FILE} is damaged (its checksum does not fit): the 2 lines before it" in caplog.text
    journal.record(3, {"train/loss": 7.0})
    journal.close()
    assert _steps(tmp_path / FILE) == [1, 2, 3]
    (kept,) = tmp_path.glob(f"{FILE}.damaged-*")
    assert kept.read_bytes() == b"".join([broken, *lines[3:]]) and kept.name in caplog.text


def test_reading_goes_on_from_any_line(tmp_path):
    lines = _written(tmp_path)
    ends = [sum(map(len, lines[:count])) for count in range(6)]
    for count, end in enumerate(ends):
        assert [record.step for record in read(str(tmp_path / FILE), end)] == list(range(count + 1, 6))
    (tmp_path / FILE).write_bytes(b"".join([*lines[:2], lines[3]]))
    assert list(read(str(tmp_path / FILE), ends[2])) == [], "line 4 does not follow line 2"
    assert damage(str(tmp_path / FILE), ends[2]) == "its checksum does not fit"
    assert damage(str(tmp_path / FILE), 0) == ""


def test_a_journal_from_before_checksums_goes_on(tmp_path):
    """Lines as the first version of the platform wrote them."""
    old = [b'{"step":%d,"t_ms":1767225600000,"metrics":{"train/loss":%d.5}}\n' % (step, step) for step in (1, 2)]
    (tmp_path / FILE).write_bytes(b"".join(old))
    journal = Journal(str(tmp_path), resume_step=1)
    assert journal.record(2, {"train/loss": 9.0}) is not None, "an old line is compared like any other"
    journal.record(3, {"train/loss": 3.5})
    journal.record(4, {"train/loss": 4.5})
    journal.close()
    assert [(record.step, record.metrics["train/loss"]) for record in read(str(tmp_path / FILE))] == [
        (step, step + 0.5) for step in (1, 2, 3, 4)
    ]
    lines = (tmp_path / FILE).read_bytes().splitlines(keepends=True)
    assert lines[:2] == old
    (tmp_path / FILE).write_bytes(b"".join([*old, lines[3], lines[2]]))
    assert _steps(tmp_path / FILE) == [1, 2]


FULL = """
import resource, signal, sys
from hero_platform.tracking.journal import Journal, JournalError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
steps = 0
try:
    while True:
        journal.record(steps + 1, {"train/loss": 1.0})
        steps += 1
except JournalError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal.record(steps + 1, {"train/loss": 2.0})
journal.close()
print(steps)
"""


def test_a_line_that_does_not_fit_on_the_disk_leaves_nothing(tmp_path):
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, env=env)
    said, steps = done.stdout.splitlines()
    assert said == f"the journal {tmp_path / FILE} cannot be written: File too large"
    assert _steps(tmp_path / FILE) == list(range(1, int(steps) + 2)) and int(steps) > 5


def test_a_remote_journal_that_cannot_be_uploaded_says_so(tmp_path, monkeypatch):
    journal = Journal(f"memory://{tmp_path.name}/runs/full")

    def refuse(path, data):
        raise OSError("SlowDown")

    monkeypatch.setattr(files, "write_bytes", refuse)
    with pytest.raises(JournalError, match=r"memory://.*metrics.jsonl cannot be written: SlowDown"):
        journal.commit()
    monkeypatch.undo()
    journal.close()


def test_repeated_steps_are_compared_not_recorded(tmp_path):
    journal = Journal(str(tmp_path))
    for step in (1, 2, 3):
        journal.record(step, {"train/loss/mlm/tv": 1.0 / step, "train/grad_norm": math.nan, "sys/videos_per_s": 5.0})
    journal.close()
    before = (tmp_path / FILE).read_bytes()
    journal = Journal(str(tmp_path), resume_step=1)
    same = {"train/loss/mlm/tv": 0.5, "train/grad_norm": math.nan, "sys/videos_per_s": 77.0}
    assert journal.record(2, same) is None
    alarm = journal.record(3, {"train/loss/mlm/tv": 0.25, "sys/videos_per_s": 1.0})
    assert alarm is not None
    assert alarm.startswith("step 3 came out differently") and "train/loss/mlm/tv was 0.333" in alarm
    assert "videos_per_s" not in alarm
    assert (tmp_path / FILE).read_bytes() == before
    assert journal.record(3, {"val/loss": 9.0}) is None, "what this step had not recorded is new"
    assert journal.record(4, {"train/loss/mlm/tv": 0.1}) is None
    journal.close()
    assert [(line["step"], line["metrics"]) for line in _lines(tmp_path)[3:]] == [
        (3, {"val/loss": 9.0}),
        (4, {"train/loss/mlm/tv": 0.1}),
    ]


@pytest.mark.parametrize(
    ("name", "compared"), [("train/lr", 1), ("train/grad_norm", 1), ("stream/ids", 1), ("val/x", 0)]
)
def test_which_metrics_are_compared(tmp_path, name, compared):
    journal = Journal(str(tmp_path))
    journal.record(1, {name: 1.0})
    journal.close()
    journal = Journal(str(tmp_path))
    assert (journal.record(1, {name: 1.0 + 1e-12}) is not None) == bool(compared)
    journal.close()


def test_another_worker_count_is_allowed_rounding(tmp_path):
    journal = Journal(str(tmp_path))
    journal.record(1, {"train/loss": 1.0})
    journal.close()
    journal = Journal(str(tmp_path), tolerance=1e-4)
    assert journal.record(1, {"train/loss": 1.00005}) is None
    assert journal.record(1, {"train/loss": 1.001}) is not None
    journal.close()


def test_threads_do_not_mix_lines(tmp_path):
    journal = Journal(str(tmp_path))

    def work(base: int) -> None:
        for i in range(200):
            journal.record(base + i, {"name": float(i), "other": 1.0})

    threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    journal.commit()
    for thread in threads:
        thread.join()
    journal.close()
    assert len(list(read(str(tmp_path / FILE)))) == 800


def test_remote_run_keeps_what_was_committed(tmp_path):
    folder = f"memory://{tmp_path.name}/runs/a"
    journal = Journal(folder)
    journal.record(1, {"train/loss": 1.0})
    journal.commit()
    journal.record(2, {"train/loss": 2.0})
    scratch = journal.path  # the host dies here: the second record is lost with it
    other = Journal(folder, resume_step=0)
    assert other.record(1, {"train/loss": 7.0}) is not None
    other.record(2, {"train/loss": 2.5})
    other.close()
    assert not os.path.exists(scratch), "scratch files go"
    lines = files.read_bytes(f"{folder}/{FILE}").decode().splitlines()
    assert [json.loads(line)["metrics"] for line in lines] == [{"train/loss": 1.0}, {"train/loss": 2.5}]
    files.remove_tree(folder)


CHILD = """
import sys
from hero_platform.tracking.journal import Journal
journal = Journal(sys.argv[1])
step = 0
while True:
    step += 1
    journal.record(step, {"train/loss": 1.0 / step})
    print(step, flush=True)
"""


def test_a_killed_process_loses_no_record(tmp_path):
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=env)
    for _ in range(50):
        child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.wait()
    said = 50 + len([line for line in child.stdout.read().split("\n") if line])
    child.stdout.close()
    journal = Journal(str(tmp_path))
    records = list(read(str(tmp_path / FILE)))
    assert [record.step for record in records] == list(range(1, len(records) + 1))
    assert len(records) >= said - 1, "the last line on the pipe may be torn, those before were recorded first"
    journal.close()
