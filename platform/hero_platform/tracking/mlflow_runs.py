"""Runs as MLflow holds them, read without MLflow's library: importing that takes longer than showing ten thousand runs.

A server is asked over its REST interface, a database by SQL over the tables that MLflow keeps runs in. Both give the
same: runs of ours (they have the tag `hero.run_name`) in all experiments; neither deleted ones nor those of sweeps.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hero_platform.credentials import without_credentials
from hero_platform.tracking.base import refusal
from hero_platform.tracking.mlflow_calls import KIND_TAG, RUN_TAG, SWEEP, chunks

if TYPE_CHECKING:
    import requests
    from sqlalchemy import ColumnElement, Connection

UNFINISHED = ("RUNNING",)  # no run of ours is ever SCHEDULED, and each status is a question to a server
PARAMS = ("seed", "searched.%", "mixture.%.task.kind", "mixture.%.corpus")  # as SQL's LIKE takes them
METRICS = ("val/%", "eval/%", "best/%", "cost/%")
_PAGE = 1000  # runs a call
_IDS_A_CALL = 100
_TIMEOUT_S = (10.0, 120.0)  # to be reached, to answer: a page of a busy server took 15


class Unreachable(RuntimeError):
    """MLflow did not answer, or not as it should; the message names it without credentials."""


@dataclass(frozen=True)
class Found:
    """One run."""

    run_id: str
    experiment: str
    status: str
    start_ms: int | None  # wall clock, milliseconds since 1970
    end_ms: int | None
    params: dict[str, str] = field(default_factory=dict)  # at least those of `PARAMS`
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, tuple[float, int]] = field(default_factory=dict)  # newest value and its step


@dataclass(frozen=True)
class Which:
    """Which runs are asked for; nothing said: all."""

    ended_since_ms: int | None = None  # and those that have not ended
    ids: tuple[str, ...] | None = None


def search(uri: str, which: Which) -> Iterator[list[Found]]:
    """The runs at a tracking address, page by page.

    Raises:
        Unreachable: it does not answer.
        ValueError: it is neither a server nor a database.
    """
    if which.ids is not None and not which.ids:
        return
    kind = uri.partition(":")[0].partition("+")[0]
    if kind not in ("http", "https", "sqlite", "postgresql", "mysql", "mssql"):
        raise ValueError(f"runs are read from an MLflow server (http, https) or its database, not from {kind!r}")
    source = _from_server if kind in ("http", "https") else _from_database
    for page in source(uri, which):
        yield [found for found in page if found.tags.get(KIND_TAG) != SWEEP]


def _from_server(uri: str, which: Which) -> Iterator[list[Found]]:
    import requests

    names = os.environ.get
    with requests.Session() as session:
        if user := names("MLFLOW_TRACKING_USERNAME"):
            session.auth = (user, names("MLFLOW_TRACKING_PASSWORD", ""))
        elif token := names("MLFLOW_TRACKING_TOKEN"):
            session.headers["Authorization"] = f"Bearer {token}"
        insecure = names("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")
        session.verify = names("MLFLOW_TRACKING_SERVER_CERT_PATH") or not insecure
        pages = _pages(session, uri, "experiments", {"max_results": _PAGE})
        experiments = {one["experiment_id"]: one["name"] for page in pages for one in page.get("experiments", ())}
        for condition in _conditions(which):
            ours = f"tags.`{RUN_TAG}` LIKE '%'"
            asked = {"experiment_ids": list(experiments), "filter": ours + condition, "max_results": _PAGE}
            for page in _pages(session, uri, "runs", asked):
                yield [_parsed(run, experiments) for run in page.get("runs", ())]


def _pages(session: requests.Session, uri: str, what: str, asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The answers of a search, until there are no more."""
    token: str | None = ""
    while token is not None:
        try:
            address = f"{uri.rstrip('/')}/api/2.0/mlflow/{what}/search"
            answer = session.post(address, json=asked | {"page_token": token}, timeout=_TIMEOUT_S)
            if refused := refusal(answer.status_code, answer.text.strip()):
                raise Unreachable(f"MLflow at {without_credentials(uri)}: {without_credentials(refused)}")
            answer.raise_for_status()
            page = answer.json()
        except (OSError, ValueError) as error:  # what requests raises is one of them
            raise _unreachable(uri, error) from None
        yield page
        token = page.get("next_page_token") or None


