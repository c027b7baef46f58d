"""The search and serve jobs through their command lines."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import av
import pytest

from hero_platform.infer.searcher import Answer, Searcher
from hero_platform.sources.base import Subtitle
from hero_platform.sources.synthetic import SyntheticSource
from hero_platform.sources.synthetic_films import write_films
from hero_platform.store.reader import FeatureStore
from jobs import evaluate, search, serve, train

SENTENCE = "the furious doctor finds the lamp at the kitchen"


@pytest.fixture
def run(runs: Path, tiny_store: str) -> list[str]:
    """Words that name a fine-tuned run and its store."""
    return ["--run", "tuned", "--store", tiny_store]


def test_a_sentence_then_a_file_of_them(run: list[str], tiny_store: str, tmp_path: Path, capsys):
    out = tmp_path / "a.json"
    assert search.main([*run, SENTENCE, "--top", "3", "--json", str(out)]) == 0
    printed, found = capsys.readouterr().out, json.loads(out.read_text())
    assert "1 question in 40 videos" in printed and "after building the index" in printed and found["index_built"]
    moments = found["answers"][0]["moments"]
    assert len(moments) == 3 and [m["score"] for m in moments] == sorted((m["score"] for m in moments), reverse=True)
    lines = printed.splitlines()
    assert lines[0] == SENTENCE
    for line, moment in zip(lines[2:5], moments, strict=True):
        said = " / ".join(said["text"] for said in moment["subtitles"])
        assert line.split()[:4] == [moment["video"], f"{moment['start_s']:.1f}", "-", f"{moment['end_s']:.1f}"]
        assert line.endswith(said)

    asked = tmp_path / "questions.txt"
    asked.write_text(f"{SENTENCE}\n\n  a sad chef  \n", encoding="utf-8-sig")  # as Windows writes it
    assert search.main([*run, "--questions", str(asked), "--top", "3", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "2 questions in 40 videos" in printed and "index found ready" in printed
    again = json.loads(out.read_text())
    assert [entry["question"] for entry in again["answers"]] == [SENTENCE, "a sad chef"] and not again["index_built"]
    assert [m["video"] for m in again["answers"][0]["moments"]] == [m["video"] for m in moments]


def test_pre_training_alone_searches_as_its_vsm_packed(runs: Path, tiny_store: str, capsys):
    assert search.main(["--run", "base", "--store", tiny_store, SENTENCE, "--top", "2"]) == 0
    assert "1 question in 40 videos" in capsys.readouterr().out


def test_moments_become_files(run: list[str], tmp_path: Path, capsys):
    out, clips, films = tmp_path / "a.json", tmp_path / "clips", tmp_path / "films"
    words = [*run, SENTENCE, "--top", "1", "--json", str(out)]
    assert search.main([*words, "--clip", str(clips)]) == 2
    assert "knows no films to cut moments from: name their folder with --media DIR" in capsys.readouterr().err
    assert search.main(words) == 0
    moment = json.loads(out.read_text())["answers"][0]["moments"][0]
    corpus = SyntheticSource(frame_dim=16, num_train=24, num_val=8, num_test=8)
    films.mkdir()
    (films / "val-000001.mp4" if moment["video"] != "val-000001" else films / "val-000002.mp4").write_bytes(b"")
    words += ["--media", str(films), "--clip", str(clips)]
    assert search.main(words) == 2
    assert f"{moment['video']} has no film in {films}" in capsys.readouterr().err
    missed = json.loads(out.read_text())["answers"][0]["moments"][0]
    assert missed["clip"] is None and missed["video"] == moment["video"], "answers are kept without their films"
    write_films(films, corpus, [moment["video"]])
    assert search.main(words) == 0
    video = json.loads(out.read_text())["answers"][0]["moments"][0]
    assert f"wrote {video['clip']}" in capsys.readouterr().out
    with av.open(video["clip"], "r") as made:
        assert made.duration / 1e6 == pytest.approx(video["end_s"] - video["start_s"], abs=0.3)


def test_what_is_not_searched_is_said_each_time(run: list[str], capsys, monkeypatch):
    for _ in range(2):
        monkeypatch.setattr(Searcher, "unread", "3 of 40 videos have an end")
        assert search.main([*run, "x"]) == 0
        assert "python -m jobs.search: 3 of 40 videos have an end" in capsys.readouterr().err


def test_what_films_say_is_no_command_to_a_terminal():
    said = [Subtitle(0.0, 1.0, "\x1b[2Jred\r\x07 \u00e9 \U0001f600")]
    lines = search._lines("a\x1b]0;b\x07", [Answer("x\ny", 0.0, 1.0, 0.5, said)])
    text = "\n".join(lines)
    assert (
        all(letter.isprintable() for letter in text.replace("\n", "")) and "red" in text and "\u00e9 \U0001f600" in text
    )
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one sentence, or a file of them with --questions FILE"),
        (["x", "--questions", "f"], "give one sentence, or a file of them with --questions FILE"),
        ([" "], "the question is empty"),
        (["--questions", "/nowhere"], "/nowhere"),
        (
            ["x", "--top", "0"],
            "--top 0 --workers 0 --threads 1: give 1 to 100 moments, at least 0 workers",
        ),
        (["x", "--media", "/nowhere"], "--media /nowhere is not a folder on this machine"),
        (["x", "--step", "7"], "there is no checkpoint of step 7"),
    ],
)
def test_mistakes_are_one_line(run: list[str], words: list[str], message: str, capsys):
    capsys.readouterr()
    assert search.main([*run, *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_other_stores_are_refused(run: list[str], wide_store: str, tiny_store: str, tmp_path: Path, capsys):
    assert search.main(["--run", "nothing", "--store", tiny_store, "x"]) == 2
    assert "there is no run 'nothing'" in capsys.readouterr().err
    assert search.main(["--run", "tuned", "--store", str(tmp_path), "x"]) == 2
    assert "is not a store" in capsys.readouterr().err
    assert search.main(["--run", "tuned", "--store", wide_store, "x"]) == 0, (
        "other videos with the same words and width"
    )
    assert f"in {len(FeatureStore.open(wide_store)):,} videos" in capsys.readouterr().out


def test_features_of_other_encoders_are_refused(
    tiny_store: str, store_made_by: Callable[..., str], short_run: Callable[..., list[str]], capsys
):
    """Their width is that of the run, and so is their vocabulary."""
    vit, clip = store_made_by("vit", "1" * 64), store_made_by("clip", "2" * 64)
    words = ["finetune_synthetic", *short_run("seen", "--steps", "1")[1:], "--store", f"synthetic={vit}"]
    assert train.main(words) == 0
    capsys.readouterr()
    said = f"run seen has learnt features of vit (111111111111), and those of {clip} were made by clip (222222222222)"
    split = ["--corpus", "synthetic", "--split", "val"]
    for job, more in ((search.main, ["x"]), (evaluate.main, split), (serve.main, [])):
        place = f"synthetic={clip}" if job is evaluate.main else clip
        assert job(["--run", "seen", "--store", place, *more]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert search.main(["--run", "seen", "--store", vit, "x"]) == 0
    assert search.main(["--run", "seen", "--store", tiny_store, "x"]) == 0, "ready-made features are taken as they are"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "0"], "--port is 1 to 65535, not 0"),
        (["--replicas", "0"], "--replicas 0 --threads 1: give at least 1 of each"),
        (["--reload-every", "-1"], "--reload-every is a number of seconds, not -1"),
        (["--host", "192.0.2.1"], "HERO_SERVE_TOKEN is not set: a service on 192.0.2.1 needs a token"),
        (["--host", "no such host"], "cannot listen on no such host port 8000"),
    ],
)
def test_services_that_cannot_be(words: list[str], message: str, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setenv("HERO_SERVE_TOKEN", "long-enough-to-be-one") if "no such" in message else None
    assert serve.main(["--run", "r", "--store", str(tmp_path), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_port_that_is_taken(tmp_path: Path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert serve.main(["--run", "r", "--store", str(tmp_path), "--port", port]) == 2
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in capsys.readouterr().err


def test_reloading_needs_a_run(tmp_path: Path, capsys):
    assert serve.main(["--checkpoint", "x", "--store", str(tmp_path), "--reload-every", "5"]) == 2
    assert "--reload-every looks for checkpoints of a run: give --run NAME" in capsys.readouterr().err
