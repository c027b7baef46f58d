"""Faults at chosen places of real runs: whatever dies, and wherever, the run ends as the one that nobody touched.

A fault is (place, before or after, what happens); `inject/hero_faults.py` makes it, in the real process, and the code
under test knows nothing of it. One run takes a whole list of them: each start dies of the next fault, the same command
goes on, and in the end losses, weights, record and machine are compared with an undisturbed run. The order is drawn
from `CHAOS_SEED`, which is printed with the table of what was survived: `make chaos`.
"""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest

from hero_platform.store.reader import FeatureStore
from hero_platform.train import snapshot

SEED = int(os.environ.get("CHAOS_SEED", "0"))
STEPS = 300
SETTINGS = ["--steps", str(STEPS), "--checkpoint.every", "2", "--evaluation.every", "6", "--evaluation.limit", "4"]
SETTINGS += ["--tracking.kind", "none", "--tracking.log-every", "2"]
SIDES = ("before", "after", "after", "before")
KILLED, FAILED, STOPPED = -signal.SIGKILL, 1, 130


@dataclass(frozen=True)
class Fault:
    """What happens, and where: see `inject/hero_faults.py`."""

    target: str
    when: str
    act: str
    nth: int = 2
    where: str = ""
    rank: int = -1
    once: str = ""

    def __str__(self) -> str:
        return f"{self.act} {self.when} {self.target.rpartition('.')[2]}{f' ({self.where})' if self.where else ''}"

    @property
    def code(self) -> int:
        """How the process ends that it happens to."""
        if self.act == "SIGTERM":
            return STOPPED
        return KILLED if self.act in ("SIGKILL", "tear") else FAILED


TRAIN, JOURNAL = "hero_platform.train", "hero_platform.tracking.journal"
STEP = (
    "hero_platform.feed.loader:Feed.__getitem__",
    f"{TRAIN}.step:Stepper.backward",
    f"{TRAIN}.loop:_update",
    f"{TRAIN}.loop:_flush",
    f"{TRAIN}.evaluate:Validator.run",
)
RECORD = (f"{JOURNAL}:Journal.record", f"{JOURNAL}:_write_all", f"{JOURNAL}:Journal.commit")
SAVE = (
    f"{TRAIN}.checkpoint:Checkpointer.save",
    f"{TRAIN}.checkpoint:Checkpointer._write",
    f"{TRAIN}.checkpoint:Checkpointer._publish",
    f"{TRAIN}.checkpoint:Checkpointer._retain",
    f"{TRAIN}.checkpoint:_put",
    f"{TRAIN}.checkpoint:_sync_folder",
    f"{TRAIN}.checkpoint:_remove",
)
BEGIN = (
    f"{TRAIN}.snapshot:latest",
    f"{TRAIN}.records:note_start",
    f"{TRAIN}.lease:only_one",
)
ONE_PROCESS = [
    *(Fault(place, when, "SIGKILL") for place in (*STEP, *RECORD, *SAVE) for when in ("before", "after")),
    *(Fault(place, when, "SIGKILL", nth=1) for place in BEGIN for when in ("before", "after")),
    *(Fault(f"{TRAIN}.checkpoint:_put", "before", "SIGKILL", where=name) for name in ("optim", "state", "checksums")),
    *(Fault("os:rename", when, "SIGKILL", nth=1, where="checkpoints") for when in ("before", "after")),
    Fault(f"{TRAIN}.host_buffer:HostBuffer.write", "after", "SIGKILL"),  # what Python has buffered is lost
    Fault(f"{JOURNAL}:_write_all", "before", "tear", nth=3),
    *(Fault(place, "before", "RuntimeError") for place in STEP),
    *(Fault(place, "after", "SIGTERM") for place in STEP[:3]),
    Fault(f"{JOURNAL}:_write_all", "before", "EIO"),
    Fault(f"{JOURNAL}:_write_all", "before", "ENOSPC"),
    Fault(f"{TRAIN}.checkpoint:_put", "before", "ENOSPC", nth=3),
]
TWO_WORKERS = [
    *(Fault(place, when, "SIGKILL", rank=rank) for rank in (0, 1) for place, when in zip(STEP[:4], SIDES, strict=True)),
    *(Fault(place, "before", "SIGKILL", rank=0) for place in (RECORD[0], SAVE[0], SAVE[2], SAVE[3])),
    *(Fault(place, "after", "RuntimeError", rank=rank) for place, rank in ((STEP[1], 1), (STEP[2], 0))),
    Fault(STEP[2], "before", "SIGTERM", rank=1),
    Fault(STEP[1], "before", "hang", rank=1),
]
BUILD = [
    *(Fault("hero_platform.store.build:build_shard", when, "SIGKILL", nth=1) for when in ("before", "after")),
    *(Fault("hero_platform.store.build:_publish", when, "SIGKILL", nth=1) for when in ("before", "after")),
    Fault("hero_platform.store.plan:Plan.write", "after", "SIGKILL", nth=1),
    Fault("hero_platform.store.build:write_annotations", "after", "SIGKILL", nth=1),
    Fault("hero_platform.store.manifest:Manifest.write", "before", "SIGKILL", nth=1),
]
SHORT = [  # of `make test`
    Fault(STEP[1], "after", "SIGKILL"),
    Fault(f"{TRAIN}.checkpoint:_put", "before", "SIGKILL", where="optim"),
    Fault(f"{JOURNAL}:_write_all", "before", "tear", nth=3),
]


