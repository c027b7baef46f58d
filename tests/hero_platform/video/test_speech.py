"""Films without subtitles are listened to. The models here are random: only the path is shown, not what they hear."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from hero_platform.video.decoder import Limits
from hero_platform.video.extract import Job
from hero_platform.video.films import find_films
from hero_platform.video.speech import Listener, ListenTask, _segments, describe_speech
from hero_platform.video.views import SOUND_RATE
from hero_platform.video.work import Work

from .models import speech_model, vision_model  # isort: skip


@pytest.mark.slow
def test_segments_lie_within_the_sound_and_have_words(tmp_path: Path):
    folder = speech_model(tmp_path)
    wave = (8000 * np.sin(np.arange(SOUND_RATE * 35) * 0.1)).astype(np.int16)
    cues = Listener(folder, "cpu").cues(wave, SOUND_RATE)
    assert cues and max(end for _, end, _ in cues) > 30  # the second window too
    assert all(0 <= start < end <= 35 and text for start, end, text in cues)
    assert cues == Listener(folder, "cpu").cues(wave, SOUND_RATE)
    assert describe_speech(folder).keys() == {"name", "weights_sha256"}


def test_a_window_s_segments_in_seconds_of_the_film():
    chunks = [
        {"timestamp": (0.0, 2.5), "text": " one\n two "},
        {"timestamp": (2.5, 2.5), "text": "no length"},
        {"timestamp": (3.0, None), "text": "not ended"},
        {"timestamp": (4.0, 40.0), "text": "beyond"},
        {"timestamp": (5.0, 6.0), "text": "  "},
    ]
    assert _segments(chunks, 30.0, 10.0) == [(30, 32.5, "one two"), (33, 40, "not ended"), (34, 40, "beyond")]


@pytest.mark.slow
def test_a_film_is_heard_once_and_one_without_sound_says_nothing(film: Callable[..., Path], tmp_path: Path):
    film("loud.mp4", seconds=3, sound=True)
    root = str(film("still.mp4", seconds=1).parent)
    job = Job(root, Work.open(str(tmp_path / "store"), {}), (), "", (), 1.5, (), Limits())
    task = ListenTask(speech_model(tmp_path), job, "cpu")
    loud, still = find_films(root, [])[0]
    for each in (loud, still):
        said = task(pa.table({"film": [json.dumps(asdict(each))]}))
        assert said.column("error").to_pylist() == [""]
    assert job.work.heard(loud) and job.work.heard(still) == []


@pytest.mark.parametrize("wrong", ["no speech model", "no times"])
def test_a_model_that_cannot_listen_is_said_with_the_film(
    film: Callable[..., Path], tmp_path: Path, wrong: str, monkeypatch: pytest.MonkeyPatch
):
    """As an exception of an actor it would be pages of Ray's."""
    root = str(film("loud.mp4", seconds=1, sound=True).parent)
    job = Job(root, Work.open(str(tmp_path / "store"), {}), (), "", (), 1.5, (), Limits())

    def no_times(*_: object, **__: object) -> None:
        raise ValueError("CTC can either predict\ncharacter level timestamps, or word level")

    if wrong == "no times":
        monkeypatch.setattr(Listener, "__init__", lambda *_: None)
        monkeypatch.setattr(Listener, "cues", no_times)
    task = ListenTask(str(tmp_path), job, "cpu")
    (loud,) = find_films(root, [])[0]
    (error,) = task(pa.table({"film": [json.dumps(asdict(loud))]})).column("error").to_pylist()
    assert error.startswith("loud.mp4: ") and "\n" not in error
    assert ("CTC can either predict character" if wrong == "no times" else "its speech model cannot be loaded") in error
    assert job.work.heard(loud) is None


@pytest.mark.parametrize("broken", ["empty", "vit"])
def test_what_is_no_speech_model_is_one_sentence(tmp_path: Path, broken: str):
    (tmp_path / "empty").mkdir()
    vision_model("vit", tmp_path)
    with pytest.raises(ValueError, match="speech model"):
        describe_speech(str(tmp_path / broken))
        Listener(str(tmp_path / broken), "cpu")
