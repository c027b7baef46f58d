"""Greedy captions as the official code wrote them, and the rules that lead to them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from oracle import captions
from oracle.model import Oracle
from parity import examples, golden, packed, ragged

from hero_model.nn.generate import Search
from hero_model.tasks import Captioning
from hero_model.tasks.captioning import frame_ranges

INTERVAL_S = 1.5  # of all captioning fixtures (hero.md 4.1)
CLIP_FRAMES = 10**6  # the fixtures' clips are cut already


def set_id(path):
    return f"{path.parts[path.parts.index(path.parent.name) - 1]}:{path.parent}"


def batch_of(path):
    """The moments of a greedy file: an official batch without captions."""
    stem = "batch_greedy" if path.with_name("batch_greedy.json").is_file() else "batch_val"
    return golden.read_batch(path.with_name(stem))


def folder_of(path):
    return next(folder for folder in golden.sets() if folder in path.parents)


def runs_of(path):
    """Start token, end token and captions of each run in the file."""
    stored = golden.read_json(path)
    yield stored["bos"], stored["eos"], stored["outputs"], stored["max_step"]
    if "eos_alt" in stored:
        yield stored["bos"], stored["eos_alt"], stored["outputs_eos_alt"], stored["max_step"]


def write(model, videos, text, how, *, eos=None):
    """One caption for every caption's moment of these videos; `eos` ends captions in place of the separator."""
    task = Captioning(max_frames=CLIP_FRAMES, context=0)
    rows = packed.rows_of(videos)  # frames are a second apart, so that frames are seconds
    drawn = packed.captions_of(videos)
    batch = task.moments(rows, drawn.ranges.astype(np.float64), drawn.video_C, text)
    text = text if eos is None else replace(text, sep=eos)
    return task.describe(model.hero, model.heads["captions"], batch, text, how)


@pytest.mark.parametrize("path", golden.greedy(), ids=set_id)
def test_greedy(path, errors):
    folder, batch = folder_of(path), batch_of(path)
    oracle = Oracle(golden.weights(folder, "tvc"), golden.heads(folder))
    model, text = packed.load(folder, task="tvc").eval(), packed.text_ids(folder)
    videos = examples.split("tvc", batch)
    for bos, eos, wanted, steps in runs_of(path):
        assert captions.greedy(oracle, batch, bos, eos, steps) == wanted
        assert bos == text.cls
        assert write(model, videos, text, Search(max_tokens=steps), eos=eos).lists() == wanted
    errors.note("packed captions", "greedy", str(path), 0.0)


@pytest.mark.parametrize("path", golden.greedy(), ids=set_id)
def test_frames_of_moments(path):
    batch, folder = batch_of(path), folder_of(path)
    videos = examples.split("tvc", batch)
    rows = replace(packed.rows_of(videos), interval_s=np.full(len(videos), INTERVAL_S))
    drawn = packed.captions_of(videos)
    assert (frame_ranges(rows, np.array(batch["all_ts"]), drawn.video_C) == drawn.ranges).all(), folder


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("folder", golden.sets(), ids=lambda folder: folder.name)
def test_ragged_moments_are_described_alike_alone_and_together(folder, seed):
    """Greedy against the padded oracle, and beams of several moments against each moment alone."""
    if not (folder / "tvc").is_dir():
        pytest.skip(f"{folder} has no captions")
    videos = ragged.videos("tvc", seed, 4, golden.sizes(folder))
    batch = examples.batch("tvc", videos)
    oracle = Oracle(golden.weights(folder, "tvc"), golden.heads(folder), padding_effects=False)
    model, text = packed.load(folder, task="tvc").eval(), packed.text_ids(folder)
    # A frequent word as the end token: captions end at different steps.
    words = [word for row in captions.greedy(oracle, batch, text.cls, text.sep, 8) for word in row]
    frequent = max(words, key=words.count)
    wanted = captions.greedy(oracle, batch, text.cls, frequent, 8)
    assert len({len(caption) for caption in wanted}) > 1
    alone = [replace(video, captions=(caption,)) for video in videos for caption in video.captions]
    for width in (1, 4):
        how = Search(num_beams=width, max_tokens=8, length_penalty=0.6)
        together = write(model, videos, text, how, eos=frequent)
        apart = [write(model, [video], text, how, eos=frequent) for video in alone]
        assert together.lists() == [caption for found in apart for caption in found.lists()]
        assert together.scores == pytest.approx(np.concatenate([found.scores for found in apart]), abs=1e-4)
        if width == 1:
            assert together.lists() == wanted
