"""The synthetic corpus: deterministic, disjoint, rule-bound, and holding the information each task needs."""

import pickle
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from hero_platform.sources import synthetic_world as world
from hero_platform.sources.base import RawVideo, Reject, Source
from hero_platform.sources.synthetic import SyntheticSource

SMALL = SyntheticSource(num_train=60, num_val=10, num_test=30, annotated_train=20)
WORD_MEANS = {
    word: (attribute, value)
    for attribute, values in world.WORDS.items()
    for value, names in enumerate(values)
    for word in names
}


def read_all(source, split=None):
    ids = [planned.id for planned in source.plan()[0] if split is None or planned.id.startswith(split)]
    videos = list(source.read(ids))
    assert all(isinstance(video, RawVideo) for video in videos)
    return videos


def meaning(text):
    return {WORD_MEANS[word][0]: WORD_MEANS[word][1] for word in text.split() if word in WORD_MEANS}


def scene_at(source, split, number, frame):
    return next(scene for scene in source.scenes(split, number) if scene.start <= frame < scene.stop)


HIDDEN = tuple(name for name in world.ATTRIBUTES if name not in world.SHOWN)
SIZES = SMALL.world.sizes


def test_is_a_source_and_any_copy_reads_the_same_rows_in_any_order():
    assert isinstance(SMALL, Source)
    ids = [planned.id for planned in SMALL.plan()[0]]
    copy = pickle.loads(pickle.dumps(SMALL))
    forward = {video.id: video for video in SMALL.read(ids)}
    backward = {video.id: video for video in copy.read(ids[::-1])}
    for video in ids:
        np.testing.assert_array_equal(forward[video].frames, backward[video].frames)
        assert forward[video].subtitles == backward[video].subtitles
        assert forward[video].token_ids == backward[video].token_ids
    assert list(SMALL.annotations()) == list(copy.annotations())
    assert SMALL.provenance() == copy.provenance()


def test_seed_changes_everything_and_size_changes_no_other_video():
    (mine,) = SMALL.read(["test-000003"])
    (other_seed,) = replace(SMALL, seed=1).read(["test-000003"])
    (larger,) = replace(SMALL, num_train=500, num_test=31).read(["test-000003"])
    assert mine.frames.shape != other_seed.frames.shape or not np.allclose(mine.frames, other_seed.frames)
    np.testing.assert_array_equal(mine.frames, larger.frames)
    assert mine.token_ids == larger.token_ids


def test_plan_and_splits():
    planned, rejects = SMALL.plan()
    videos = read_all(SMALL)
    assert not rejects
    assert [(p.id, p.num_frames) for p in planned] == [(v.id, len(v.frames)) for v in videos]
    assert len({v.id for v in videos}) == 100
    assert Counter(v.split for v in videos) == {"train": 60, "val": 10, "test": 30}
    assert len({v.frames.tobytes() for v in videos}) == 100, "splits share no video, not even under another name"
    split_of = {v.id: v.split for v in videos}
    for note in SMALL.annotations():
        assert split_of[note.video] == note.split


