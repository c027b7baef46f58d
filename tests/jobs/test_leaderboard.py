"""The table of runs through the command line: real runs in it, and made ones ranked, compared, cut and shown."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hero_platform import files
from hero_platform.tracking.base import default_uri
from hero_platform.tracking.index import Index, Row, path_of
from hero_platform.tracking.journal import read
from jobs import leaderboard, train

TVR = "val/vcmr_r1_iou07/moment_retrieval/tvr"
NOW = time.time_ns() // 1_000_000
MADE = Row(
    *("id", "made", "hero", "finetune_tvr", "moment_retrieval/tvr", "", "", "1", "FINISHED", NOW - 9_000_000),
    *(NOW - 7_200_000, TVR, "max", 1.0, 20, 0.5, None, None, "", "c0ffee5678", "true", "f", "", {"cpu": 0.5}, {}, {}),
)  # fmt: skip


@pytest.fixture
def show(hero_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, Any]]:
    """Runs the job: what it printed and what it wrote as JSON."""

    def run(*words: str) -> tuple[str, Any]:
        file = tmp_path / "board.json"
        assert leaderboard.main([*words, "--json", str(file)]) == 0
        return capsys.readouterr().out, json.loads(file.read_text())

    return run


def known(hero_home: Path, *rows: Row) -> None:
    """An index that holds these runs, as if MLflow had just been asked."""
    uri = default_uri(str(hero_home))
    numbered = [replace(row, run_id=str(number)) for number, row in enumerate(rows)]
    with Index(path_of(str(hero_home), uri), uri) as index:
        index.update(numbered, [], NOW, everything=True)


def made(name: str, value: float | None, **fields: Any) -> Row:
    return replace(MADE, name=name, best=value, **fields)


def names(board: Any) -> list[list[str]]:
    return [[line["row"]["name"] for line in group["lines"]] for group in board["groups"]]


def test_runs_that_were_trained_say_how_good_they_are_and_what_they_cost(
    tiny_store: str, hero_home: Path, tracking_database: Path, show
):
    settings = ["finetune_synthetic", "--store", f"synthetic={tiny_store}", "--model", "debug", "--batch", "8"]
    settings += ["--checkpoint.every", "2", "--checkpoint.keep-last", "9", "--evaluation.every", "2"]
    settings += ["--evaluation.limit", "8"]
    settings += ["--scale.threads-per-worker", "2", "--tracking.log-every", "1", "--optim.lr", "0.01"]
    assert train.main([*settings, "--name", "one", "--steps", "6"]) == 0
    files.remove_tree(hero_home / "runs" / "one" / "checkpoints" / "step_00000006")  # as if it had died before it
    assert train.main([*settings, "--name", "one", "--steps", "8"]) == 0

    metric = "val/vcmr_r1_iou07/moment_retrieval/synthetic"
    found: dict[str, dict[int, float]] = {}
    for record in read(str(hero_home / "runs" / "one" / "metrics.jsonl")):
        for name, value in record.metrics.items():
            assert record.step not in found.setdefault(name, {}), "recorded twice"
            found[name][record.step] = value
    scores = found[metric]
    for step, best in found[f"best/{metric}"].items():
        assert best == max(value for at, value in scores.items() if at <= step)
        assert scores[found["best/step"][step]] == best
    seconds = found["sys/step_s"]
    assert sorted(scores) == [2, 4, 6, 8] and sorted(seconds) == list(range(1, 9))
    first, both = (sum(seconds[step] for step in steps) for steps in ([*range(1, 7)], [*range(1, 9), 5, 6]))
    assert found["cost/cpu_hours"] == pytest.approx({1: 2 * first / 3600, 2: 2 * both / 3600}), "two threads"

    known_before = {row.name: row for row in Index(str(hero_home / "index.db"), default_uri(str(hero_home))).rows()}
    said, board = show("--corpus", "synthetic")
    (group,) = board["groups"]
    lines = {line["row"]["name"]: line for line in group["lines"]}
    assert group["metric"] == metric and set(lines) == {"one"} == set(known_before)
    assert lines["one"]["value"] == max(scores.values()) and lines["one"]["row"]["best_step"] in scores
    assert lines["one"]["row"]["cpu_hours"] == pytest.approx(2 * both / 3600)
    assert f"{metric}, higher is better" in said and "finished" in said and "CPU h" in said


def test_the_best_comes_first_and_only_the_same_tasks_meet(hero_home: Path, show):
    loss = {"headline": "val/loss", "mode": "min"}
    known(
        hero_home,
        *(made("b", 2.0), made("a", 5.5), made("dead", None, status="FAILED"), made("c", 1.0, status="KILLED")),
        *(made("low", 1.0, **loss, mixture="mlm/tv"), made("high", 4.0, **loss, mixture="mlm/tv")),
        made("other", 0.5, **loss, mixture="fom/tv,mlm/tv"),
        made("silent", None, headline="", mode="", status="KILLED"),
    )
    said, board = show()
    assert names(board) == [["other"], ["low", "high"], ["a", "b", "c", "dead"], ["silent"]]
    assert [group["title"] for group in board["groups"]] == [
        "val/loss of fom/tv,mlm/tv, lower is better",
        "val/loss of mlm/tv, lower is better",
        f"{TVR}, higher is better",
        "no headline metric",
    ]
    deltas = [[line["delta"] for line in group["lines"]] for group in board["groups"]]
    assert deltas == [[0.0], [0.0, 3.0], [0.0, -3.5, -4.5, None], [None]]
    (line,) = [line for line in said.splitlines() if "| b " in line]
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells == ["2", "b", "2.0000", "-3.5000", "-", "1", "finished", "0.5 CPU h", "c0ffee5+", "2 h"]
    assert re.search(r"\| -    \| silent .* killed", said)
    assert names(show("--corpus", "tv")[1]) == [["other"], ["low", "high"]]


def test_differences_to_a_baseline(hero_home: Path, show):
    known(hero_home, made("a", 5.0), made("b", 2.0), made("t", 1.0, headline="val/accuracy/video_qa/tvqa"))
    groups = show("--baseline", "b")[1]["groups"]
    assert [[line["delta"] for line in group["lines"]] for group in groups] == [[None], [3.0, 0.0]]


def test_seeds_of_a_setting_have_a_mean_and_become_one_line(hero_home: Path, show):
    same = {"setting": "s", "gpu_hours": 1.0, "cpu_hours": None}
    known(
        hero_home,
        *(made("s1", 1.0, seed="1", **same), made("s2", 2.0, seed="2", **same), made("s3", 6.0, seed="3", **same)),
        made("s3 again", 6.0, seed="3", start_ms=NOW, **same),
        made("s4", 99.0, seed="4", status="KILLED", **same),  # what was stopped early is no measure of a setting
        *(made("alone", 4.0, setting="t"), made("old", 3.5)),
    )
    said, board = show("--baseline", "alone")
    lines = {line["row"]["name"]: line for line in board["groups"][0]["lines"]}
    assert lines["s1"]["mean"] == 3.0 and lines["s1"]["sd"] == pytest.approx(7**0.5) and lines["s1"]["seeds"] == 3
    assert said.count("3.0000 +- 2.6458 (3)") == 5 and lines["alone"]["sd"] is None
    said, board = show("--seeds", "--baseline", "alone")
    assert names(board) == [["alone", "old", "s4"]], "named after the best of them"
    last = board["groups"][0]["lines"][-1]
    assert (last["value"], last["delta"], last["runs"], last["row"]["gpu_hours"]) == (3.0, -1.0, 5, 5.0)
    assert "s4 and 4 more" in said


def test_another_metric_ranks_those_that_have_it(hero_home: Path, show, capsys):
    rank = "eval/tvr/val/vr_median_rank"
    known(
        hero_home,
        made("a", 5.0, metrics={rank: 9.0}),
        made("b", 2.0, metrics={rank: 4.0}, headline="val/loss"),
        made("c", 1.0),
    )
    assert names(show("--by", f"{rank}:min")[1]) == [["b", "a"]]
    assert names(show("--by", rank)[1]) == [["a", "b"]]
    assert leaderboard.main(["--by", "val/lost"]) == 2
    assert f"no run has the metric val/lost; they have {rank}" in capsys.readouterr().err


def test_a_sweep_shows_what_it_searched_in_a_terminal_s_width(hero_home: Path, show):
    chosen = {"optim.lr": "0.00012345678", "mixture.0.weight": "2", **{f"p{i}": "long text" for i in range(9)}}
    trials = [
        made(f"lr-{number:04d}" + "x" * 50, float(number), sweep="lr", trial_state="pruned", searched=chosen)
        for number in range(40)
    ]
    known(hero_home, made("outside", 99.0), *trials)
    said, board = show("--sweep", "lr")
    lines = said.splitlines()
    assert len(board["groups"][0]["lines"]) == 40 and sum("pruned" in line for line in lines) == 30
    assert lines[-1] == "... and 10 more (--limit)" and max(map(len, lines)) <= 160
    assert "searched" in lines[1] and "optim.lr=0.000123 mixture.0" in lines[3]
    assert sum("pruned" in line for line in show("--sweep", "lr", "--limit", "2")[0].splitlines()) == 2


def page_of(hero_home: Path, tmp_path: Path, *rows: Row) -> str:
    known(hero_home, *rows)
    assert leaderboard.main(["--html", str(tmp_path / "board.html")]) == 0
    return (tmp_path / "board.html").read_text()


EVIL = "</script><b onmouseover=alert(1)>&amp;\x1b[31m"


def test_the_page_needs_nothing_else_and_takes_no_markup_from_a_run(hero_home: Path, tmp_path: Path, capsys):
    page = page_of(hero_home, tmp_path, made(EVIL, 5.0, searched={EVIL: EVIL}), made("plain", None))
    assert "\x1b" not in capsys.readouterr().out, "nor does the terminal take its colours"
    assert re.search(r"(src|href)\s*=|https?://|@import|url\(", page) is None
    assert page.count("</script>") == 2 and "<b " not in page
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    (group,) = data["groups"]
    assert [len(row) for row in group["rows"]] == [len(data["columns"])] * 2
    assert group["rows"][0][:3] == [["1", 1], EVIL, ["5.0000", 5.0]]
    assert group["rows"][1][:3] == [["-", None], "plain", ["-", None]]


@pytest.mark.skipif(not (chromium := shutil.which("chromium")), reason="no browser on this machine")
def test_a_browser_sorts_and_filters_the_page(hero_home: Path, tmp_path: Path):
    rows = [made(f"run-{number}", number % 7 + number / 100, seed=str(999 - number)) for number in range(600)]
    page = page_of(hero_home, tmp_path, *rows, made(EVIL, None, seed=""))

    def shown(script: str) -> tuple[list[str], str]:
        """Names in the table after a script has run, and what the page counts."""
        file = tmp_path / "driven.html"
        file.write_text(page.replace("</body>", f"<script>{script}</script></body>"))
        command = [
            chromium,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
        ]
        dom = subprocess.run(
            [*command, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120
        ).stdout
        body = dom[dom.index("<tbody") : dom.index("</tbody")]
        found = re.findall(r"<tr[^>]*><td[^>]*>[^<]*</td><td[^>]*>([^<]*)</td>", body)
        return found, re.search(r'id="count"[^>]*>([^<]*)<', dom)[1]

    best_first = [row.name for row in sorted(rows, key=lambda row: -row.best)]
    click = """
        const press = (title) => [...document.querySelectorAll("th button")].find((b) => b.innerText === title).click();
        const type = (text) => { const to = document.getElementById("filter"); to.value = text; to.oninput(); };
    """
    assert shown("") == (best_first[:500], "601 of 601 lines")
    names, _ = shown(f"{click} press('seed'); document.getElementById('more').click();")
    assert names[:600] == [row.name for row in reversed(rows)] and len(names) == 601
    names, count = shown(f"{click} press('value'); press('value'); type('RUN-1 finished');")
    assert names == [name for name in best_first if name.startswith("run-1")] and count == "111 of 601 lines"


def test_a_tracker_out_of_reach_shows_what_it_said_before(hero_home: Path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri := "http://me:secret@127.0.0.1:9")
    assert leaderboard.main([]) == 1
    assert "MLflow at http://127.0.0.1:9: " in capsys.readouterr().err
    with Index(path_of(str(hero_home), uri), uri) as index:
        index.update([made("a", 5.0)], [], NOW, everything=True)
    assert leaderboard.main([]) == 0
    said = capsys.readouterr()
    (warning,) = said.err.splitlines()
    assert re.search(r"MLflow at http://127.0.0.1:9: .*; shown is what it said 0 min ago$", warning)
    assert "| a " in said.out and "secret" not in said.out + said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sweep", "none"], "--sweep none: no run has it; there is lr"),
        (["--corpus", "none"], "--corpus none: no run has it; there is tvr"),
        (["--baseline", "none"], "--baseline none: there is no run of this name among those ranked"),
        (["--by", "val/loss:up"], "--by takes METRIC or METRIC:max or METRIC:min, not 'val/loss:up'"),
        (["--limit", "0"], "--limit is at least 1, not 0"),
    ],
)
def test_mistakes_are_one_line(hero_home: Path, words: list[str], message: str, capsys):
    known(hero_home, made("a", 5.0, sweep="lr", trial_state="pruned"))
    assert leaderboard.main(words) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1


def test_nothing_recorded_yet(show):
    assert show()[0] == "no runs\n"