def chain(runs, name: str, faults: Sequence[Fault], settings: Sequence[str]) -> list[str]:
    """Start a run again and again, each time with the next fault, then without; returns a line for each."""
    lines = []
    for number, fault in enumerate(faults):
        begun = runs.step(name)
        process = runs.start(name, *settings, faults=[asdict(fault)])
        assert process.wait(timeout=120) == fault.code, f"{fault}: {runs.said(name)[-2000:]}"
        found = snapshot.survey(str(runs.home / "runs" / name / "checkpoints"))
        assert not any(listed.problem for listed in found), f"{fault}: {found}"
        runs.record(name)  # no (step, metric) twice
        lines.append(f"| {number + 1} | {fault} | {begun} | {runs.step(name)} |")
        assert runs.step(name) < STEPS, "the run was over before all faults had come"
    assert runs.start(name, *settings).wait(timeout=240) == 0, runs.said(name)[-2000:]
    return lines


def assert_undisturbed(runs, name: str, steady: str) -> None:
    """The same losses, metrics, stream and weights to the last bit, each once, and nothing left behind."""
    assert runs.record(name) == runs.record(steady)
    assert runs.digests(name, STEPS) == runs.digests(steady, STEPS) != {}
    assert runs.processes() == []
    folder = runs.home / "runs" / name
    left = [path.name for path in folder.rglob("*") if ".tmp-" in path.name or path.name.endswith(".partial")]
    assert left == [] and not list(folder.glob("hung-*"))


def test_a_few_faults(runs):
    few = [*SETTINGS, "--steps", "40"]
    runs.train("steady", *few)
    for number, fault in enumerate(SHORT):
        assert runs.start("broken", *few, faults=[asdict(fault)]).wait(timeout=120) == fault.code, number
    assert runs.start("broken", *few).wait(timeout=120) == 0
    assert runs.record("broken") == runs.record("steady") and runs.digests("broken", 40) == runs.digests("steady", 40)
    assert not list((runs.home / "runs" / "broken").glob("hung-*")), "killed starts leave no empty files"


@pytest.mark.chaos
@pytest.mark.timeout(1500)
def test_every_place_of_one_process(runs, record_property):
    faults = random.Random(SEED).sample(ONE_PROCESS, len(ONE_PROCESS))
    runs.train("steady", *SETTINGS)
    before = set(Path("/tmp").glob("hero-*"))
    lines = chain(runs, "broken", faults, SETTINGS)
    assert_undisturbed(runs, "broken", "steady")
    assert set(Path("/tmp").glob("hero-*")) - before == set()
    show("one process", lines)


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.timeout(1500)
def test_two_workers(runs, tmp_path):
    """All faults are armed at once; each start of the workers dies of the next one that is reached."""
    few = ["--steps", "60", *SETTINGS[2:], "--scale.num-workers", "2", "--scale.max-failures", "40"]
    assert runs.start("steady", *few).wait(timeout=300) == 0
    rng = random.Random(SEED)
    marks = [tmp_path / f"{number}.done" for number in range(len(TWO_WORKERS))]
    faults = [
        asdict(replace(fault, nth=rng.randint(1, 4), once=str(mark)))
        for fault, mark in zip(TWO_WORKERS, marks, strict=True)
    ]
    process = runs.start("broken", *few, "--scale.hang-timeout-s", "20", faults=faults)
    assert process.wait(timeout=1200) == 0, runs.said("broken")[-3000:]
    missed = [str(fault) for fault, mark in zip(TWO_WORKERS, marks, strict=True) if not mark.exists()]
    assert missed == []
    assert runs.record("broken") == runs.record("steady") and runs.digests("broken", 60) == runs.digests("steady", 60)
    assert runs.processes() == []
    order = sorted(range(len(marks)), key=lambda number: marks[number].stat().st_mtime)
    happened = [f"{TWO_WORKERS[number]}, rank {TWO_WORKERS[number].rank}" for number in order]
    show("two workers", [f"| {number + 1} | {fault} | | |" for number, fault in enumerate(happened)])


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_building_a_store(runs, tmp_path):
    whole = tmp_path / "whole"
    words = ["synthetic", "--videos", "24", "--val-videos", "4", "--test-videos", "4", "--shard-mb", "0.05", "--out"]
    assert runs.build("whole", *words, str(whole)).wait(timeout=200) == 0
    expected = sorted(str(path.relative_to(whole)) for path in whole.rglob("*"))
    lines = []
    for number, fault in enumerate(random.Random(SEED).sample(BUILD, len(BUILD))):
        mark, broken = tmp_path / f"{number}.done", tmp_path / str(number)
        process = runs.build("broken", *words, str(broken), faults=[asdict(replace(fault, once=str(mark)))])
        ended = process.wait(timeout=200)
        assert mark.exists(), f"{fault} did not happen: {runs.said('broken')}"
        if ended:  # a worker that is killed is started again within the same command
            assert runs.build("broken", *words, str(broken)).wait(timeout=200) == 0
        assert FeatureStore.open(str(broken)).digest == FeatureStore.open(str(whole)).digest
        left = [name for path in broken.rglob("*") if (name := str(path.relative_to(broken))) not in expected]
        assert left == [], f"{fault}: nothing is left of the build that was killed"
        lines.append(f"| {number + 1} | {fault}, ended with {ended} | | |")
    show("building a store", lines)


def show(title: str, lines: Sequence[str]) -> None:
    """The table for people; `make chaos` shows it."""
    print(f"\n{title}: {len(lines)} faults survived, CHAOS_SEED={SEED}\n")
    print("\n".join(["| | fault | from step | to step |", "|---|---|---|---|", *lines]))
    if place := os.environ.get("CHAOS_TABLE"):
        with open(place, "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"title": title, "seed": SEED, "faults": list(lines)}) + "\n")
