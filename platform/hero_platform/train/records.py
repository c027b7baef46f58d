"""What a run tells its tracker: who it is, what it was made from, and the pictures people look for."""

from __future__ import annotations

import calendar
import contextlib
import hashlib
import json
import logging
import math
import re
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hero_platform import config_io, files, home
from hero_platform.config import RunConfig
from hero_platform.credentials import without_credentials
from hero_platform.tracking.base import STATUSES, RunInfo, Status, Tracker, artifact_path, default_uri
from hero_platform.tracking.journal import FILE as JOURNAL_FILE
from hero_platform.tracking.note import FILE as NOTE_FILE
from hero_platform.tracking.note import Note
from hero_platform.tracking.place import Place, tags_of
from hero_platform.tracking.recorder import STATUS_FILE, JournalTracker
from hero_platform.tracking.standing import MADE_WITH_TAG, SETTING_TAG
from hero_platform.train import snapshot

logger = logging.getLogger(__name__)

STARTS = "starts"  # folder of the starts
PROVENANCE_FILE = "provenance.json"  # code, packages and hardware of the newest start
_START_FILE = re.compile(r"\d{4,}\.json")
RUNNING = "RUNNING"  # the status of a start that has not ended, or was killed
_TIME = "%Y-%m-%dT%H:%M:%SZ"
KEPT_AS = "kept_as"  # in an evaluation's metrics.json: its place among the files of the run it belongs to
FINAL_FILES = ("model.safetensors", "config.json", "state.json")  # the optimizer stays with the run's storage


@dataclass(frozen=True)
class Start:
    """What one start of a run was given; execution fields may differ between the starts of a run (D1)."""

    step: int  # updates behind the checkpoint it went on from
    time_ms: int  # wall clock, a second exact
    world: int  # ranks
    threads: int  # of each rank
    device: str
    config: RunConfig
    recorded: int = 0  # the last step that the starts before it had recorded
    made_with: str = ""  # digest of its code and packages; empty: not recorded
    nodes: tuple[Place, ...] = ()  # its machines; empty: not recorded

    @property
    def on_gpu(self) -> bool:
        """Whether each rank had a GPU."""
        return self.device.startswith("cuda")

    @property
    def billed(self) -> dict[str, float]:
        """What is paid by the hour, and how many of it: machines by type and market, of others their devices."""
        each = 1 if self.on_gpu else self.threads
        found: dict[str, float] = {}
        for node in self.nodes or (Place("", ranks=self.world),):
            devices = ("gpu" if self.on_gpu else "cpu", float(each * node.ranks))
            kind, count = (node.billed_as, node.share) if node.billed_as else devices
            found[kind] = found.get(kind, 0.0) + count
        return found


def note_start(folder: str, start: Start, provenance: Mapping[str, Any]) -> None:
    """Keep what this start was given, and what ran: `starts/0000.json` and so on, `provenance.json`."""
    place = files.join(folder, STARTS)
    for left in (folder, place):
        files.remove_partial(left, shared=True)
    record = {
        "step": start.step,
        "recorded": start.recorded,
        "time": time.strftime(_TIME, time.gmtime(start.time_ms / 1000)),
        "host": socket.gethostname(),
        "world": start.world,
        "threads_per_worker": start.threads,
        "device": start.device,
        "torch": torch.__version__,
        "made_with": made_with(provenance),
        "nodes": [asdict(node) for node in start.nodes],
        "config": config_io.to_dict(start.config),
    }
    files.write_json(files.join(folder, STATUS_FILE), {"status": RUNNING})  # until this start says how it ended
    number = 1 + max((int(name.removesuffix(".json")) for name in _start_files(folder)), default=-1)
    files.write_json(files.join(place, f"{number:04d}.json"), record)
    if provenance:
        files.write_json(files.join(folder, PROVENANCE_FILE), dict(provenance))


def made_with(provenance: Mapping[str, Any]) -> str:
    """SHA-256 of the code and packages in a `provenance()`; empty where it has neither."""
    git = {key: text for key, text in provenance.get("git", {}).items() if key != "branch"}
    parts = [git, provenance.get("packages", [])]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest() if any(parts) else ""


def provenance_of(folder: str) -> dict[str, Any]:
    """What the newest start of a run kept of its machine; with an empty git state where it kept nothing."""
    path = files.join(folder, PROVENANCE_FILE)
    try:
        found: dict[str, Any] = files.read_json(path)
    except FileNotFoundError:
        return {"git": {}}
    except ValueError as error:
        logger.error("what ran is not known: %s", error)
        return {"git": {}}
    return found


