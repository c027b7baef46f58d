"""One row a run in a local database, so that ten thousand runs are ranked without asking MLflow for them.

The tracker adds a run when it ends; whoever looks asks MLflow for what ended since the last look, for what had not
ended then, and for what is running now. MLflow stays the truth: the index may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import hashlib
import json
import logging
import math
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hero_platform import files
from hero_platform.credentials import without_credentials
from hero_platform.tracking import standing
from hero_platform.tracking.mlflow_calls import RUN_TAG, SWEEP_TAG
from hero_platform.tracking.mlflow_runs import UNFINISHED, Found, Unreachable, Which, search

logger = logging.getLogger(__name__)

VERSION = 2  # of the tables; an index of another one is emptied
MARGIN_MS = 3_600_000  # how far the clocks of two hosts may be apart
_BUSY_S = 10.0  # how long another writer is waited for


@dataclass(frozen=True)
class Row:
    """What the index knows of a run; text is empty and numbers are None where the run does not say it."""

    run_id: str
    name: str
    experiment: str
    recipe: str
    mixture: str  # `<task>/<corpus>`, sorted, with commas
    sweep: str
    trial_state: str
    seed: str
    status: str  # MLflow's
    start_ms: int | None
    end_ms: int | None
    headline: str
    mode: str  # which way is better: max, min
    best: float | None  # the best of its validations; of runs older than `best/<headline>` the last
    best_step: int | None
    cpu_hours: float | None
    gpu_hours: float | None
    price: float | None  # of all hours, as it was estimated when the run ended
    currency: str
    commit: str
    changed: str  # whether there were changes that were not committed: true, false
    fingerprint: str
    setting: str  # equal for runs of as many steps that differ in nothing but their seed
    hours: dict[str, float]  # what a price table has to price (`standing.billed`); JSON in the database
    metrics: dict[str, float]  # newest finite value of all under val/ and eval/; JSON in the database
    searched: dict[str, str]  # what a sweep chose; JSON in the database

    @property
    def corpora(self) -> set[str]:
        """What it was trained on."""
        return {part.partition("/")[2] for part in self.mixture.split(",") if part}


_COLUMNS = tuple(column.name for column in dataclasses.fields(Row))


def row_of(found: Found, headline_of: Callable[[str], str] = lambda kind: "") -> Row:
    """A run as the index keeps it.

    Args:
        found: what MLflow has of it.
        headline_of: kind of task -> the metric such a run is ranked by, if any; asked only for runs that do not say it.
    """
    tags, params = found.tags, found.params
    parts = sorted(name.removesuffix(".corpus") for name in params if name.endswith(".corpus"))
    entries = [(params.get(f"{part}.task.kind", ""), params[f"{part}.corpus"]) for part in parts]
    kept = {
        name: value
        for name, (value, _) in found.metrics.items()
        if name.startswith(("val/", "eval/")) and math.isfinite(value)
    }
    headline, mode = _headline(found, entries, headline_of)
    best = found.metrics.get(standing.BEST + headline)
    step = int(found.metrics[standing.BEST_STEP][0]) if best and standing.BEST_STEP in found.metrics else None
    if best is None and headline in found.metrics:
        best = found.metrics[headline]
        step = best[1]
    cost = _cost(found)
    priced = next((name for name in cost if name.startswith(standing.PRICE)), "")
    # the param `steps` is that of the first start, and may have grown
    validated = found.metrics.get(headline, (0.0, 0))[1]
    setting = f"{tags[standing.SETTING_TAG]} {validated}" if standing.SETTING_TAG in tags else ""
    return Row(
        run_id=found.run_id,
        name=tags.get(RUN_TAG, ""),
        experiment=found.experiment,
        recipe=tags.get("recipe", ""),
        mixture=",".join(sorted({f"{kind}/{corpus}" for kind, corpus in entries})),
        sweep=tags.get(SWEEP_TAG, ""),
        trial_state=tags.get("hero.trial_state", ""),
        seed=params.get("seed", ""),
        status=found.status,
        start_ms=found.start_ms,
        end_ms=None if found.status in UNFINISHED else found.end_ms,
        headline=headline,
        mode=mode,
        best=best[0] if best and math.isfinite(best[0]) else None,
        best_step=step,
        cpu_hours=cost.get(standing.CPU_HOURS),
        gpu_hours=cost.get(standing.GPU_HOURS),
        price=cost.get(priced),
        currency=priced.removeprefix(standing.PRICE),
        commit=tags.get("mlflow.source.git.commit", ""),
        changed=tags.get(standing.CHANGED_TAG, ""),
        fingerprint=tags.get("fingerprint", ""),
        setting=hashlib.sha256(setting.encode()).hexdigest()[:16] if setting else "",
        hours=standing.billed(cost),
        metrics=kept,
        searched={name.partition(".")[2]: text for name, text in params.items() if name.startswith("searched.")},
    )


def _cost(found: Found) -> dict[str, float]:
    """What the run had cost when its newest start ended; of an earlier end nothing, since more was spent by then."""
    cost = {name: point for name, point in found.metrics.items() if name.startswith("cost/")}
    last = max((start for _, start in cost.values()), default=0)
    return {name: value for name, (value, start) in cost.items() if start == last}


def _headline(found: Found, entries: Sequence[tuple[str, str]], headline_of: Callable[[str], str]) -> tuple[str, str]:
    """The metric a run is ranked by and which way is better; of runs that do not say it, from their validations."""
    best = (name.removeprefix(standing.BEST) for name in found.metrics if name.startswith(f"{standing.BEST}val/"))
    if metric := found.tags.get(standing.HEADLINE_TAG) or next(best, ""):
        return metric, found.tags.get(standing.MODE_TAG) or ("min" if metric == standing.LOSS else "max")
    if len(entries) == 1 and any(name.startswith("val/") for name in found.metrics):
        kind, corpus = entries[0]
        if (metric := f"val/{headline_of(kind)}/{kind}/{corpus}") in found.metrics:
            return metric, "max"
    return (standing.LOSS, "min") if standing.LOSS in found.metrics else ("", "")


def path_of(root: str, uri: str) -> str:
    """Where the index lies: in the outputs root, or in this machine's own folder of a remote root and its tracker."""
    if not files.is_remote(root):
        return files.join(root, "index.db")
    name = hashlib.sha256(f"{root} {without_credentials(uri)}".encode()).hexdigest()[:16]
    return str(Path(tempfile.gettempdir()) / f"hero-{getpass.getuser()}" / f"index-{name}.db")