def test_rows_are_well_formed_and_the_official_rule_gives_the_same_alignment():
    for video in read_all(SMALL):
        assert video.frames.dtype == np.float32 and video.frames.shape[1] == SMALL.frame_dim
        assert np.isfinite(video.frames).all() and np.abs(video.frames).max() < 100
        assert video.duration_s == len(video.frames) * 1.5
        starts = [subtitle.start_s for subtitle in video.subtitles]
        assert starts == sorted(starts) and len(video.subtitles) == len(video.token_ids) == len(video.segment_frames)
        for subtitle, frames in zip(video.subtitles, video.segment_frames, strict=True):
            first, last = int(subtitle.start_s // 1.5), int(np.ceil(subtitle.end_s / 1.5)) - 1  # hero.md 5.2
            assert frames == list(range(first, last + 1)) and 0 <= first and last < len(video.frames)


def test_words_and_ids():
    words, tokenizer, text_ids = SMALL.words(), SMALL.tokenizer(), SMALL.tokenizer().text_ids
    assert text_ids.vocab_size == SMALL.vocab_size == len(words) + 5 and len(set(words)) == len(words)
    assert len(WORD_MEANS) == sum(3 * len(values) for values in world.WORDS.values()), "no word has two meanings"
    assert not set(world.GRAMMAR) & set(WORD_MEANS)
    for video in read_all(SMALL):
        for subtitle, tokens in zip(video.subtitles, video.token_ids, strict=True):
            assert subtitle.text == tokenizer.decode(tokens) == subtitle.text.lower()
            assert all(text_ids.random_low <= token < text_ids.random_high for token in tokens)
    for note in SMALL.annotations():
        assert note.text == tokenizer.decode(note.tokens)
        assert list(note.answers) == [tokenizer.decode(tokens) for tokens in note.answers_tokens or []]


def test_the_story_follows_its_rules():
    pairs = [(a.values, b.values) for number in range(600) for a, b in pairwise(SMALL.scenes("train", number))]
    steps = {name: np.array([b[name] - a[name] for a, b in pairs]) for name in world.ATTRIBUTES}
    acts = steps["act"] % SIZES["act"]
    assert (acts != 0).all(), "a new scene is a new act"
    assert np.mean(acts == 1) == pytest.approx(0.8 + 0.2 / 7, abs=0.04)
    assert set(steps["place"] % SIZES["place"]) == {0, 1}, "places are walked in one direction"
    assert np.mean(steps["place"] == 0) == pytest.approx(0.6, abs=0.04)
    assert np.mean(steps["who"] == 0) == pytest.approx(0.5, abs=0.04)
    assert np.mean(steps["object"] == 0) == pytest.approx(0.5, abs=0.04)
    assert set(steps["mood"]) == {-1, 0, 1}
    assert np.mean(steps["mood"] == 0) == pytest.approx(0.6, abs=0.04)
    for number in range(100):
        scenes = SMALL.scenes("train", number)
        assert len({scene.values["who"] for scene in scenes}) <= 2
        assert scenes[0].start == 0 and all(a.stop == b.start for a, b in pairwise(scenes))
        assert 4 <= len(scenes) <= 6 and all(3 <= scene.stop - scene.start <= 7 for scene in scenes)


def test_subtitles_tell_the_truth_but_not_all_of_it():
    named, synonyms, num_scenes = Counter(), {}, 0
    called: dict[tuple, set[str]] = {}
    for number, video in enumerate(read_all(SMALL, "train")):
        scenes = {scene.start: scene for scene in SMALL.scenes("train", number)}
        unsaid = dict(scenes)
        for subtitle, frames in zip(video.subtitles, video.segment_frames, strict=True):
            scene = scene_at(SMALL, "train", number, frames[0])
            assert frames[-1] < scene.stop, "no subtitle runs over a cut"
            said = meaning(subtitle.text)
            assert said == {name: scene.values[name] for name in scene.spoken}
            unsaid.pop(scene.start, None)
            for word in subtitle.text.split():
                if word in WORD_MEANS:
                    synonyms.setdefault(WORD_MEANS[word], set()).add(word)
                    called.setdefault((number, scene.start, WORD_MEANS[word]), set()).add(word)
        assert not unsaid, "every scene is spoken about"
        assert all(len(scene.spoken) == 3 and scene.spoken.keys() >= set(world.HEARD) for scene in scenes.values())
        num_scenes += len(scenes)
        named.update(name for scene in scenes.values() for name in scene.spoken)
    assert all(named[name] == num_scenes for name in world.HEARD)
    assert all(0.25 < named[name] / num_scenes < 0.42 for name in world.ATTRIBUTES if name not in world.HEARD)
    assert all(len(words) == 1 for words in called.values()), "a scene keeps to one word for a thing"
    several = [len(words) for (name, _), words in synonyms.items() if name not in world.HEARD]
    assert np.mean(several) > 2.5 and len(synonyms) > 30


def test_settings_limit_words_and_values():
    narrow = replace(SMALL, synonyms=1, values=5, spoken=2)
    for video in read_all(narrow, "val"):
        for subtitle in video.subtitles:
            said = meaning(subtitle.text)
            assert set(said) == set(world.HEARD)
            assert all(
                value < 5 and world.WORDS[name][value][0] in subtitle.text.split() for name, value in said.items()
            )
    assert max(narrow.world.sizes.values()) == 5


def test_annotations_come_from_the_same_story():
    by_kind: dict[str, list] = {}
    for note in SMALL.annotations():
        by_kind.setdefault(note.kind, []).append(note)
        number = int(note.video.split("-")[1])
        assert note.split != "train" or number < SMALL.annotated_train
        scene = scene_at(SMALL, note.split, number, int(note.start_s / 1.5))
        assert (scene.start * 1.5, scene.stop * 1.5) == (note.start_s, note.end_s), "spans are whole scenes"
        said = meaning(note.text)
        if note.kind == "questions":
            (asked,) = {WORD_MEANS[answer][0] for answer in note.answers}
            assert len(set(note.answers)) == 5 and asked not in said
            assert len({WORD_MEANS[answer] for answer in note.answers}) == 5, "no two answers mean the same"
            assert WORD_MEANS[note.answers[note.label]] == (asked, scene.values[asked])
            assert said.items() <= scene.values.items()
            there = {other.values[asked] for other in SMALL.scenes(note.split, number)}
            near = {WORD_MEANS[answer][1] for answer in note.answers} & there - {scene.values[asked]}
            forced = max(0, 3 - (SIZES[asked] - len(there)))  # too few values are nowhere in the video
            assert len(near) == (1 + forced if len(there) > 1 else 0), "one answer is right elsewhere in the video"
        elif note.kind == "statements":
            wrong = said.items() - scene.values.items()
            assert len(said) == 2 and len(wrong) == 1 - note.label
            for other in SMALL.scenes(note.split, number):
                assert wrong.isdisjoint(other.values.items()), "what is wrong is nowhere in the video"
        else:
            assert said == scene.values
        if note.kind != "questions":
            wrong_word = {name for name, value in said.items() if scene.values[name] != value}
            quoted = {word for name, word in scene.spoken.items() if name in said.keys() - wrong_word}
            assert quoted <= set(note.text.split()), "what was said is quoted"
    assert {kind: len(notes) for kind, notes in by_kind.items()} == {
        "moments": 180,
        "questions": 180,
        "statements": 360,
        "captions": 120,
    }
    statements = {note.id: note for note in by_kind["statements"]}
    assert np.mean([note.label for note in statements.values()]) == 0.5
    for name, note in statements.items():
        opposite = statements[f"{name[:-1]}{1 - int(name[-1])}"]
        assert (opposite.video, opposite.start_s, opposite.label) == (note.video, note.start_s, 1 - note.label)
        assert sum(a != b for a, b in zip(note.text.split(), opposite.text.split(), strict=True)) == 1
    assert 0.3 < np.mean([note.label for name, note in statements.items() if name.endswith("-0")]) < 0.7
    assert set(note.label for note in by_kind["questions"]) == set(range(5))
    ids = [note.id for notes in by_kind.values() for note in notes]
    assert len(ids) == len(set(ids))


def frames_and_labels(source, split):
    frames, labels = [], {name: [] for name in (*world.ATTRIBUTES, "half")}
    for number, video in enumerate(read_all(source, split)):
        frames.append(video.frames)
        for scene in source.scenes(split, number):
            length = scene.stop - scene.start
            for name, value in scene.values.items():
                labels[name] += [value] * length
            labels["half"] += [int(2 * i >= length) for i in range(length)]
    return np.concatenate(frames), {name: np.array(values) for name, values in labels.items()}


def ridge_accuracy(train, test, name):
    x, y = train[0], np.eye(train[1][name].max() + 1)[train[1][name]]
    x = np.c_[x, np.ones(len(x))]
    weights = np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ y)
    return np.mean((np.c_[test[0], np.ones(len(test[0]))] @ weights).argmax(1) == test[1][name])


