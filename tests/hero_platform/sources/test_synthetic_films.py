"""Films of the synthetic corpus show what its features hold."""

from __future__ import annotations

import itertools
from pathlib import Path

import av
import numpy as np
import pytest

from hero_platform.corpora import CORPORA
from hero_platform.sources.base import Annotation
from hero_platform.sources.splits import read_splits
from hero_platform.sources.subtitle_files import parse_cues
from hero_platform.sources.synthetic import SyntheticSource
from hero_platform.sources.synthetic_films import HEIGHT, WIDTH, write_films, write_texts
from hero_platform.store.tokens import TokenizerSpec

CORPUS = SyntheticSource(frame_dim=8, num_train=4, num_val=0, num_test=0)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_films(tmp_path_factory.mktemp("films"), CORPUS, ["train-000000", "train-000001"])


def pictures(film: Path) -> np.ndarray:
    with av.open(str(film), "r") as opened:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in opened.decode(video=0)])


def test_a_film_is_as_long_as_its_video_and_cut_where_its_scenes_are(films):
    for number, film in enumerate(films):
        scenes = CORPUS.scenes("train", number)
        shown = pictures(film).astype(float)
        assert shown.shape == (scenes[-1].stop * 6, HEIGHT, WIDTH, 3), "4 pictures a second, 1.5 seconds a frame"
        ground = shown[:, :8].mean(axis=(1, 2))  # the upper edge: nobody stands there
        for scene in scenes:
            own = ground[scene.start * 6 : scene.stop * 6]
            assert np.abs(own - own.mean(0)).max() < 12
        for before, after in itertools.pairwise(scenes):
            moved = np.abs(ground[before.stop * 6 - 1] - ground[after.start * 6]).max() > 12
            assert moved == (before.values["place"] != after.values["place"])


def test_the_figure_walks_while_a_scene_lasts(films):
    scene = CORPUS.scenes("train", 0)[0]
    shown = pictures(films[0]).astype(float)[: scene.stop * 6, HEIGHT // 4 : 3 * HEIGHT // 4]
    bright = shown.max(axis=3) - shown.min(axis=3) > 120  # saturated colours
    centres = [np.nonzero(picture)[1].mean() for picture in bright]
    assert centres == sorted(centres) and centres[-1] - centres[0] > WIDTH / 3


def test_what_is_said_lies_beside(films):
    for film, video in zip(films, CORPUS.read(["train-000000", "train-000001"]), strict=True):
        said = parse_cues(film.with_suffix(".srt").read_text())
        assert [line.text for line in said] == [line.text for line in video.subtitles]
        assert [line[:2] for line in said] == [pytest.approx(line[:2], abs=1e-3) for line in video.subtitles]


def test_words_splits_and_moments_are_read_as_anybody_s_are(tmp_path):
    corpus = SyntheticSource(num_train=3, num_val=2, num_test=0, annotated_train=2)
    write_texts(tmp_path, corpus)
    assert TokenizerSpec.read(str(tmp_path / "words.txt")) == TokenizerSpec.of_words(corpus.words())
    splits = read_splits([f"{split}={tmp_path / split}.json" for split in ("train", "val")])
    assert splits == {planned.id: planned.id.partition("-")[0] for planned in corpus.plan()[0]}
    asked = [note for note in corpus.annotations() if isinstance(note, Annotation) and note.kind == "moments"]
    for split in ("train", "val"):
        found = list(CORPORA["tvr"].read(str(tmp_path / f"{split}.jsonl"), split))
        assert [(note.text, note.video, note.start_s, note.end_s) for note in found] == [
            (note.text, note.video, note.start_s, note.end_s) for note in asked if note.split == split
        ]


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="no such video"):
        write_films(tmp_path, CORPUS, ["train-000009"])
    with pytest.raises(ValueError, match=r"no rate has a whole number of pictures in 0.0101 s"):
        write_films(tmp_path, SyntheticSource(num_train=1, interval_s=0.0101))
