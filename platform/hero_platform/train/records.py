"""What a run tells its tracker: who it is, what it was made from, and the pictures people look for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hero_platform import config_io, home
from hero_platform.config import RunConfig
from hero_platform.tracking.base import NullTracker, RunInfo, Tracker, default_uri


def make_tracker(config: RunConfig, folder: str) -> Tracker:
    """The tracker of a run; it is started by the rank that trains.

    Raises:
        ValueError: runs cannot be tracked where the settings say (see `default_uri`).
    """
    if config.tracking.kind == "none":
        return NullTracker()
    from hero_platform.tracking.mlflow_tracker import MlflowTracker

    return MlflowTracker(folder, uri=default_uri(home.root()))


def run_info(config: RunConfig, *, resume_step: int, same_split: bool, provenance: Mapping[str, Any]) -> RunInfo:
    """The start of a run, for its tracker.

    Args:
        config: the resolved run.
        resume_step: updates behind the checkpoint this start goes on from.
        same_split: whether workers and threads are those of the start before; only then are repeated steps bit-equal.
        provenance: `tracking.system.provenance()` of the driver.
    """
    digests = {f"store.{ref.corpus}": ref.digest for ref in config.stores}
    annotations = {f"annotations.{ref.corpus}": ref.annotations for ref in config.stores if ref.annotations}
    return RunInfo(
        name=config.name,
        config=config_io.to_dict(config),
        experiment=config.tracking.experiment,
        resume_step=resume_step,
        replay_tolerance=0.0 if same_split else math.inf,
        tags={"recipe": config.recipe, "fingerprint": config_io.fingerprint(config), **digests, **annotations},
        provenance=provenance,
    )
