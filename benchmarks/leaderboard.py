"""How long a table of ten thousand runs takes, from the command to its end, against MLflow's own search of all of them.

python -m benchmarks.leaderboard [--runs 10001] [--rounds 5]

The runs are written into the tables of an MLflow database by SQL: through MLflow's interface that takes many minutes.
Each has what a fine-tuning run of ours has: 86 params, 13 tags, 28 metrics. Every round measures processes: MLflow's
search in one page, which is the quickest; the table after `--refresh`; one more run ends; the table again.
"""

from __future__ import annotations

import argparse
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.results import record
from hero_platform.tracking import mlflow_calls

SEARCH = """
import sys, time
from hero_platform.tracking.mlflow_calls import connect
client, token, count = connect(sys.argv[1]), None, 0
began = time.perf_counter()
while token != "":
    page = client.search_runs([sys.argv[2]], max_results=50_000, page_token=token)
    count, token = count + len(page), page.token or ""
print(count, time.perf_counter() - began)
"""
TASKS = (("moment_retrieval", "tvr", "vcmr_r1_iou07"), ("video_qa", "tvqa", "accuracy"))


class Runs:
    """Runs in an MLflow database, as if each had ended a minute after the one before it."""

    def __init__(self, database: Path) -> None:
        uri = f"sqlite:///{database}"
        self.experiment = mlflow_calls.experiment(mlflow_calls.connect(uri), uri, "hero")
        self._database = sqlite3.connect(database)
        self._random = random.Random(0)
        self._count = 0

    def end(self, count: int) -> None:
        """Let some more end."""
        rows: dict[str, list[tuple[object, ...]]] = {"runs": [], "tags": [], "params": [], "latest_metrics": []}
        now_ms = time.time_ns() // 1_000_000
        for number in range(self._count, self._count + count):
            run_id = f"{self._random.getrandbits(128):032x}"
            end_ms = now_ms - (self._count + count - number) * 60_000
            of_run = (None, None, "me", "FINISHED", end_ms - 50_000, end_ms, None, "active", f"/kept/{run_id}")
            rows["runs"].append((run_id, f"run-{number}", *of_run, self.experiment))
            rows["tags"] += [(key, value, run_id) for key, value in self._tags(number).items()]
            rows["params"] += [(key, value, run_id) for key, value in self._params(number).items()]
            metrics = self._metrics(number)
            rows["latest_metrics"] += [(key, value, end_ms, 1000, 0, run_id) for key, value in metrics.items()]
        columns = {
            "runs": "run_uuid, name, source_type, entry_point_name, user_id, status, start_time, end_time, "
            "source_version, lifecycle_stage, artifact_uri, experiment_id",
            "latest_metrics": "key, value, timestamp, step, is_nan, run_uuid",
        }
        with self._database:
            for table, values in rows.items():
                named = columns.get(table, "key, value, run_uuid")
                marks = ", ".join("?" * len(values[0]))
                self._database.executemany(f"INSERT INTO {table} ({named}) VALUES ({marks})", values)
        self._count += count

    def _tags(self, number: int) -> dict[str, str]:
        kind, corpus, metric = TASKS[number % 2]
        return {
            "hero.run_name": f"run-{number}",
            "mlflow.runName": f"run-{number}",
            "hero.setting": f"{number // 6:064x}",
            "hero.headline": f"val/{metric}/{kind}/{corpus}",
            "hero.headline_mode": "max",
            "hero.git.changed": "false",
            "mlflow.source.git.commit": f"{self._random.getrandbits(160):040x}",
            "fingerprint": f"{number:064x}",
            **{name: f"finetune_{corpus}" for name in ("recipe", "mlflow.user", "mlflow.source.name", "store", "more")},
        }

    def _params(self, number: int) -> dict[str, str]:
        kind, corpus, _ = TASKS[number % 2]
        own = {"seed": str(number % 6), "mixture.0.task.kind": kind, "mixture.0.corpus": corpus}
        return own | {f"settings.{i}": str(self._random.random()) for i in range(83)}

    def _metrics(self, number: int) -> dict[str, float]:
        kind, corpus, metric = TASKS[number % 2]
        name, value = f"val/{metric}/{kind}/{corpus}", self._random.random() * 30
        own = {name: value - 1, f"best/{name}": value, "best/step": 900.0, "val/loss": 1.0, "cost/gpu_hours": 2.5}
        return own | {f"train/term-{i}": self._random.random() for i in range(23)}


def seconds(home: Path, *words: str) -> tuple[float, str]:
    """How long a Python process takes, from start to end, and what it said last."""
    environment = {**os.environ, "HERO_HOME": str(home)}
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=True)
    return time.perf_counter() - began, done.stdout.splitlines()[-1]


def spread(values: list[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f}) s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_001)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    took: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="hero-leaderboard-") as folder:
        home = Path(folder)
        runs = Runs(home / "mlflow.db")
        runs.end(asked.runs)
        for _ in range(asked.rounds):
            whole, said = seconds(home, "-c", SEARCH, f"sqlite:///{home}/mlflow.db", runs.experiment)
            took.setdefault("search", []).append(whole)
            took.setdefault("call", []).append(float(said.split()[1]))
            took.setdefault("cold", []).append(seconds(home, "-m", "jobs.leaderboard", "--refresh")[0])
            runs.end(1)
            took.setdefault("warm", []).append(seconds(home, "-m", "jobs.leaderboard")[0])
            page = ["--html", str(home / "board.html")]
            took.setdefault("page", []).append(seconds(home, "-m", "jobs.leaderboard", *page)[0])
        size = (home / "board.html").stat().st_size / 1e6
    said = {name: spread(values) for name, values in took.items()}
    record(
        f"leaderboard: {asked.runs:,} runs in an MLflow sqlite store, written by SQL; processes, start to end",
        f"warm, one run having ended, {said['warm']}, with the page of {size:.1f} MB {said['page']}; all read again "
        f"{said['cold']}; MLflow's search_runs of all {said['search']}, of which the calls {said['call']} "
        f"(median, min-max of {asked.rounds})",
    )


if __name__ == "__main__":
    main()
