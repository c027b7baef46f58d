"""`python -m jobs.build_store video`: a folder of films to a store that trains."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from hero_platform.store.manifest import Manifest
from hero_platform.store.media import read_media
from hero_platform.store.reader import FeatureStore
from jobs.build_store import main

pytest.importorskip("av")
HERE = Path(__file__).parent.parent / "hero_platform" / "video"
WORDS = ["hello", "there", "again", "inside", "late"]


def load(name: str) -> Any:
    """A helper module of the tests of films."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location(f"video_{name}", HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ray_two():
    from hero_platform.store.build import ray_cluster

    with ray_cluster(2):
        yield


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films of every kind, good and bad. Read only."""
    root = tmp_path_factory.mktemp("own") / "films"
    write: Callable[..., Path] = load("conftest").write_film
    write(root / "beside.mp4", seconds=6)
    (root / "beside.en.srt").write_text("1\n00:00:00,500 --> 00:00:02,000\nHello there\n")
    write(root / "deep" / "long.mkv", seconds=21, rate=5, cues=[(1.0, 2.0, "inside"), (18.0, 19.0, "late")])
    write(root / "silent.avi", seconds=4)
    write(root / "uneven.mkv", times=[0, 0.1, 2.05, 2.5, 5.0])
    write(root / "sound.mp4", video=False, sound=True)
    half = write(root / "half.mkv", seconds=12)
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    (root / "empty.mp4").write_bytes(b"")
    (root / "text.mp4").write_bytes(b"no film\n" * 99)
    return root


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny vision model."""
    return load("models").vision_model("vit", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("words") / "words.txt"
    path.write_text("\n".join(WORDS))
    return str(path)


def command(films: Path, encoder: str, words: str, out: Path) -> list[str]:
    flags = ["--clip-seconds", "9", "--interval", "1.5", "--workers", "1", "--corpus", "synthetic"]
    return ["video", str(films), "--encoder", encoder, "--tokenizer", words, "--out", str(out), *flags]


def test_mistakes_are_one_line_and_exit_code_2(tmp_path: Path, films: Path, capsys: pytest.CaptureFixture[str]):
    for words, said in [
        ([str(tmp_path / "nothing")], "no folder there"),
        ([str(films), "--encoder", "resnext"], "there is no encoder 'resnext'"),
        ([str(films), "--clip-seconds", "1", "--interval", "1.5"], "one of them is too short"),
        ([str(films), "--interval", "1e-9"], "--interval 1e-09: the least is 0.001 s"),
    ]:
        assert main(["video", *words, "--corpus", "x", "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert said in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_dry_run_counts_and_writes_nothing(films: Path, tmp_path: Path, hero_home: Path):
    said = tmp_path / "said.json"
    assert main(["video", str(films), "--corpus", "own", "--dry-run", "--json", str(said)]) == 0
    told = json.loads(said.read_text())
    assert told["films"] == 8 and told["with_subtitle_file"] == 1
    assert told["store"] == str(hero_home / "stores" / "own" / "efficientnet-lite0_1.5")
    assert not hero_home.exists()


def test_two_builds_of_one_store_are_not_at_work_at_once(
    films: Path, encoder: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
):
    """The one that ends first would take away what the other has extracted, which then has rejects for films."""
    inside: list[int] = []

    def extracting(*_: Any, **__: Any) -> Any:
        inside.append(main(command(films, encoder, words, tmp_path / "store")))
        raise ValueError("enough")

    monkeypatch.setattr("hero_platform.video.build.extract", extracting)
    monkeypatch.setattr("hero_platform.video.build.ray_cluster", lambda _: contextlib.nullcontext())
    assert main(command(films, encoder, words, tmp_path / "store")) == 2 and inside == [2]
    first, second = capsys.readouterr().err.splitlines()
    assert "another build is at work in" in first and "wait for it, or choose another --out" in first
    assert second.endswith("enough")


@pytest.mark.ray
@pytest.mark.slow
def test_films_become_a_store_that_trains(
    films: Path, encoder: str, words: str, tmp_path: Path, ray_two: None, caplog: pytest.LogCaptureFixture
):
    out = tmp_path / "store"
    assert main(command(films, encoder, words, out)) == 0
    assert "2 films have no subtitles and stay without text" in caplog.text
    store = FeatureStore.open(str(out))
    assert store.damaged() == [] and not Path(f"{out}.extracted").exists()
    assert sorted(store.index.ids) == ["beside", "long.0", "long.1", "long.2", "silent", "uneven"]
    frames = dict(zip(store.index.ids, store.index.num_frames, strict=True))
    assert frames == {"beside": 4, "long.0": 6, "long.1": 6, "long.2": 2, "silent": 3, "uneven": 4}
    reasons = {entry["id"]: entry["reason"] for entry in map(json.loads, (out / "rejects.jsonl").open())}
    assert reasons.keys() == {"sound", "half", "empty", "text"}
    assert reasons["sound"] == "no video stream, only audio" and reasons["empty"] == "an empty file"
    assert reasons["half"].startswith("truncated") and reasons["text"].startswith("no readable video file")

    rows = store.rows([store.index.row_of[video] for video in ("beside", "long.0", "long.1", "long.2")])
    assert rows.tokens.tolist() == [*store_words(words, "hello there"), *store_words(words, "inside late")]
    assert np.allclose(np.linalg.norm(rows.frames.astype(np.float32), axis=1), 1, atol=1e-2)
    media = read_media(store)
    assert media.clips["long.1"].start == 9.0 and media.clips["long.2"].end == pytest.approx(21.0, abs=0.02)
    assert media.path(media.clips["long.1"]) == str(films / "deep" / "long.mkv")
    (made_by,) = store.manifest.source["encoders"]
    assert made_by["name"] == "vit" and made_by["width"] == store.frame_dim == 32
    assert store.manifest.build["extraction"]["film_seconds"] >= 36

    assert main(command(films, encoder, words, out)) == 0  # done: nothing is decoded again

    from jobs.train import main as train

    flags = ["--model", "debug", "--batch", "4", "--steps", "2", "--scale.num-workers", "0"]
    assert train(["pretrain_synthetic", "--store", f"synthetic={out}", "--name", "own", *flags]) == 0


def store_words(words: str, text: str) -> list[int]:
    from hero_platform.store.tokens import TokenizerSpec, tokenise

    return tokenise(TokenizerSpec.read(words), [text], "sub")[0]


@pytest.mark.ray
@pytest.mark.chaos
def test_a_killed_build_goes_on_film_by_film(films: Path, encoder: str, words: str, tmp_path: Path, ray_two: None):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(command(films, encoder, words, whole)) == 0
    program = [sys.executable, "-m", "jobs.build_store", *command(films, encoder, words, killed)]
    process = subprocess.Popen(program, start_new_session=True, env={**os.environ, "RAY_ADDRESS": ""})
    deadline = time.monotonic() + 120
    while not list(Path(f"{killed}.extracted").glob("*/film.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list(Path(f"{killed}.extracted").glob("*/film.json")) and not (killed / "manifest.json").exists()
    assert main([*command(films, encoder, words, killed), "--encoder-workers", "2", "--workers", "2"]) == 0
    once, twice = Manifest.read(str(whole)), Manifest.read(str(killed))
    assert twice.digest == once.digest
    assert twice.build["extraction"]["film_seconds"] < once.build["extraction"]["film_seconds"]


@pytest.mark.ray
@pytest.mark.chaos
def test_an_encoder_that_dies_is_started_again(films: Path, encoder: str, words: str, tmp_path: Path, ray_two: None):
    whole, hit = tmp_path / "whole", tmp_path / "hit"
    assert main(command(films, encoder, words, whole)) == 0
    killed: list[int] = []

    def kill_one() -> None:
        deadline = time.monotonic() + 60
        while not killed and time.monotonic() < deadline:
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if "EncodeTask" in " ".join(process.cmdline()) and list(Path(f"{hit}.extracted").glob("*/*.npy")):
                        process.kill()
                        killed.append(process.pid)
                        return
            time.sleep(0.005)

    thread = threading.Thread(target=kill_one)
    thread.start()
    assert main(command(films, encoder, words, hit)) == 0
    thread.join()
    assert killed
    assert Manifest.read(str(hit)).digest == Manifest.read(str(whole)).digest