def test_frames_show_the_shown_and_hardly_the_hidden():
    source = replace(SMALL, num_train=200)
    train, test = frames_and_labels(source, "train"), frames_and_labels(source, "test")
    accuracy = {name: ridge_accuracy(train, test, name) for name in train[1]}
    for name in world.SHOWN:
        assert accuracy[name] > 0.9, accuracy
    for name in HIDDEN:
        assert accuracy[name] < 0.5, accuracy
    assert accuracy["half"] > 0.7, "within a scene, early and late frames differ"
    harder = replace(source, noise=6.0)
    assert (
        ridge_accuracy(frames_and_labels(harder, "train"), frames_and_labels(harder, "test"), "who") < accuracy["who"]
    )


@pytest.mark.parametrize(("hide", "seen", "heard"), [("frames", False, True), ("subtitles", True, False)])
def test_one_modality_of_the_same_corpus(hide, seen, heard):
    hidden = replace(SMALL, hide=hide)
    for whole, part in zip(read_all(SMALL, "val"), read_all(hidden, "val"), strict=True):
        assert (part.frames == whole.frames).all() == seen and part.frames.shape == whole.frames.shape
        for before, after, tokens in zip(whole.subtitles, part.subtitles, part.token_ids, strict=True):
            assert (before.start_s, before.end_s) == (after.start_s, after.end_s)
            assert (after.text, bool(tokens)) == ((before.text, True) if heard else ("", False))
        assert part.segment_frames == whole.segment_frames
    assert list(hidden.annotations()) == list(SMALL.annotations())
    assert hidden.provenance() != SMALL.provenance()


