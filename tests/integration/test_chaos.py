"""Faults at chosen places of real runs: whatever dies, and wherever, the run ends as the one that nobody touched.

A fault is (place, before or after, what happens); `inject/hero_faults.py` makes it, in the real process, and the code
under test knows nothing of it. One run takes a whole list of them: each start dies of the next fault, the same command
goes on, and in the end losses, weights, record and machine are compared with an undisturbed run. The order is drawn
from `CHAOS_SEED`, which is printed with the table of what was survived: `make chaos`.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import pytest

from hero_platform import files
from hero_platform.store.reader import FeatureStore
from hero_platform.train import snapshot
from jobs import sync

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
    *(
        Fault("hero_platform.files:_sync", "before", "SIGKILL", nth=1, where=name)
        for name in ("starts", "lease", "status")
    ),
    *(Fault(f"{TRAIN}.host_buffer:HostBuffer.fill", when, "SIGKILL") for when in ("before", "after")),
    Fault(f"{TRAIN}.checkpoint:Checkpointer.wait_copied", "before", "SIGKILL", nth=4),
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
    *(Fault(place, "after", "RuntimeError", rank=rank) for place, rank in ((STEP[0], 0), (STEP[1], 1), (STEP[2], 0))),
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
    for fault in faults:
        begun = runs.step(name)
        process = runs.start(name, *settings, faults=[asdict(fault)])
        assert process.wait(timeout=120) == fault.code, f"{fault}: {runs.said(name)[-2000:]}"
        found = snapshot.survey(str(runs.home / "runs" / name / "checkpoints"))
        assert not any(listed.problem for listed in found), f"{fault}: {found}"
        runs.record(name)  # no (step, metric) twice
        lines.append(f"{fault}, from step {begun} to {runs.step(name)}")
        assert runs.step(name) < STEPS, "the run was over before all faults had come"
    assert runs.start(name, *settings).wait(timeout=240) == 0, runs.said(name)[-2000:]
    return lines


def assert_undisturbed(runs, name: str, steady: str) -> None:
    """The same losses, metrics, stream and weights to the last bit, each once, and nothing left behind."""
    assert runs.record(name) == runs.record(steady)
    assert runs.digests(name, STEPS) == runs.digests(steady, STEPS) != {}
    assert runs.left() == []
    folder = runs.home / "runs" / name
    left = [path.name for path in folder.rglob("*") if ".tmp-" in path.name or path.name.endswith(".partial")]
    assert left == [] and not list(folder.glob("hung-*"))


@pytest.mark.slow
@pytest.mark.alone
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
def test_every_place_of_one_process(runs, chaos):
    faults = chaos.shuffled(ONE_PROCESS)
    runs.train("steady", *SETTINGS)
    lines = chain(runs, "broken", faults, SETTINGS)
    assert_undisturbed(runs, "broken", "steady")
    chaos.show("one process", lines)


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.timeout(1500)
def test_two_workers(runs, chaos, tmp_path):
    """All faults are armed at once; each start of the workers dies of the next one that is reached."""
    few = ["--steps", "60", *SETTINGS[2:], "--scale.num-workers", "2", "--scale.max-failures", "40"]
    assert runs.start("steady", *few).wait(timeout=300) == 0
    rng = random.Random(chaos.seed)
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
    assert runs.left() == []
    order = sorted(range(len(marks)), key=lambda number: marks[number].stat().st_mtime)
    happened = [f"{TWO_WORKERS[number]}, rank {TWO_WORKERS[number].rank}" for number in order]
    chaos.show("two workers", happened)


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_building_a_store(runs, chaos, tmp_path):
    whole = tmp_path / "whole"
    words = ["synthetic", "--videos", "24", "--val-videos", "4", "--test-videos", "4", "--shard-mb", "0.05", "--out"]
    assert runs.build("whole", *words, str(whole)).wait(timeout=200) == 0
    expected = sorted(str(path.relative_to(whole)) for path in whole.rglob("*"))
    lines = []
    for number, fault in enumerate(chaos.shuffled(BUILD)):
        mark, broken = tmp_path / f"{number}.done", tmp_path / str(number)
        process = runs.build("broken", *words, str(broken), faults=[asdict(replace(fault, once=str(mark)))])
        ended = process.wait(timeout=200)
        assert mark.exists(), f"{fault} did not happen: {runs.said('broken')}"
        if ended:  # a worker that is killed is started again within the same command
            assert runs.build("broken", *words, str(broken)).wait(timeout=200) == 0
        assert FeatureStore.open(str(broken)).digest == FeatureStore.open(str(whole)).digest
        left = [name for path in broken.rglob("*") if (name := str(path.relative_to(broken))) not in expected]
        assert [*left, *runs.left()] == [], f"{fault}: nothing is left of the build that was killed"
        lines.append(f"{fault}, ended with {ended}")
    chaos.show("building a store", lines)


# What the object store may answer; `s3fs` tries some again, the checkpoint's writer all of them.
ANSWERS = ("SlowDown", "InternalError", "RequestTimeout", "ExpiredToken", "ServiceUnavailable")
CALL = "aiobotocore.client:AioBaseClient._make_api_call"


class Fleet:
    """A run whose folder is on the object store and whose record goes to a server, and what may befall the three."""

    def __init__(self, runs, object_store, tracking_server, faults: Sequence[dict[str, object]]) -> None:
        self._runs, self._store, self._tracking, self._faults = runs, object_store, tracking_server, faults
        self._words = [*SETTINGS, "--tracking.kind", "mlflow", "--checkpoint.max-failed", "20"]
        self.process = self._start()

    def _start(self):
        return self._runs.start("broken", *self._words, faults=self._faults)

    def saved(self) -> int:
        """The newest step that the object store holds."""
        return max(snapshot.checkpoints("s3://hero/chaos/runs/broken/checkpoints"), default=0)

    def go_on(self, checkpoints: int = 1) -> None:
        """Wait for so many more checkpoints."""
        begun = self.saved()
        self._runs.until(lambda: self.saved() >= begun + 2 * checkpoints, self.process)

    def tracking_dies_and_comes_back(self) -> None:
        self._tracking.kill()
        self.go_on(3)
        self._tracking.start()

    def tracking_is_slow(self) -> None:
        self._tracking.signal(signal.SIGSTOP)
        self.go_on(3)
        self._tracking.signal(signal.SIGCONT)

    def store_is_slow(self) -> None:
        self._store.signal(signal.SIGSTOP)
        time.sleep(3)
        self._store.signal(signal.SIGCONT)

    def store_dies_and_comes_back(self) -> None:
        self._store.kill()
        time.sleep(1)
        self._store.start()

    def store_is_away_for_longer_than_a_lease(self) -> None:
        self._store.kill()
        time.sleep(40)
        self._store.start()

    def driver_dies(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        assert self.process.wait(60) == (STOPPED if number == signal.SIGTERM else -number)
        self.process = self._start()

    def driver_is_interrupted(self) -> None:
        self.driver_dies(signal.SIGTERM)

    def driver_dies_while_tracking_is_down(self) -> None:
        self._tracking.kill()
        self.driver_dies()
        self.go_on()
        self._tracking.start()

    def driver_dies_with_the_store(self) -> None:
        self._store.kill()
        self.process.kill()
        self.process.wait()
        self._store.start()
        self.process = self._start()

    def machine_is_lost(self) -> None:
        """Only the object store and the server are left of the run."""
        self.process.kill()
        self.process.wait()
        shutil.rmtree(os.environ["HERO_CACHE"], ignore_errors=True)
        self.process = self._start()

    def all_die(self) -> None:
        for server in (self._store, self._tracking, self.process):
            server.kill()
        self.process.wait()
        self._store.start()
        self.process = self._start()
        self.go_on()
        self._tracking.start()


EVENTS = (
    Fleet.tracking_dies_and_comes_back,
    Fleet.tracking_is_slow,
    Fleet.store_is_slow,
    Fleet.store_dies_and_comes_back,
    Fleet.store_is_away_for_longer_than_a_lease,
    Fleet.driver_dies,
    Fleet.driver_is_interrupted,
    Fleet.driver_dies_while_tracking_is_down,
    Fleet.driver_dies_with_the_store,
    Fleet.machine_is_lost,
    Fleet.all_die,
)


@pytest.mark.chaos
@pytest.mark.s3
@pytest.mark.timeout(1500)
def test_servers(runs, chaos, object_store, tracking_server, tmp_path):
    """The object store and the MLflow server die, freeze, refuse and come back under a run that uses both."""
    runs.train("steady", *SETTINGS)
    runs.environment["HERO_HOME"] = "s3://hero/chaos"
    marks = [tmp_path / f"{code}.done" for code in ANSWERS]
    faults = [
        asdict(Fault(CALL, "before", f"s3:{code}", nth=20 + 10 * number, where="'PutObject'", once=str(mark)))
        for number, (code, mark) in enumerate(zip(ANSWERS, marks, strict=True))
    ]
    fleet = Fleet(runs, object_store, tracking_server, faults)
    for event in chaos.shuffled(EVENTS):
        fleet.go_on()
        event(fleet)
    fleet.go_on()
    tracking_server.kill()  # and never comes back while the run lives
    assert fleet.process.wait(timeout=600) == 0, runs.said("broken")[-3000:]
    assert [mark.name for mark in marks if not mark.exists()] == []
    assert runs.left() == []
    files.copy_tree("s3://hero/chaos/runs/broken", runs.home / "runs" / "broken")
    assert_undisturbed(runs, "broken", "steady")
    tracking_server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HERO_HOME", "s3://hero/chaos")
        assert sync.main(["--run", "broken"]) == 0
    runs.assert_tracked_once("broken", os.environ["MLFLOW_TRACKING_URI"])
    events = [event.__name__.replace("_", " ") for event in chaos.shuffled(EVENTS)]
    chaos.show(
        "servers", [*events, "tracking never comes back", *(f"the object store answers {code}" for code in ANSWERS)]
    )


MASTERS = ("gcs_server", "raylet", "ray::TrainController", "jobs.train")


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.timeout(1500)
def test_masters_of_two_workers(runs, chaos):
    """Ray's head, its node, the controller of the workers, the driver: whoever is killed, the same command goes on."""
    few = ["--steps", "80", *SETTINGS[2:], "--scale.num-workers", "2"]
    assert runs.start("steady", *few).wait(timeout=300) == 0
    lines = []
    for number, word in enumerate(chaos.shuffled(MASTERS)):
        name = f"broken-{number}"
        process = runs.start(name, *few)
        runs.until(lambda name=name: runs.step(name) >= 6, process)
        runs.processes(word)[-1].kill()
        code = process.wait(timeout=300)  # the workers may end the run without Ray's node: they need it to begin only
        lines.append(f"SIGKILL of {word}, the command ended with {code} at step {runs.step(name)}")
        assert runs.start(name, *few).wait(timeout=300) == 0, f"{word}: {runs.said(name)[-3000:]}"
        assert runs.record(name) == runs.record("steady") and runs.digests(name, 80) == runs.digests("steady", 80)
        assert runs.left() == [], word
    chaos.show("masters of two workers", lines)
