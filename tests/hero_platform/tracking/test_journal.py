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
from hero_platform.tracking.journal import FILE, Journal, read


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