class Index:
    """The rows of one tracking address in an index; several processes may write at once.

    Args:
        path: the database file; made when it is not there.
        uri: the tracking address; rows of others are neither shown nor touched.

    Raises:
        sqlite3.DatabaseError: it is damaged; `look` makes a new one.
    """

    def __init__(self, path: str, uri: str) -> None:
        self._address = without_credentials(uri)
        files.makedirs(files.parent_of(path))
        self._database = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
        try:
            if self._version() != VERSION:
                self._create()
        except sqlite3.Error:
            self._database.close()
            raise

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *error: object) -> None:
        self._database.close()

    def rows(self) -> list[Row]:
        """All runs of this address."""
        asked = self._database.execute(f"SELECT {_named()} FROM runs WHERE address = ?", [self._address])
        return [Row(*row[:-3], *map(json.loads, row[-3:])) for row in asked]

    def unsettled(self) -> list[str]:
        """Ids of runs of which MLflow may say something else without a new end: a sweep says what became of a trial."""
        marks = ", ".join("?" * len(UNFINISHED))
        asked = (
            f"SELECT run_id FROM runs WHERE address = ? AND (status IN ({marks}) OR sweep != '' AND trial_state = '')"
        )
        return [run_id for (run_id,) in self._database.execute(asked, [self._address, *UNFINISHED])]

    def refreshed(self) -> tuple[int, int] | None:
        """The newest end that was asked for and the clock by then, milliseconds; None: MLflow was never asked."""
        asked = self._database.execute("SELECT watermark, at FROM refreshed WHERE address = ?", [self._address])
        found: tuple[int, int] | None = asked.fetchone()
        return found

    def put(self, rows: Sequence[Row]) -> None:
        """Add runs, or replace what was known of them."""
        with self._transaction():
            self._put(rows)

    def update(self, rows: Sequence[Row], gone: Sequence[str], watermark_ms: int, *, everything: bool) -> None:
        """Take in what MLflow said: all or nothing.

        Args:
            rows: runs that are new or were asked for.
            gone: ids of runs that are no more.
            watermark_ms: the newest end among them.
            everything: these are all the runs there are.
        """
        with self._transaction():
            if everything:
                self._database.execute("DELETE FROM runs WHERE address = ?", [self._address])
            pairs = [(self._address, run_id) for run_id in gone]
            self._database.executemany("DELETE FROM runs WHERE address = ? AND run_id = ?", pairs)
            self._put(rows)
            now = [self._address, watermark_ms, _now_ms()]
            self._database.execute("INSERT OR REPLACE INTO refreshed VALUES (?, ?, ?)", now)

    def _put(self, rows: Sequence[Row]) -> None:
        values = [
            (self._address, *(json.dumps(v) if isinstance(v, dict) else v for v in vars(row).values())) for row in rows
        ]
        marks = ", ".join("?" * (len(_COLUMNS) + 1))
        self._database.executemany(f"INSERT OR REPLACE INTO runs (address, {_named()}) VALUES ({marks})", values)

    def _version(self) -> int:
        return int(self._database.execute("PRAGMA user_version").fetchone()[0])

    def _create(self) -> None:
        with self._transaction():
            if self._version() == VERSION:  # another process was quicker
                return
            for table in ("runs", "refreshed"):
                self._database.execute(f"DROP TABLE IF EXISTS {table}")
            self._database.execute(f"CREATE TABLE runs (address, {_named()}, PRIMARY KEY (address, run_id))")
            self._database.execute("CREATE TABLE refreshed (address PRIMARY KEY, watermark, at)")
            self._database.execute(f"PRAGMA user_version = {VERSION}")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")


