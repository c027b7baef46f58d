"""A run that begins where another one is: the same weights, moments and record, other settings from there on."""

from __future__ import annotations

from collections.abc import Iterator

from hero_platform import config_io, files, home
from hero_platform.config import RunConfig
from hero_platform.tracking.journal import FILE, Record, as_bytes, of_run
from hero_platform.train import snapshot

FORKED = "forked.json"  # in the run's folder: which run and step it began from, and the digest of that checkpoint


def origin_of(run: str) -> tuple[str, int] | None:
    """Name and step of what a run was forked from; None: it began from its initial weights."""
    path = files.join(home.run_dir(run), FORKED)
    if not files.exists(path):
        return None
    kept = files.read_json(path)
    return str(kept["run"]), int(kept["step"])


def fork(config: RunConfig, donor: str, step: int) -> None:
    """Begin a run from the checkpoint of a step of another run; a run that was begun is left as it is.

    Whoever dies here leaves a folder without `config.json`, which is made anew.

    Args:
        config: of the new run; its model has the shape of the other's.
        donor: name of the run that it begins from.
        step: updates behind the checkpoint.

    Raises:
        ValueError: there is no such checkpoint, or it is damaged.
    """
    folder, origin = home.run_dir(config.name), home.run_dir(donor)
    if files.exists(files.join(folder, "config.json")):
        return
    source = snapshot.choose(home.checkpoints_dir(donor), step)
    commit = snapshot.verify(source)
    files.remove_tree(folder)
    files.copy_tree(source, files.join(home.checkpoints_dir(config.name), files.name_of(source)))
    files.write_bytes(files.join(folder, FILE), as_bytes(_until(origin, step)))
    files.write_json(files.join(folder, FORKED), {"run": donor, "step": step, "digest": commit["digest"]})
    files.write_json(files.join(folder, "config.json"), config_io.to_dict(config))


def _until(folder: str, step: int) -> Iterator[Record]:
    """The record of a run up to a step, without what it cost."""
    for record in of_run(folder):
        if "train/lr" in record.metrics and record.step > step:
            return
        metrics = {name: value for name, value in record.metrics.items() if not name.startswith("cost/")}
        if metrics:
            yield record._replace(metrics=metrics)
