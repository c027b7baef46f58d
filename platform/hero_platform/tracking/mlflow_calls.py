"""What the tracker asks of MLflow, call by call, within the limits of its REST interface; only here is it imported."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hero_platform import files
from hero_platform.credentials import without_credentials
from hero_platform.scratch import scratch
from hero_platform.tracking.base import flatten, refusal

RUN_TAG = "hero.run_name"
KIND_TAG, SWEEP = "hero.kind", "sweep"  # of a sweep's own run
SWEEP_TAG = "hero.sweep"  # of its trials
BEST_TAG = "hero.best_trial"  # of the best of them: true; of the sweep's run: its name
PARENT_TAG = "mlflow.parentRunId"
TRAINING = {"mlflow.experimentKind": "custom_model_development"}  # else the UI opens its pages for language models
METRICS_A_CALL = 1000
PARAMS_A_CALL = TAGS_A_CALL = 100
PARAM_CHARACTERS = 500
_BAD_CHARACTERS = re.compile(r"[^A-Za-z0-9_\-. :/]")  # MLflow refuses these in names of metrics and params


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint to register as a model."""

    folder: str  # local or remote; only a local one is uploaded
    files: tuple[str, ...]  # those of its files that are the model
    metrics: Mapping[str, float]
    described: str  # in words


def connect(uri: str) -> Any:
    """A client of its own, without MLflow's global state, its telemetry, or its minutes of retries."""
    for name, value in (
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"),
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "20"),
    ):
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # after the import, which sets MLflow's own level
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # a warning a retry; we log the first failure
    return MlflowClient(tracking_uri=uri)


def refusal_of(error: Exception) -> str:
    """What to do where the server refuses this user, if that is what an error says; else empty."""
    answer = getattr(error, "response", None)  # of an artifact; other calls raise what MLflow makes of the answer
    status = getattr(error, "get_http_status_code", lambda: getattr(answer, "status_code", 0))()
    said = str(getattr(answer, "text", "") or error).rpartition("Response body: ")[2].strip("'")
    return refusal(status, without_credentials(" ".join(said.split())))


class Paced:
    """A client that waits for its turn before each call."""

    def __init__(self, client: Any, turn: Callable[[], None]) -> None:
        self._client, self._turn = client, turn

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*arguments: Any, **named: Any) -> Any:
            self._turn()
            return method(*arguments, **named)

        return call


def experiment(client: Any, uri: str, name: str) -> str:
    """Id of an experiment, made if it is not there; beside a database file its artifacts are kept beside that."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    database = uri.removeprefix("sqlite:///")
    place = None if database == uri else files.join(files.parent_of(database), "mlartifacts", name)
    return str(client.create_experiment(name, artifact_location=place, tags=TRAINING))


def active_run(client: Any, run_id: str) -> Any:
    """A run by id, or None when it was deleted; a server out of reach raises."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def run_of_sweep(client: Any, experiment_id: str, name: str) -> Any:
    """The run of a sweep itself, or None."""
    return first_run(client, experiment_id, {RUN_TAG: name, KIND_TAG: SWEEP})


Annotations = Mapping[str, tuple[Mapping[str, str], Mapping[str, str]]]  # name of a trial -> params, tags


def annotate(client: Any, parent_id: str, sweep: str, trials: Annotations) -> None:
    """Add to trials of a sweep what they do not have yet, and put them under the sweep's run; unknown ones stay out.

    Raises:
        LookupError: the server has none of them yet.
    """
    from mlflow.entities import Param, RunTag

    condition = f"tags.`{SWEEP_TAG}` = '{sweep}'"
    if len(trials) == 1:
        condition += f" AND tags.`{RUN_TAG}` = '{next(iter(trials))}'"
    experiment_id = client.get_run(parent_id).info.experiment_id
    found = {run.data.tags[RUN_TAG]: run for run in all_runs(client, [experiment_id], condition)}
    for name, run in found.items():
        params, tags = trials.get(name, ({}, {}))
        tags = {PARENT_TAG: parent_id, **tags}
        new = [Param(key, value) for key, value in params.items() if key not in run.data.params]
        other = [RunTag(key, value) for key, value in tags.items() if run.data.tags.get(key) != value]
        if new or other:
            client.log_batch(run.info.run_id, params=new, tags=other, synchronous=True)
    if trials and not found:
        raise LookupError(f"there is no run {next(iter(trials))} of sweep {sweep}")


