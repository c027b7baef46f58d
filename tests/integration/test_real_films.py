"""Real films all the way: features, a store, an untrained and a briefly trained model, answers, clips, the page.

That it works is shown here. Whether the answers are any good is not: three films are no evidence of that.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hero_platform import config_io, home
from hero_platform.store.build import ray_cluster
from hero_platform.store.reader import FeatureStore
from hero_platform.train import snapshot
from hero_platform.train.worker import build_module
from jobs import build_store, search, train
from tests.integration.service import browsing, keep_picture, serving

av = pytest.importorskip("av")
pytest.importorskip("efficientnet_lite_pytorch")
REAL = Path(__file__).resolve().parents[3] / "shared" / "real"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.skipif(not (REAL / "video").is_dir(), reason=f"no real films at {REAL}"),
]
HEARD = "in one of the largest cleanrooms in the world"  # in nasa_13013, so the trained model has read it


@pytest.fixture(scope="module")
def _home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output root with the store of the films and two runs on it, made as docs/search.md says."""
    root = tmp_path_factory.mktemp("real")
    with pytest.MonkeyPatch.context() as patch, ray_cluster(2):
        patch.setenv("HERO_HOME", str(root))
        words = ["--tokenizer", str(REAL / "roberta"), "--corpus", "films", "--workers", "1"]
        assert build_store.main(["video", str(REAL / "video"), *words]) == 0
        recipe = ["pretrain_tv", "--store", f"tv={home.store_of('films')}", "--model", "debug", "--batch", "3"]
        quiet = ["--tracking.kind", "none", "--evaluation.every", "0"]
        for name, words in (("untrained", ["--steps", "1", "--optim.lr", "0"]), ("brief", ["--steps", "80"])):
            assert train.main([*recipe, *quiet, "--name", name, *words]) == 0
    return root


@pytest.fixture
def films(_home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Path of the store; its runs are those of this test."""
    monkeypatch.setenv("HERO_HOME", str(_home))
    path = home.store_of("films")
    assert path
    return path


def test_features_and_words_are_those_of_others(films: str):
    store = FeatureStore.open(films)
    assert dict(zip(store.index.ids, store.index.num_frames, strict=True)) == {
        "nasa_13013": 9, "popeye_p2": 41, "popeye_p3": 41,
    }  # fmt: skip
    aligned = json.loads((REAL / "subtitles" / "hero_alignment_example.json").read_text())
    for video in ("popeye_p2", "popeye_p3"):  # HERO's own program, told 60 s: a film of 60.06 s has one frame more
        row = store.rows([store.index.row_of[video]])
        offsets = row.segment_frame_offsets
        lists = [row.segment_frames[a:b] for a, b in pairwise(offsets)]
        theirs = aligned[video]["1.5"]["unique_sub2frames"]
        assert [[int(frame) for frame in own if frame < 40] for own in lists] == [
            theirs.get(str(number), []) for number in range(len(lists))
        ]
    with np.load(REAL / "features" / "nasa_13013.npz", allow_pickle=False) as given:
        features = given["efficientnet_lite0"].astype(np.float32)  # three pictures of each interval, averaged
    ours = store.rows([store.index.row_of["nasa_13013"]]).frames.astype(np.float32)
    cosines = (ours * features).sum(1) / np.linalg.norm(features, axis=1)
    assert cosines.min() > 0.8 and np.median(cosines) > 0.95


@pytest.mark.parametrize("run", ["untrained", "brief"])
def test_a_question_is_answered_with_clips(films: str, run: str, tmp_path: Path, capsys):
    """Any model gives moments of these films; one that has read a sentence many times finds it again."""
    out = tmp_path / "answers.json"
    words = ["--run", run, "--store", films, HEARD, "--top", "3", "--json", str(out)]
    assert search.main([*words, "--clip", str(tmp_path / "clips")]) == 0
    assert "1 question in 3 videos" in capsys.readouterr().out
    moments = json.loads(out.read_text())["answers"][0]["moments"]
    index = FeatureStore.open(films).index
    durations = dict(zip(index.ids.tolist(), index.durations_s.tolist(), strict=True))
    for moment in moments:
        with av.open(moment["clip"], "r") as made:
            assert made.streams.video[0].codec_context.name == "h264"
            pictures = [frame.time for frame in made.decode(video=0)]
        assert 0 <= pictures[0] < 0.05 and len(pictures) > 10, "from the first picture that begins in the moment"
        seconds = min(moment["end_s"], durations[moment["video"]]) - moment["start_s"]
        assert pictures[-1] == pytest.approx(seconds, abs=1.6), "the last frame of a film is no whole interval"
    if run == "brief":
        assert moments[0]["video"] == "nasa_13013"
        assert any("cleanrooms" in line["text"] for line in moments[0]["subtitles"])


def test_the_untrained_model_has_its_first_weights(films: str):
    """The official schedule takes 1e-8 for a rate of 0, so one step moves nothing further; the other run has moved."""
    moved = {}
    for name in ("untrained", "brief"):
        weights, config = snapshot.load_weights(snapshot.choose(home.checkpoints_dir(name), "last"))
        first = build_module(config_io.from_json(json.dumps(config))).state_dict()
        moved[name] = max(float((first[key] - value).abs().max()) for key, value in weights.items())
    assert moved["untrained"] < 1e-7 and moved["brief"] > 1e-2


def test_the_page_plays_what_the_browser_can(films: str, _home: Path):
    """H.264 in MP4 does; of HEVC in Matroska the page says that it does not."""
    with serving(_home, "--run", "brief", "--store", films) as service, browsing(service) as page:
        page.get_by_text("3 videos are searched.").wait_for()
        ask(page, HEARD)
        clip = page.locator("article").first
        assert clip.locator(".video").inner_text() == "nasa_13013"
        player = clip.locator("video")
        page.wait_for_function("v => v.readyState >= 2", arg=player.element_handle())
        keep_picture(page, "search_films.png")
        clip.get_by_role("button", name="Play the moment").click()
        page.wait_for_function("v => !v.paused && v.currentTime > 0", arg=player.element_handle())
        ask(page, "Well, that was a nice ship we had once")
        other = page.locator("article").filter(has_text="popeye").first
        other.get_by_text("This browser cannot play the film").wait_for()
        assert not other.get_by_role("button", name="Play the moment").is_visible()
        assert page.requested == page.problems == []


def ask(page: Any, question: str) -> None:
    """Type it, and wait for its answers."""
    page.locator("#question").fill(question)
    page.keyboard.press("Enter")
    page.locator("#status", has_text=question).wait_for()