def add(path: str, uri: str, run_id: str) -> None:
    """Add a run that has just ended."""
    rows = [row_of(found) for page in search(uri, Which(ids=(run_id,))) for found in page]
    with Index(path, uri) as index:
        index.put(rows)


@dataclass(frozen=True)
class Look:
    """What a look at the index found."""

    rows: list[Row]
    at_ms: int  # clock when MLflow was last asked
    problem: str  # why that was not now; empty as it should be


def look(
    path: str,
    uri: str,
    *,
    everything: bool = False,
    progress: Callable[[int], None] = lambda runs: None,
    headline_of: Callable[[str], str] = lambda kind: "",
) -> Look:
    """All runs, after asking MLflow for what is new; an index that is damaged or of another version is made anew.

    Args:
        path: of the index.
        uri: tracking address.
        everything: forget what is known and ask for all runs, which also drops deleted ones.
        progress: told how many runs have been read.
        headline_of: as in `row_of`.

    Raises:
        Unreachable: MLflow does not answer, and never has.
        ValueError: the address is of a kind that cannot be read, or the index cannot be opened.
    """

    def attempt(everything: bool) -> Look:
        with Index(path, uri) as index:
            problem = ""
            try:
                news = _news(index, uri, everything, progress)
                rows = [row_of(found, headline_of) for found in news.found]
                index.update(rows, news.gone, news.watermark_ms, everything=news.everything)
            except Unreachable as error:
                problem = str(error)
                if index.refreshed() is None:
                    raise
            last = index.refreshed()
            assert last is not None, "it has just been asked, or it was before"
            return Look(index.rows(), last[1], problem)

    try:
        return attempt(everything)
    except sqlite3.OperationalError as error:  # such as a folder that may not be written to
        raise ValueError(f"the index {path} cannot be used: {error}") from error
    except sqlite3.DatabaseError as error:
        logger.warning("the index %s is damaged (%s): it is made anew from MLflow", path, error)
        for name in (path, f"{path}-journal"):
            files.remove(name)
        return attempt(True)


@dataclass(frozen=True)
class _News:
    found: list[Found]  # runs that are new, or may have changed
    gone: list[str]
    watermark_ms: int  # the newest end that is known
    everything: bool  # there are no others


def _news(index: Index, uri: str, everything: bool, progress: Callable[[int], None]) -> _News:
    last = None if everything else index.refreshed()
    watermark = last[0] if last else 0
    found: dict[str, Found] = {}

    def ask(which: Which) -> None:
        for page in search(uri, which):
            found.update({one.run_id: one for one in page})
            progress(len(found))

    ask(Which(ended_since_ms=watermark - MARGIN_MS) if last else Which())
    left = [run_id for run_id in index.unsettled() if run_id not in found] if last else []
    ask(Which(ids=tuple(left)))
    ends = [min(one.end_ms, _now_ms()) for one in found.values() if one.end_ms]  # a clock may be ahead
    gone = [run_id for run_id in left if run_id not in found]
    return _News(list(found.values()), gone, max([watermark, *ends]), last is None)


def _named() -> str:
    return ", ".join(f'"{name}"' for name in _COLUMNS)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