def crown(client: Any, parent_id: str, sweep: str, name: str, checkpoint: Checkpoint) -> None:
    """Mark the best trial of a sweep, and register its checkpoint as a version of the model of the sweep's name.

    Doing it again changes nothing.

    Raises:
        LookupError: the server does not have the trial yet.
    """
    experiment_id = client.get_run(parent_id).info.experiment_id
    best = first_run(client, experiment_id, {RUN_TAG: name, SWEEP_TAG: sweep})
    if best is None:
        raise LookupError(f"there is no run {name} of sweep {sweep}")
    run_id = best.info.run_id
    marked = f"tags.`{SWEEP_TAG}` = '{sweep}' AND tags.`{BEST_TAG}` = 'true'"
    for other in all_runs(client, [experiment_id], marked):
        if other.info.run_id != run_id:
            client.delete_tag(other.info.run_id, BEST_TAG)
    set_tags(client, run_id, {BEST_TAG: "true"})
    set_tags(client, parent_id, {BEST_TAG: name})
    source = checkpoint.folder
    if not files.is_remote(source):
        place = f"checkpoint/{files.name_of(source)}"
        held = {file.path for file in client.list_artifacts(run_id, place)}
        for file in checkpoint.files:
            if f"{place}/{file}" not in held:
                client.log_artifact(run_id, files.join(source, file), place)
        source = f"{best.info.artifact_uri}/{place}"
    _register(client, sweep, source, run_id, checkpoint)


def _register(client: Any, model: str, source: str, run_id: str, checkpoint: Checkpoint) -> None:
    """A version of a model for a checkpoint that has none, called `best`."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(model, description=f"The best checkpoint of sweep {model}.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"name = '{model}'")
    version = next((each for each in versions if each.source == source), None) or client.create_model_version(
        model,
        source,
        run_id,
        tags={_BAD_CHARACTERS.sub("_", metric): f"{value:.6g}" for metric, value in checkpoint.metrics.items()},
        description=checkpoint.described,
    )
    client.set_registered_model_alias(model, "best", version.version)


def all_runs(client: Any, experiment_ids: list[str], condition: str) -> Iterator[Any]:
    """Every run that meets a condition, page by page."""
    token = None
    while token != "":
        page = client.search_runs(experiment_ids, condition, page_token=token)
        yield from page
        token = page.token or ""


def first_run(client: Any, experiment_id: str, tags: Mapping[str, str]) -> Any:
    """The oldest run of an experiment with these tags, or None."""
    found = client.search_runs(
        [experiment_id],
        filter_string=" AND ".join(f"tags.`{tag}` = '{value}'" for tag, value in tags.items()),
        order_by=["attributes.start_time ASC"],
        max_results=1,
    )
    return found[0] if found else None


def metrics(values: Mapping[str, float], step: int, t_ms: int) -> list[Any]:
    """Metrics of one step, recorded at a wall clock in milliseconds."""
    from mlflow.entities import Metric

    named = {_BAD_CHARACTERS.sub("_", name): float(value) for name, value in values.items()}
    return [Metric(name, value, t_ms, step) for name, value in named.items()]


def set_tags(client: Any, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run."""
    from mlflow.entities import RunTag

    for chunk in chunks([RunTag(key, value) for key, value in tags.items()], TAGS_A_CALL):
        client.log_batch(run_id, tags=chunk, synchronous=True)


def log_params(client: Any, run_id: str, params: Mapping[str, str], held: Mapping[str, str] | None = None) -> None:
    """Log the params the run does not have yet: MLflow refuses another value for one it has."""
    from mlflow.entities import Param

    if held is None:
        held = client.get_run(run_id).data.params
    new = [Param(name, value) for name, value in params.items() if name not in held]
    for chunk in chunks(new, PARAMS_A_CALL):
        client.log_batch(run_id, params=chunk, synchronous=True)


def as_params(tree: Mapping[str, Any]) -> dict[str, str]:
    """Flattened settings as MLflow takes them; a long value is cut, the whole one is in config.json."""
    return {
        _BAD_CHARACTERS.sub("_", name): value
        if len(value) <= PARAM_CHARACTERS
        else value[: PARAM_CHARACTERS - 3] + "..."
        for name, value in flatten(tree).items()
    }


def log_bytes(client: Any, run_id: str, data: bytes, path: str) -> None:
    """Keep bytes as an artifact."""
    folder, _, name = path.rpartition("/")
    with scratch("hero-artifact-", tempfile.gettempdir()) as place:
        local = Path(place) / name
        local.write_bytes(data)
        client.log_artifact(run_id, str(local), folder or None)


def chunks(items: list[Any], size: int) -> list[list[Any]]:
    """A list in parts of at most `size`."""
    return [items[begin : begin + size] for begin in range(0, len(items), size)]
