"""Extraction without Ray: what a decoding task and an encoding actor do with one another's words."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from hero_platform.video import encoders, extract, views
from hero_platform.video.decoder import Limits
from hero_platform.video.extract import EncodeTask, Job, Pools, Progress, decode_film
from hero_platform.video.films import Film, find_films
from hero_platform.video.work import Work

from .models import vision_model  # isort: skip


def job_of(root: str, tmp_path: Path, *names: str) -> Job:
    joined = encoders.load(names)
    described = json.dumps(encoders.describe(joined))
    seen = tuple(encoder.view for encoder in joined.encoders)
    return Job(root, Work.open(str(tmp_path / "store"), {}), names, described, seen, 0.5, ("eng",), Limits())


def run(film: Film, job: Job, task: EncodeTask) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """One film through both; returns the end message, if it came, and all results."""
    progress, end, results = Progress(), None, []
    for table in decode_film(pa.table({"number": [0], "film": [json.dumps(asdict(film))]}), job):
        (result,) = task(table).to_pylist()
        results.append(result)
        if result["chunk"] >= -1:
            end = progress.take(0, result["chunk"], result["text"]) or end
    return end, results


@pytest.fixture
def names(tmp_path: Path) -> list[str]:
    return [vision_model("vit", tmp_path), vision_model("videomae", tmp_path)]


def test_a_film_in_chunks_has_the_features_of_its_pictures(
    film: Callable[..., Path], tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(views, "CHUNK_INTERVALS", 5)
    job = job_of(str(film("a.mkv", seconds=6, cues=[(1.0, 2.0, "inside")]).parent), tmp_path, *names)
    ((found,), _) = find_films(job.root, [])
    end, results = run(found, job, EncodeTask(job, "cpu"))
    assert end is not None and (end["intervals"], end["chunks"], end["frames"]) == (12, 3, 60)
    assert end["subtitles"] == [(1.0, 2.0, "inside")] or end["subtitles"] == [[1.0, 2.0, "inside"]]
    assert sum(float(result["text"]) for result in results if result["chunk"] >= 0) == 6.0
    features = job.work.features(found, 0, 12, 5)
    assert features.shape == (12, 64)
    assert np.array_equal(job.work.features(found, 4, 11, 5), features[4:11])

    pictures = [part.pictures for part in extract.decoder.pictures(f"{job.root}/a.mkv", job.views, 0.5, (), Limits())
                if not isinstance(part, extract.Ended)]  # fmt: skip
    expected = encoders.load(names).encode([np.stack(view) for view in zip(*pictures, strict=True)])
    np.testing.assert_allclose(features, expected, atol=1e-5)


def test_a_film_is_done_when_its_last_part_has_come_in_any_order():
    progress = Progress()
    assert progress.take(3, 1, "1.5") is None
    assert progress.take(3, 1, "1.5") is None  # once more, after a retry
    assert progress.take(3, -1, json.dumps({"chunks": 2})) is None
    assert progress.take(4, -1, json.dumps({"reject": "why"})) == {"reject": "why"}
    assert progress.take(3, 0, "1.5") == {"chunks": 2}
    assert progress.seconds == 3.0


def test_a_bad_film_and_a_bad_worker(film: Callable[..., Path], tmp_path: Path, names: list[str]):
    job = job_of(str(film("a.mkv", seconds=1).parent), tmp_path, *names)
    (Path(job.root) / "bad.mkv").write_bytes(b"no film")
    good, bad = find_films(job.root, [])[0]
    end, _ = run(bad, job, EncodeTask(job, "cpu"))
    assert end is not None and "no readable video file" in end["reject"]
    end, _ = run(Film("gone", "gone.mkv", 5), job, EncodeTask(job, "cpu"))
    assert end == {"reject": "it is not there any more"}
    end, results = run(good, job, EncodeTask(replace(job, described="[]"), "cpu"))
    assert end is None and "other encoders than the driver" in results[0]["text"]


def test_what_does_not_fit_is_said_and_not_waited_for():
    Pools(decoders=8, encoders=1).check_room(2, 0)
    Pools(decoders=1, encoders=4, gpus_per_encoder=0.25).check_room(1, 1)
    with pytest.raises(ValueError, match="2 encoders and a decoder need 3 CPUs; there are 2"):
        Pools(decoders=1, encoders=2).check_room(2, 0)
    with pytest.raises(ValueError, match=r"5 encoders of 0\.25 GPUs need 1\.25; there are 1"):
        Pools(encoders=5, gpus_per_encoder=0.25).check_room(8, 1)
    with pytest.raises(ValueError, match=r"a part of one GPU or whole ones, not 1\.5"):
        Pools(gpus_per_encoder=1.5)
