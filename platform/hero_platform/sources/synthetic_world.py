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
SHOWN = ("who", "act", "place")  # clear in the frames, one of them a scene is also spoken about
HIDDEN = ("object", "mood")  # faint in the frames, always spoken about
SIZES = {attribute: len(values) for attribute, values in WORDS.items()}

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
UTTERANCES = ("look {} and {}", "oh {} it is so {}", "the {} with the {}", "{} {}")
QUESTIONS = {
    "who": "who {act} the {object} at the {place}",
    "object": "what is it that the {who} {act} at the {place}",
    "place": "where is it that the {who} {act} the {object}",
    "mood": "how feels the {who} who {act} the {object}",
}


@dataclass(frozen=True)
class Scene:
    """A stretch of frames with fixed attributes."""

    start: int  # first frame
    stop: int  # one past the last frame
    values: dict[str, int]  # attribute -> value
    spoken: tuple[str, str, str]  # attributes its subtitles may name: the hidden ones and one of the shown


@dataclass(frozen=True)
class Utterance:
    """One subtitle before its text is timed: the frames it covers and its words."""

    start: int
    stop: int
    scene: int
    words: tuple[str, ...]


def draw_scenes(rng: np.random.Generator, num_scenes: tuple[int, int], scene_frames: tuple[int, int]) -> list[Scene]:
    """Draw the latent story of one video. Both ranges include their ends; `scene_frames` is per scene."""
    cast = rng.choice(SIZES["who"], 2, replace=False)
    values = {attribute: int(rng.integers(size)) for attribute, size in SIZES.items()} | {"who": int(cast[0])}
    scenes: list[Scene] = []
    start = 0
    for number in range(int(rng.integers(num_scenes[0], num_scenes[1] + 1))):
        if number:
            values = follow(rng, values, (int(cast[0]), int(cast[1])))
        stop = start + int(rng.integers(scene_frames[0], scene_frames[1] + 1))
        spoken = ("object", "mood", str(rng.choice(SHOWN)))
        scenes.append(Scene(start, stop, values, spoken))
        start = stop
    return scenes


def follow(rng: np.random.Generator, values: dict[str, int], cast: tuple[int, int]) -> dict[str, int]:
    """Apply the rules of the world once: the attributes of the next scene, given this one's.

    The act always changes (80% to the next of the routine, else to any other); the place stays (60%) or moves one on;
    the two people of the cast take turns (50%); the object stays (50%) or is another; the mood stays (60%) or moves
    one step on its scale.
    """
    act, num_acts = values["act"], SIZES["act"]
    if rng.random() < 0.8:
        act = (act + 1) % num_acts
    else:
        act = (act + int(rng.integers(1, num_acts))) % num_acts
    place = (values["place"] + int(rng.random() >= 0.6)) % SIZES["place"]
    who = values["who"] if rng.random() < 0.5 else cast[values["who"] == cast[0]]
    obj = values["object"]
    if rng.random() >= 0.5:
        obj = (obj + int(rng.integers(1, SIZES["object"]))) % SIZES["object"]
    mood = values["mood"]
    if rng.random() >= 0.6:
        step = 1 if rng.random() < 0.5 else -1
        mood += step if 0 <= mood + step < SIZES["mood"] else -step
    return {"who": who, "act": act, "object": obj, "place": place, "mood": mood}


def draw_utterances(
    rng: np.random.Generator, scenes: list[Scene], synonyms: int, fillers: tuple[str, ...]
) -> list[Utterance]:
    """Draw what is said: each scene has at least one subtitle of 1-3 frames, each naming two spoken attributes.

    The first subtitle of a scene names its object, so everything hidden from the frames is said somewhere.
    """
    said: list[Utterance] = []
    for number, scene in enumerate(scenes):
        start = scene.start + int(rng.integers(2))
        first = True
        while start < scene.stop:
            stop = min(start + int(rng.integers(1, 4)), scene.stop)
            named = list(rng.permutation(scene.spoken)[:2])
            if first and "object" not in named:
                named[0] = "object"
            picked = [say(rng, str(attribute), scene.values[str(attribute)], synonyms) for attribute in named]
            words = UTTERANCES[int(rng.integers(len(UTTERANCES)))].format(*picked).split()
            if fillers and rng.random() < 0.5:
                words.insert(int(rng.integers(len(words) + 1)), fillers[int(rng.integers(len(fillers)))])
            said.append(Utterance(start, stop, number, tuple(words)))
            start = stop + int(rng.integers(2))
            first = False
    return said


def say(rng: np.random.Generator, attribute: str, value: int, synonyms: int) -> str:
    """Name an attribute's value with one of its first `synonyms` words."""
    return WORDS[attribute][value][int(rng.integers(synonyms))]


def describe(rng: np.random.Generator, template: str, values: dict[str, int], synonyms: int) -> str:
    """Fill a template's attribute names with words."""
    return template.format(**{attribute: say(rng, attribute, value, synonyms) for attribute, value in values.items()})


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