def _start_files(folder: str) -> list[str]:
    return [name for name in files.listdir(files.join(folder, STARTS)) if _START_FILE.fullmatch(name)]


def starts_of(folder: str) -> list[Start]:
    """The starts of a run, first to last; the damaged note of one is left out."""
    read = (_read_start(files.join(folder, STARTS, name)) for name in _start_files(folder))
    return [start for start in read if start is not None]


def _read_start(path: str) -> Start | None:
    try:
        record = files.read_json(path)
        seconds = calendar.timegm(time.strptime(record["time"], _TIME))
        config = config_io.from_json(json.dumps(record["config"]))
        split = (int(record["world"]), int(record["threads_per_worker"]), str(record["device"]))
        recorded = int(record.get("recorded", record["step"]))  # older notes do not say it
        made_with = str(record.get("made_with", ""))
        nodes = tuple(Place(**node) for node in record.get("nodes", ()))
        return Start(int(record["step"]), seconds * 1000, *split, config, recorded, made_with, nodes)
    except (ValueError, KeyError, TypeError):
        return None


def same_since(folder: str, step: int, world: int, threads: int) -> bool:
    """Whether all starts that may have recorded what comes after `step` had as many ranks and threads.

    The one that made the checkpoint of `step` is not asked: the checkpoint says it. Of a damaged note nobody knows.
    """
    starts = starts_of(folder)
    if damaged := len(_start_files(folder)) - len(starts):
        logger.error("%d notes in %s are damaged and left out", damaged, files.join(folder, STARTS))
        return False
    return all((each.world, each.threads) == (world, threads) for each in starts if each.step >= step)


def run_folder(name: str) -> str:
    """Folder of a run that has begun.

    Raises:
        ValueError: there is none of this name.
    """
    folder = home.run_dir(name)
    if not files.exists(files.join(folder, "config.json")):
        known = ", ".join(files.listdir(files.join(home.root(), "runs"))[:8]) or "no run"
        raise ValueError(f"there is no run {name!r} under {home.root()}; there is {known}")
    return folder


def make_tracker(config: RunConfig, folder: str) -> Tracker:
    """The tracker of a run; it is started by the rank that trains.

    Raises:
        ValueError: runs cannot be tracked where the settings say (see `default_uri`).
    """
    if config.tracking.kind == "none":
        return JournalTracker(folder)
    from hero_platform.tracking.index import path_of
    from hero_platform.tracking.mlflow_tracker import MlflowTracker

    uri = default_uri(home.root())
    return MlflowTracker(folder, uri, index=path_of(home.root(), uri))


def close(tracker: Tracker, status: Status | None) -> None:
    """Close a run's tracker; what goes wrong there is raised only when nothing had gone wrong before.

    Args:
        tracker: of the run.
        status: how this start ended; None: another process has the run, and nothing of it is touched.
    """
    try:
        if status is None:
            tracker.abandon()
        else:
            tracker.finish(status)
    except Exception as error:
        if status == "FINISHED":
            raise
        logger.error("the record of the run could not be closed: %s", error)


def is_settled(config: RunConfig, folder: str) -> bool:
    """Whether the tracker knows that the run ended, and all of its metrics; false after a kill near the end."""
    if status_of(folder) != end_of(config):
        return False
    if config.tracking.kind == "none" or files.is_remote(folder):  # there the note went with the scratch folder
        return True
    note = Note.load(Path(folder) / NOTE_FILE, without_credentials(default_uri(home.root())))
    return note is None or (note.clean and note.shipped == files.size_of(files.join(folder, JOURNAL_FILE)))


def end_of(config: RunConfig) -> Status:
    """The status of a run that has come to its last step; one that rests there is not finished."""
    return "KILLED" if config.tracking.rests else "FINISHED"