def _conditions(which: Which) -> list[str]:
    """Ends of filters that together select the runs: MLflow's filters know no OR."""
    if which.ids is not None:
        parts = chunks(list(which.ids), _IDS_A_CALL)
        return [f" AND attributes.run_id IN ({', '.join(repr(one) for one in part)})" for part in parts]
    if which.ended_since_ms is None:
        return [""]
    unfinished = [f" AND attributes.status = '{status}'" for status in UNFINISHED]
    return [f" AND attributes.end_time >= {which.ended_since_ms}", *unfinished]


def _parsed(run: Mapping[str, Any], experiments: Mapping[str, str]) -> Found:
    info, data = run["info"], run.get("data", {})
    named = {name: {one["key"]: one["value"] for one in data.get(name, ())} for name in ("params", "tags")}
    metrics = {one["key"]: (_number(one["value"]), int(one.get("step", 0))) for one in data.get("metrics", ())}
    start_ms, end_ms = (int(info.get(name) or 0) or None for name in ("start_time", "end_time"))
    place = experiments[info["experiment_id"]]
    return Found(info["run_id"], place, info["status"], start_ms, end_ms, **named, metrics=metrics)


def _number(value: Any, is_nan: bool = False) -> float:
    """A metric: MLflow has no infinity, and keeps the largest number in its place."""
    number = math.nan if is_nan else float(value)
    return math.copysign(math.inf, number) if abs(number) == sys.float_info.max else number


def _from_database(uri: str, which: Which) -> Iterator[list[Found]]:
    import sqlalchemy as sql

    database = sql.make_url(uri).database
    if uri.startswith("sqlite") and not Path(database or "").exists():
        return  # nothing was recorded yet; asking would make an empty file
    runs, experiments, tags = (
        sql.table(name, *map(sql.column, columns.split()))
        for name, columns in (
            ("runs", "run_uuid experiment_id status start_time end_time lifecycle_stage"),
            ("experiments", "experiment_id name lifecycle_stage"),
            ("tags", "run_uuid key value"),
        )
    )
    asked = (
        sql.select(runs.c.run_uuid, experiments.c.name, runs.c.status, runs.c.start_time, runs.c.end_time)
        .join_from(runs, experiments, runs.c.experiment_id == experiments.c.experiment_id)
        .join(tags, sql.and_(tags.c.run_uuid == runs.c.run_uuid, tags.c.key == RUN_TAG))
        .where(runs.c.lifecycle_stage == "active", experiments.c.lifecycle_stage == "active")
    )
    if which.ended_since_ms is not None:
        ended = runs.c.end_time >= which.ended_since_ms
        asked = asked.where(sql.or_(ended, runs.c.status.in_(UNFINISHED)))
    if which.ids is not None:
        asked = asked.where(runs.c.run_uuid.in_(which.ids))
    try:
        engine = sql.create_engine(uri)
    except ImportError as error:  # the driver of that database
        raise _unreachable(uri, error) from None
    try:
        with engine.connect() as connection:
            listed = [tuple(row) for row in connection.execute(asked)]
            for part in chunks(listed, _PAGE):
                yield _filled(connection, part)
    except sql.exc.SQLAlchemyError as error:
        raise _unreachable(uri, error) from None
    finally:
        engine.dispose()


def _filled(connection: Connection, listed: Sequence[tuple[Any, ...]]) -> list[Found]:
    """Runs of a database with their params, tags and newest metrics."""
    import sqlalchemy as sql

    found = {row[0]: Found(*row) for row in listed}

    def rows(name: str, likes: Sequence[str], *columns: str) -> Iterator[Any]:
        one = sql.table(name, *map(sql.column, ("run_uuid", "key", *columns)))
        wanted: list[ColumnElement[bool]] = [one.c.key.like(like) for like in likes]
        asked = sql.select(*one.c).where(one.c.run_uuid.in_(list(found)))
        yield from connection.execute(asked.where(sql.or_(*wanted)) if wanted else asked)

    for run_id, key, value in rows("params", PARAMS, "value"):
        found[run_id].params[key] = value
    for run_id, key, value in rows("tags", (), "value"):
        found[run_id].tags[key] = value
    for run_id, key, value, step, is_nan in rows("latest_metrics", METRICS, "value", "step", "is_nan"):
        found[run_id].metrics[key] = (_number(value, is_nan), step)
    return list(found.values())


def _unreachable(uri: str, error: Exception) -> Unreachable:
    """In one line: the first of a message tells what, and no password is in it."""
    lines = str(getattr(error, "orig", None) or error).strip().splitlines() or [type(error).__name__]
    return Unreachable(f"MLflow at {without_credentials(uri)}: {without_credentials(lines[0])}")
