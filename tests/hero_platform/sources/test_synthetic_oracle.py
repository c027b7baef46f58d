"""The synthetic corpus rewards both modalities: what an oracle that reads one or both perfectly comes to."""

from typing import NamedTuple

import numpy as np
import pytest

from hero_platform.sources import synthetic_world as world
from hero_platform.sources.synthetic import SyntheticSource

MEANS = {
    word: (name, value) for name, values in world.WORDS.items() for value, words in enumerate(values) for word in words
}


def meaning(text):
    return dict(MEANS[word] for word in text.split() if word in MEANS)


def percent(*shares):
    return [round(100 * share) for share in shares]


class Oracle(NamedTuple):
    """What is known about every scene of the 200 test videos; the meaning of every word is."""

    owner: np.ndarray  # video of each scene
    heard: list[dict[str, int]]
    shown: list[dict[str, int]]
    true: list[dict[str, int]]
    notes: dict[str, list]

    @property
    def both(self):
        return [{**a, **b} for a, b in zip(self.heard, self.shown, strict=True)]

    def scenes_of(self, note, known):
        return [known[i] for i in np.flatnonzero(self.owner == int(note.video.split("-")[1]))]


@pytest.fixture(scope="module")
def oracle():
    source = SyntheticSource(num_train=0, num_val=0, num_test=200)
    scenes = [(number, scene) for number in range(200) for scene in source.scenes("test", number)]
    heard = [{name: scene.values[name] for name in scene.spoken} for _, scene in scenes]
    notes: dict[str, list] = {}
    for note in source.annotations():
        notes.setdefault(note.kind, []).append(note)
    shown = [{name: scene.values[name] for name in world.SHOWN} for _, scene in scenes]
    owner = np.array([number for number, _ in scenes])
    return Oracle(owner, heard, shown, [scene.values for _, scene in scenes], notes)


def test_a_query_finds_its_video_only_with_both_modalities(oracle):
    def recall(known):
        """R@1 of the video, ties broken at random: how many asked attributes each scene is known to have."""
        hits, queries = 0.0, oracle.notes["moments"]
        assert len(queries) >= 500
        for note in queries:
            asked = meaning(note.text)
            score = np.array([len(asked.items() & facts.items()) for facts in known])
            best = np.array([score[oracle.owner == v].max() for v in range(200)])
            right = best[int(note.video.split("-")[1])]
            hits += (right == best.max()) / np.sum(best == best.max())
        return hits / len(queries)

    both, text, sight, everything = map(recall, (oracle.both, oracle.heard, oracle.shown, oracle.true))
    assert everything > 0.95
    assert both > 0.8
    assert text < 0.6 and sight < 0.6, (text, sight)
    assert percent(both, text, sight, everything) == [82, 40, 10, 98], "docs/data.md has these"


def test_a_question_is_answered_only_with_both_modalities_and_only_if_it_is_read(oracle):
    def accuracy(known, *, reads=True):
        """Take the scenes that most of the question fits; choose what is known about them, else guess."""
        right = 0.0
        for note in oracle.notes["questions"]:
            said = meaning(note.text).items() if reads else set()
            scenes = oracle.scenes_of(note, known)
            fits = [len(said & facts.items()) for facts in scenes]
            values = [MEANS[answer] for answer in note.answers]
            votes = np.zeros(5)
            for fit, facts in zip(fits, scenes, strict=True):
                if fit == max(fits):
                    known_here = [value in facts.items() for value in values]
                    votes += known_here if any(known_here) else np.full(5, 0.2)
            right += (votes.argmax() == note.label) if (votes > votes.min()).any() else 0.2
        return right / len(oracle.notes["questions"])

    both, text, sight, everything = map(accuracy, (oracle.both, oracle.heard, oracle.shown, oracle.true))
    assert everything > 0.95
    assert both > 0.9
    assert text < 0.75 and sight < 0.75, (text, sight)
    assert (unread := accuracy(oracle.both, reads=False)) < 0.8
    assert percent(both, text, sight, unread) == [99, 72, 45, 69], "docs/data.md has these"


def test_a_statement_is_judged_only_with_both_modalities(oracle):
    def accuracy(known):
        """False if every scene contradicts it in something."""
        right = 0
        for note in oracle.notes["statements"]:
            said = meaning(note.text)
            fits = [
                all(facts.get(name, value) == value for name, value in said.items())
                for facts in oracle.scenes_of(note, known)
            ]
            right += any(fits) == note.label
        return right / len(oracle.notes["statements"])

    both, text, sight, everything = map(accuracy, (oracle.both, oracle.heard, oracle.shown, oracle.true))
    assert everything == 1.0
    assert both > 0.95
    assert text < 0.92 and sight < 0.7, (text, sight)
    assert percent(both, text, sight) == [100, 85, 67], "docs/data.md has these"
