"""What earlier starts of a sweep kept beside its study: `sweeps/<name>/sweep.json`."""

from __future__ import annotations

import json
from typing import Any

from hero_platform import files, home
from hero_platform.credentials import without_credentials
from hero_platform.tune.study import ENDED, trials_in

FILE, STUDY = "sweep.json", "study.journal"


def kept_of(name: str) -> dict[str, Any]:
    """What the last start of a sweep kept: identity, trials, storage, init_from, warm_start; empty: there is none."""
    path = files.join(home.sweep_dir(name), FILE)
    return dict(files.read_json(path)) if files.exists(path) else {}


def keep(name: str, facts: dict[str, Any]) -> None:
    """Keep them for the next start, and for whoever asks what is still needed."""
    files.write_json(files.join(home.sweep_dir(name), FILE), facts)


def plain(value: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(value))


def kept_trials(name: str) -> int:
    """How many trials the sweep of this name was given when it was last started; 0: there is none."""
    return int(kept_of(name).get("trials", 0))


def trial_name(sweep: str, number: int) -> str:
    """Name of the run of a trial."""
    return f"{sweep}-{number:04d}"


def runs_of(name: str) -> list[str]:
    """Names of the runs that trials of a sweep have."""
    prefix = f"{name}-"
    found = files.listdir(files.join(home.root(), "runs"))
    return [run for run in found if run.startswith(prefix) and run.removeprefix(prefix).isdigit()]


def address_of(name: str, storage: str = "") -> str:
    """Where the study of a sweep is kept: as an earlier start had it; `storage` is that of the command.

    Raises:
        ValueError: the command names another place.
    """
    kept = str(kept_of(name).get("storage", ""))
    if kept and storage and kept != without_credentials(storage):
        raise ValueError(f"the study of sweep {name!r} is kept in {kept}: leave --storage out, or name that")
    return storage or kept or f"journal:{files.join(home.sweep_dir(name), STUDY)}"


def check_study(name: str, storage: str) -> None:
    """Refuse to go on with a sweep whose study is gone: its trials would be made up anew under the same names.

    Raises:
        ValueError: and where it should be.
    """
    address = address_of(name, storage)
    if not kept_of(name) or not (runs := runs_of(name)):
        return
    try:
        there = bool(trials_in(address, name))
    except ValueError:
        there = False
    if not there:
        raise ValueError(
            f"the study of sweep {name!r} is not in {without_credentials(address)}, and {len(runs)} of its runs are "
            f"there, {runs[0]} first: bring it back, or start a new --name"
        )


def trials_over(name: str, storage: str) -> int:
    """How many trials of the sweep of this name have ended; `storage` is that of the command, with its password."""
    return sum(state in ENDED for state, _ in trials_in(address_of(name, storage), name).values())


def finished_trials(name: str, storage: str = "") -> dict[str, dict[str, Any]]:
    """Name of the run of each finished trial of an earlier sweep -> what was searched.

    Raises:
        ValueError: there is no such sweep, or none of its trials has finished.
    """
    if not kept_of(name):
        raise ValueError(f"there is no sweep {name!r} under {home.root()}")
    same = storage if without_credentials(storage) == kept_of(name).get("storage") else ""
    trials = trials_in(address_of(name, same), name)
    found = {trial_name(name, number): values for number, (state, values) in trials.items() if state == "finished"}
    if not found:
        raise ValueError(f"no trial of sweep {name!r} has finished yet")
    return found