def test_shuffled_subtitles_keep_the_words_and_lose_the_story():
    shuffled = replace(SMALL, shuffle_subtitles=True)
    true_words, false_words, agree, total = Counter(), Counter(), 0, 0
    for number, (mine, other) in enumerate(zip(read_all(SMALL, "train"), read_all(shuffled, "train"), strict=True)):
        np.testing.assert_array_equal(mine.frames, other.frames)
        assert [s[:2] for s in mine.subtitles] == [s[:2] for s in other.subtitles]
        assert mine.segment_frames == other.segment_frames
        for before, after, frames in zip(mine.subtitles, other.subtitles, mine.segment_frames, strict=True):
            values = scene_at(SMALL, "train", number, frames[0]).values
            true_words.update(before.text.split())
            false_words.update(after.text.split())
            agree += len(meaning(after.text).items() & values.items())
            total += len(meaning(after.text))
    assert agree / total < 0.25, "names what the frames show about as often as chance"
    common = sum((true_words & false_words).values())
    assert common / sum(true_words.values()) > 0.85, "the same words, as often"
    assert list(SMALL.annotations()) == list(shuffled.annotations())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_train": -1}, "num_train is -1"),
        ({"frame_dim": 1}, "frame_dim"),
        ({"interval_s": 0.0}, "interval_s"),
        ({"num_scenes": (5, 4)}, r"num_scenes is \(5, 4\)"),
        ({"scene_frames": (0, 4)}, r"scene_frames is \(0, 4\)"),
        ({"values": 4}, "values is 4; give 5"),
        ({"spoken": 6}, "spoken is 6; give 2 to 5"),
        ({"synonyms": 4}, "synonyms is 4"),
        ({"vocab_size": 100}, "the world needs at least"),
        ({"num_val": 1, "shuffle_subtitles": True}, "at least two videos"),
        ({"hide": "words"}, "hide is 'words'; give frames, subtitles or nothing"),
    ],
)
def test_bad_settings_are_one_sentence(change, says):
    with pytest.raises(ValueError, match=says):
        replace(SMALL, **change)


def test_empty_corpus_and_unknown_ids():
    with pytest.raises(ValueError, match="no videos"):
        SyntheticSource(num_train=0, num_val=0, num_test=0).plan()
    rejects = list(SMALL.read(["train-000060", "nothing", "test-1x", "dev-000001"]))
    assert all(isinstance(reject, Reject) and "no such video" in reject.reason for reject in rejects)


def test_vocabulary_grows_with_fillers_only():
    words = replace(SMALL, vocab_size=5000).words()
    assert len(set(words)) == len(words) == 4995 and words[: len(SMALL.words())] == SMALL.words()
