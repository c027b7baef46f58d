"""The world behind the synthetic corpus: attributes and their words, the rules of its stories, and its sentences.

docs/data.md, "The synthetic corpus", tells it in words. Nothing here knows frames or files.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# attribute -> value -> synonyms. Acts and places are in the order the rules walk them, moods from low to high.
WORDS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "who": (
        ("doctor", "physician", "medic"),
        ("teacher", "tutor", "professor"),
        ("chef", "cook", "baker"),
        ("child", "kid", "youngster"),
        ("thief", "burglar", "robber"),
        ("officer", "cop", "sheriff"),
        ("singer", "vocalist", "performer"),
        ("farmer", "rancher", "grower"),
    ),
    "act": (
        ("finds", "discovers", "notices"),
        ("lifts", "raises", "hoists"),
        ("carries", "hauls", "brings"),
        ("opens", "unlocks", "unseals"),
        ("cleans", "washes", "scrubs"),
        ("paints", "colors", "decorates"),
        ("shows", "presents", "displays"),
        ("hides", "conceals", "buries"),
        ("throws", "tosses", "hurls"),
        ("breaks", "smashes", "shatters"),
    ),
    "object": (
        ("lamp", "lantern", "light"),
        ("box", "crate", "chest"),
        ("letter", "note", "message"),
        ("guitar", "banjo", "ukulele"),
        ("cup", "mug", "goblet"),
        ("coat", "jacket", "parka"),
        ("phone", "handset", "receiver"),
        ("ring", "jewel", "gem"),
        ("bicycle", "bike", "cycle"),
        ("cake", "pastry", "dessert"),
        ("rope", "cord", "cable"),
        ("picture", "portrait", "canvas"),
        ("hammer", "mallet", "sledge"),
        ("blanket", "quilt", "cover"),
        ("camera", "recorder", "camcorder"),
        ("vase", "jar", "pot"),
    ),
    "place": (
        ("kitchen", "galley", "pantry"),
        ("garden", "yard", "lawn"),
        ("street", "road", "avenue"),
        ("station", "platform", "depot"),
        ("beach", "shore", "coast"),
        ("forest", "woods", "grove"),
        ("office", "bureau", "workroom"),
        ("attic", "loft", "garret"),
    ),
    "mood": (
        ("furious", "angry", "raging"),
        ("sad", "gloomy", "tearful"),
        ("worried", "anxious", "nervous"),
        ("calm", "quiet", "relaxed"),
        ("happy", "cheerful", "glad"),
        ("thrilled", "ecstatic", "overjoyed"),
    ),
}
ATTRIBUTES = tuple(WORDS)
SHOWN = ("who", "place")  # clear in the frames; the others are faint
HEARD = ("act", "object")  # named in the subtitles of every scene
MOST_VALUES = max(len(values) for values in WORDS.values())

GRAMMAR = tuple("a the at and it is so that with who what where how feels look oh".split())
QUERIES = (
    "the {mood} {who} {act} the {object} at the {place}",
    "at the {place} a {mood} {who} {act} a {object}",
    "the {object} that the {mood} {who} {act} at the {place}",
)
CAPTIONS = (
    "a {mood} {who} {act} a {object} at the {place}",
    "at the {place} the {who} {act} a {object} and feels {mood}",
)
STATED = ("who", "object")  # one is seen, one is heard
# What a false statement is wrong about, by how often. At equal shares a small model learns what is seen, which comes
# sooner, and then stays there: it is right in three of four cases and is not taught to read.
WRONG = ("who", "object", "object")
STATEMENTS = ("it is the {who} with the {object}", "a {object} and a {who}", "the {object} that is with the {who}")
OPENINGS = ("", "oh", "look", "look at the", "it is so")
NUM_ANSWERS = 5
ASKED = ("who", "object", "object", "place")  # what a question asks for, by how often
QUESTIONS = {
    "who": "who {act} the {object}",
    "object": "what {act} the {who}",
    "place": "where the {who} {act}",
}


@dataclass(frozen=True)
class Scene:
    """A stretch of frames with fixed attributes."""

    start: int  # first frame
    stop: int  # one past the last frame
    values: dict[str, int]  # attribute -> value
    spoken: dict[str, str]  # attributes its subtitles name -> the word for it in all of them


@dataclass(frozen=True)
class Utterance:
    """One subtitle before its text is timed: the frames it covers and its words."""

    start: int
    stop: int
    words: tuple[str, ...]


@dataclass(frozen=True)
class World:
    """How rich the world is. Ranges include their ends."""

    num_scenes: tuple[int, int]
    scene_frames: tuple[int, int]  # frames of each scene
    values: int  # most values of an attribute
    synonyms: int  # words of a value that can be seen, 1 to 3
    spoken: int  # attributes named in a scene's subtitles, 1 to 5

    @property
    def sizes(self) -> dict[str, int]:
        """Attribute -> how many values it takes."""
        return {attribute: min(len(values), self.values) for attribute, values in WORDS.items()}

    def draw_scenes(self, rng: np.random.Generator) -> list[Scene]:
        """Draw the story of one video: scenes without gaps, from frame 0 on."""
        sizes = self.sizes
        cast = rng.choice(sizes["who"], 2, replace=False)
        values = {attribute: int(rng.integers(size)) for attribute, size in sizes.items()} | {"who": int(cast[0])}
        others = [attribute for attribute in ATTRIBUTES if attribute not in HEARD]
        scenes: list[Scene] = []
        start = 0
        for number in range(int(rng.integers(self.num_scenes[0], self.num_scenes[1] + 1))):
            if number:
                values = self.follow(rng, values, (int(cast[0]), int(cast[1])))
            stop = start + int(rng.integers(self.scene_frames[0], self.scene_frames[1] + 1))
            named = (*HEARD, *(str(name) for name in rng.choice(others, self.spoken - len(HEARD), replace=False)))
            scenes.append(Scene(start, stop, values, {name: self.say(rng, name, values[name]) for name in named}))
            start = stop
        return scenes

    def follow(self, rng: np.random.Generator, values: dict[str, int], cast: tuple[int, int]) -> dict[str, int]:
        """Apply the rules once: the attributes of the next scene, given this one's.

        The act always changes (80% to the next of the routine, else to any other); the place stays (60%) or moves one
        on; the two people of the cast take turns (50%); the object stays (50%) or is another; the mood stays (60%) or
        moves one step on its scale.
        """
        sizes = self.sizes
        ahead = 1 if rng.random() < 0.8 else int(rng.integers(1, sizes["act"]))
        place = (values["place"] + int(rng.random() >= 0.6)) % sizes["place"]
        who = values["who"] if rng.random() < 0.5 else cast[values["who"] == cast[0]]
        obj = values["object"]
        if rng.random() >= 0.5:
            obj = (obj + int(rng.integers(1, sizes["object"]))) % sizes["object"]
        mood = values["mood"]
        if rng.random() >= 0.6:
            step = 1 if rng.random() < 0.5 else -1
            mood += step if 0 <= mood + step < sizes["mood"] else -step
        return {"who": who, "act": (values["act"] + ahead) % sizes["act"], "object": obj, "place": place, "mood": mood}

    def draw_utterances(
        self, rng: np.random.Generator, scenes: list[Scene], fillers: tuple[str, ...]
    ) -> list[Utterance]:
        """Draw what is said: subtitles of 1-3 frames with gaps of 0-1, at least one a scene, none across a cut.

        Each names everything its scene is spoken about, in any order; half of them hold a filler word.
        """
        said: list[Utterance] = []
        for scene in scenes:
            start = min(scene.start + int(rng.integers(2)), scene.stop - 1)
            while start < scene.stop:
                stop = min(start + int(rng.integers(1, 4)), scene.stop)
                words = OPENINGS[int(rng.integers(len(OPENINGS)))].split()
                words += [str(word) for word in rng.permutation(list(scene.spoken.values()))]
                if fillers and rng.random() < 0.5:
                    words.insert(int(rng.integers(len(words) + 1)), fillers[int(rng.integers(len(fillers)))])
                said.append(Utterance(start, stop, tuple(words)))
                start = stop + int(rng.integers(2))
        return said

    def say(self, rng: np.random.Generator, attribute: str, value: int) -> str:
        """Name an attribute's value with one of its words; what is only heard has one name."""
        return WORDS[attribute][value][int(rng.integers(1 if attribute in HEARD else self.synonyms))]

    def describe(
        self, rng: np.random.Generator, templates: tuple[str, ...], scene: Scene, *, plainly: bool = False
    ) -> str:
        """Fill the attribute names of one of `templates` with words: what was said is quoted.

        What was not said goes by any of its names, or by its first one.
        """
        words = {
            name: WORDS[name][value][0] if plainly else self.say(rng, name, value)
            for name, value in scene.values.items()
        } | scene.spoken
        return templates[int(rng.integers(len(templates)))].format(**words)


@lru_cache(maxsize=4)
def filler_words(count: int) -> tuple[str, ...]:
    """Return `count` invented two- to four-syllable words that mean nothing and are no word of the world."""
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    base = len(syllables)
    known = set(GRAMMAR) | {word for values in WORDS.values() for names in values for word in names}
    words: list[str] = []
    number = base  # two syllables at least
    while len(words) < count:
        digits, rest = [], number
        while rest:
            digits.append(syllables[rest % base])
            rest //= base
        if (word := "".join(digits)) not in known:
            words.append(word)
        number += 1
    return tuple(words)


def base_vocabulary() -> tuple[str, ...]:
    """Every word a sentence of this world can hold, fillers apart, in a fixed order."""
    return GRAMMAR + tuple(word for values in WORDS.values() for names in values for word in names)