def status_of(folder: str) -> Status:
    """How the newest start of a run ended; one that was killed without a word is KILLED."""
    try:
        found = files.read_json(files.join(folder, STATUS_FILE))["status"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # none, or a damaged one
        return "KILLED"
    return found if found in STATUSES else "KILLED"


def nodes_of(folder: str) -> list[Place]:
    """The machines of all starts of a run."""
    return [node for start in starts_of(folder) for node in start.nodes]


def run_info(
    config: RunConfig,
    *,
    resume_step: int,
    same_split: bool,
    provenance: Mapping[str, Any],
    nodes: Sequence[Place],
) -> RunInfo:
    """The start of a run, for its tracker.

    Args:
        config: the resolved run.
        resume_step: updates behind the checkpoint this start goes on from.
        same_split: whether workers and threads are those of the start before; only then are repeated steps bit-equal.
        provenance: `tracking.system.provenance()` of the driver.
        nodes: the machines of all its starts.
    """
    made = made_with(provenance)
    digests = {f"store.{ref.corpus}": ref.digest for ref in config.stores}
    annotations = {f"annotations.{ref.corpus}": ref.annotations for ref in config.stores if ref.annotations}
    return RunInfo(
        name=config.name,
        config=config_io.to_dict(config),
        experiment=config.tracking.experiment,
        resume_step=resume_step,
        replay_tolerance=0.0 if same_split else math.inf,
        sweep=config.tracking.sweep,
        tags={
            "recipe": config.recipe,
            "fingerprint": config_io.fingerprint(config),
            SETTING_TAG: _setting(config),
            **({MADE_WITH_TAG: made} if made else {}),
            **tags_of(nodes),
            **digests,
            **annotations,
        },
        provenance=provenance,
    )


def _setting(config: RunConfig) -> str:
    """The same for runs that differ only in their seed, and in that of the runs whose weights they began with."""
    begun_with = config.init_digest
    if home.is_name(config.init_from):
        with contextlib.suppress(FileNotFoundError, ValueError):  # of a run that is gone, or damaged
            origin = files.read_bytes(files.join(home.run_dir(config.init_from), "config.json"))
            begun_with = _setting(config_io.from_json(origin.decode()))
    return config_io.fingerprint(replace(config, seed=0, init_digest=begun_with))


def keep_results(tracker: Tracker, config: RunConfig, folder: str) -> None:
    """Give a finished run's tracker its loss curves as a picture and its final checkpoint."""
    keys = {f"train/loss/{entry.key}" for entry in config.mixture}
    curves = {name: points for name, points in tracker.history("train/loss/").items() if name in keys}
    if curves:
        plotted = {name: (list(points), list(points.values())) for name, points in sorted(curves.items())}
        from hero_platform.report.plots import loss_figure  # matplotlib takes long to import

        tracker.log_figure(loss_figure(plotted), "plots/loss.png")
    newest = snapshot.choose(files.join(folder, "checkpoints"), "last")
    for name in FINAL_FILES:
        tracker.log_artifact(files.join(newest, name), f"checkpoint/{files.name_of(newest)}")


def keep_evaluation(config: RunConfig, folder: str, step: int, name: str, results: Mapping[str, float]) -> Tracker:
    """Open the tracker of a run that ended and record an evaluation of its checkpoint of `step`.

    Evaluating the same checkpoint again records nothing twice; other numbers under the same name are a warning, and
    those recorded first stay. The caller adds files, then calls `close_evaluation`.

    Args:
        config: of the run.
        folder: of the run.
        step: updates behind the checkpoint.
        name: what was evaluated, such as `tvr/val`.
        results: metric -> value.
    """
    tracker = make_tracker(config, folder)
    made, nodes = provenance_of(folder), nodes_of(folder)  # of those who trained it
    end = max(step, config.steps)
    tracker.start(run_info(config, resume_step=end, same_split=True, provenance=made, nodes=nodes))
    points = tracker.history(f"eval/{name}/")
    held = {metric: values[step] for metric, values in points.items() if step in values}
    named = {f"eval/{name}/{metric}": value for metric, value in results.items()}
    if other := [m for m, value in held.items() if m in named and not math.isclose(value, named[m], rel_tol=1e-9)]:
        logger.warning(
            "run %s holds other numbers for this evaluation (%s is %g, now %g) and keeps them: --name records new ones",
            config.name, other[0], held[other[0]], named[other[0]],
        )  # fmt: skip
    tracker.log(step, {metric: value for metric, value in named.items() if metric not in held})
    return tracker


def keep_evaluations(tracker: Tracker, folder: str) -> None:
    """Give a run's tracker the files of all its evaluations, once more."""
    root = files.join(folder, "evaluations")
    for name in files.listdir(root):
        facts = files.join(root, name, "metrics.json")
        try:
            place = artifact_path(files.read_json(facts)[KEPT_AS])
        except (FileNotFoundError, KeyError):  # of no run, or of an older version
            continue
        except (ValueError, TypeError, AttributeError) as error:
            logger.error("the evaluation %s is damaged and left out: %s", files.join(root, name), error)
            continue
        tracker.log_artifact(files.join(root, name), place)


def close_evaluation(tracker: Tracker, folder: str) -> None:
    """Give the run back the status it had."""
    tracker.finish(status_of(folder))
