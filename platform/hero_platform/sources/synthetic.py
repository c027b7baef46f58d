"""The synthetic corpus as a source: frames, subtitles and annotations generated from one hidden story per video.

No download: a video is a pure function of (seed, split, number), so any process that reads an id gets the same row, and
growing one split changes no other video. The world itself is `synthetic_world`; docs/data.md says what each task can
learn from which modality and how to make the corpus harder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any, Literal, get_args

import numpy as np

from hero_model.text import WordTokenizer
from hero_platform.sources import synthetic_world as world
from hero_platform.sources.base import Annotation, AnnotationKind, Planned, RawVideo, Reject, Subtitle
from hero_platform.sources.synthetic_world import Scene, Utterance, World

SPLITS = ("train", "val", "test")
Hidden = Literal["", "frames", "subtitles"]
NUM_SPECIAL = 5  # ids of the tokenizer that are no words
MARGIN = 0.1  # of an interval: subtitles start and end inside their frames, so that the official rule aligns them


class _Use(IntEnum):
    """One independent random stream per use."""

    STORY = 0
    SPEECH = 1
    FRAMES = 2
    PROJECTION = 3
    NOTES = 4
    SHUFFLE = 5


@dataclass(frozen=True)
class SyntheticSource:
    """Settings of a synthetic corpus; see docs/data.md for what makes it easier or harder."""

    num_train: int = 1000
    num_val: int = 100
    num_test: int = 200
    annotated_train: int = 80  # only the first of the train videos carry annotations; all of val and test do
    moments_per_video: int = 3
    questions_per_video: int = 3
    statement_pairs_per_video: int = 3  # a true statement and its opposite about the same scene
    captions_per_video: int = 2
    seed: int = 0
    frame_dim: int = 64
    interval_s: float = 1.5
    num_scenes: tuple[int, int] = (4, 6)  # least and most scenes of a video
    scene_frames: tuple[int, int] = (3, 7)  # least and most frames of a scene
    noise: float = 1.0  # length of a frame's noise; a clearly shown attribute has length 1
    faint: float = 0.15  # length of act, object and mood in a frame
    progress: float = 0.7  # length of the direction along which every scene unfolds from its first to its last frame
    values: int = 8  # most values an attribute takes
    spoken: int = 3  # attributes the subtitles of a scene name, of five: always act and object, and others
    synonyms: int = 3  # words a value may be called by, 1 to 3; acts and objects have one
    vocab_size: int = 256  # all tokens: special, meaningful, and meaningless fillers for the rest
    shuffle_subtitles: bool = False  # control: every subtitle's text comes from another video of its split
    hide: Hidden = ""  # the same corpus seen through one modality: frames are noise, or subtitles have no words

    def __post_init__(self) -> None:
        """Check the settings."""
        for name in ("num_train", "num_val", "num_test", "annotated_train"):
            if getattr(self, name) < 0:
                raise ValueError(f"synthetic corpus: {name} is {getattr(self, name)}; it must not be negative")
        if self.frame_dim < 2 or not self.interval_s > 0:
            raise ValueError("synthetic corpus: frame_dim must be at least 2 and interval_s above 0")
        for name in ("num_scenes", "scene_frames"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise ValueError(f"synthetic corpus: {name} is {(low, high)}; give (least, most), both at least 1")
        if not world.NUM_ANSWERS <= self.values <= world.MOST_VALUES:
            raise ValueError(
                f"synthetic corpus: values is {self.values}; give {world.NUM_ANSWERS} (answers to a question) "
                f"to {world.MOST_VALUES}"
            )
        if not len(world.HEARD) <= self.spoken <= len(world.ATTRIBUTES):
            raise ValueError(
                f"synthetic corpus: spoken is {self.spoken}; give {len(world.HEARD)} to {len(world.ATTRIBUTES)}"
            )
        if not 1 <= self.synonyms <= 3:
            raise ValueError(f"synthetic corpus: synonyms is {self.synonyms}; the world has 1 to 3 words per value")
        smallest = NUM_SPECIAL + len(world.base_vocabulary())
        if self.vocab_size < smallest:
            raise ValueError(f"synthetic corpus: vocab_size is {self.vocab_size}; the world needs at least {smallest}")
        if self.hide not in get_args(Hidden):
            raise ValueError(f"synthetic corpus: hide is {self.hide!r}; give frames, subtitles or nothing")
        if self.shuffle_subtitles and 1 in self._sizes().values():
            raise ValueError("synthetic corpus: shuffle_subtitles needs at least two videos in a split")

    # --- Source -------------------------------------------------------------------------------------------------

    def plan(self) -> tuple[list[Planned], list[Reject]]:
        """List all videos, train then val then test; nothing is ever rejected.

        Raises:
            ValueError: the corpus is empty.
        """
        if not any(self._sizes().values()):
            raise ValueError("synthetic corpus: no videos; set num_train, num_val or num_test above 0")
        planned = []
        for split, size in self._sizes().items():
            for number in range(size):
                num_frames = self.scenes(split, number)[-1].stop
                planned.append(Planned(f"{split}-{number:06d}", num_frames, num_frames * self.frame_dim * 4))
        return planned, []

    def read(self, ids: Sequence[str]) -> Iterator[RawVideo | Reject]:
        """Generate each of `ids`; an id this corpus does not hold becomes a `Reject`."""
        tokenizer = self.tokenizer()
        projection = self.projection()
        for video in ids:
            split, _, digits = video.partition("-")
            if not digits.isdigit() or int(digits) >= self._sizes().get(split, 0):
                yield Reject(video, "synthetic corpus", "no such video: ids are like train-000012")
                continue
            yield self._video(video, split, int(digits), tokenizer, projection)

    def provenance(self) -> dict[str, Any]:
        """Give all settings and the generator's version."""
        return {"source": "synthetic", "generator": 4, **asdict(self)}

    def annotations(self) -> Iterator[Annotation | Reject]:
        """Generate moments, questions, statements and captions of every annotated video, video after video."""
        tokenizer = self.tokenizer()
        for split, size in self._sizes().items():
            for number in range(min(size, self.annotated_train) if split == "train" else size):
                yield from self._annotate(split, number, tokenizer)

    # --- words --------------------------------------------------------------------------------------------------

    def words(self) -> tuple[str, ...]:
        """The vocabulary in the order of ids, for `TokenizerSpec.of_words`: the world's words, then fillers."""
        return world.base_vocabulary() + self._fillers()

    def tokenizer(self) -> WordTokenizer:
        """The word-level tokenizer whose ids the rows hold."""
        return WordTokenizer(self.words())

    # --- the hidden story ---------------------------------------------------------------------------------------

    @property
    def world(self) -> World:
        """The part of the settings that frames and files do not matter to."""
        return World(self.num_scenes, self.scene_frames, self.values, self.synonyms, self.spoken)

    def scenes(self, split: str, number: int) -> list[Scene]:
        """The latent scenes of one video: what frames, subtitles and annotations are generated from."""
        return self.world.draw_scenes(self._rng(_Use.STORY, split, number))

    def utterances(self, split: str, number: int) -> list[Utterance]:
        """What is said in one video, before `shuffle_subtitles`."""
        rng = self._rng(_Use.SPEECH, split, number)
        return self.world.draw_utterances(rng, self.scenes(split, number), self._fillers())

    def projection(self) -> dict[str, np.ndarray]:
        """Directions in frame space, about unit length: attribute -> [values, V], and "progress" -> [1, V]."""
        rng = np.random.default_rng((self.seed, _Use.PROJECTION))
        sizes = {**self.world.sizes, "progress": 1}
        scale = self.frame_dim**-0.5
        return {name: rng.standard_normal((size, self.frame_dim)) * scale for name, size in sizes.items()}

    # --- rows ---------------------------------------------------------------------------------------------------

    def _video(
        self, video: str, split: str, number: int, tokenizer: WordTokenizer, projection: dict[str, np.ndarray]
    ) -> RawVideo:
        said = self.utterances(split, number)
        words = self._shuffled(split, number, said) if self.shuffle_subtitles else [item.words for item in said]
        texts = ["" if self.hide == "subtitles" else " ".join(spoken) for spoken in words]
        frames = self._frames(split, number, projection)
        margin = MARGIN * self.interval_s
        return RawVideo(
            id=video,
            split=split,
            duration_s=len(frames) * self.interval_s,
            interval_s=self.interval_s,
            frames=frames,
            subtitles=[
                Subtitle(item.start * self.interval_s + margin, item.stop * self.interval_s - margin, text)
                for item, text in zip(said, texts, strict=True)
            ],
            token_ids=tokenizer.encode(texts, "sub"),
            segment_frames=[list(range(item.start, item.stop)) for item in said],
        )

    def _frames(self, split: str, number: int, projection: dict[str, np.ndarray]) -> np.ndarray:
        """[F, V] float32: the sum of the scene's directions, how far the scene is, and noise; only noise if hidden."""
        scenes = self.scenes(split, number)
        noise = self._rng(_Use.FRAMES, split, number).standard_normal((scenes[-1].stop, self.frame_dim))
        frames = noise * (self.noise * self.frame_dim**-0.5)
        for scene in scenes if self.hide != "frames" else ():
            done = np.linspace(-1.0, 1.0, scene.stop - scene.start)[:, None]
            frames[scene.start : scene.stop] += self.progress * done * projection["progress"]
            for attribute, value in scene.values.items():
                strength = 1.0 if attribute in world.SHOWN else self.faint
                frames[scene.start : scene.stop] += strength * projection[attribute][value]
        return frames.astype(np.float32)

    def _shuffled(self, split: str, number: int, said: list[Utterance]) -> list[tuple[str, ...]]:
        """Texts for these subtitles, the k-th from the video that stands a k-dependent distance away in the split."""
        size = self._sizes()[split]
        texts = []
        for position in range(len(said)):
            shift = int(self._rng(_Use.SHUFFLE, split, position).integers(1, size))
            donor = self.utterances(split, (number + shift) % size)
            texts.append(donor[position % len(donor)].words)
        return texts

    def _annotate(self, split: str, number: int, tokenizer: WordTokenizer) -> Iterator[Annotation]:
        """All annotations of one video, each of a kind about another scene: never more of a kind than scenes."""
        rng = self._rng(_Use.NOTES, split, number)
        scenes = self.scenes(split, number)

        def note(kind: AnnotationKind, rank: int | str, scene: Scene, text: str, **more: Any) -> Annotation:
            return Annotation(
                kind=kind,
                split=split,
                id=f"{split}-{number:06d}-{kind[0]}{rank}",
                video=f"{split}-{number:06d}",
                text=text,
                tokens=tokenizer.encode([text], "query")[0],
                start_s=scene.start * self.interval_s,
                end_s=scene.stop * self.interval_s,
                **more,
            )

        for rank, scene in enumerate(self._pick(rng, scenes, self.moments_per_video)):
            yield note("moments", rank, scene, self.world.describe(rng, world.QUERIES, scene))
        for rank, scene in enumerate(self._pick(rng, scenes, self.questions_per_video)):
            asked = str(rng.choice(world.ASKED))
            text = self.world.describe(rng, (world.QUESTIONS[asked],), scene)
            answers, label = self._answers(rng, asked, scene, scenes)
            tokens = tokenizer.encode(answers, "query")
            yield note("questions", rank, scene, text, answers=answers, answers_tokens=tokens, label=label)
        for rank, scene in enumerate(self._pick(rng, scenes, self.statement_pairs_per_video)):
            for half, (text, label) in enumerate(self._opposites(rng, scene, scenes)):
                yield note("statements", f"{rank}-{half}", scene, text, label=label)
        for rank, scene in enumerate(self._pick(rng, scenes, self.captions_per_video)):
            yield note("captions", rank, scene, self.world.describe(rng, world.CAPTIONS, scene, plainly=True))

    def _pick(self, rng: np.random.Generator, scenes: list[Scene], count: int) -> list[Scene]:
        """`count` scenes, or as many as there are, each unlike all others of the video, so that a text is about one."""
        alone = [scene for scene in scenes if sum(other.values == scene.values for other in scenes) == 1]
        return [alone[i] for i in sorted(rng.permutation(len(alone))[:count])]

    def _answers(
        self, rng: np.random.Generator, asked: str, scene: Scene, scenes: list[Scene]
    ) -> tuple[tuple[str, ...], int]:
        """Five words for `asked`, one right; one of the wrong ones is right for another scene, where there is one.

        What was said in a scene is quoted.
        """
        right = scene.values[asked]
        said = [*scenes, scene]  # its own word wins over another scene's for the same
        quoted = {other.values[asked]: other.spoken[asked] for other in said if asked in other.spoken}
        near = {other.values[asked] for other in scenes if other.values[asked] != right}
        values = [int(value) for value in rng.permutation(self.world.sizes[asked]) if value != right]
        values.sort(key=lambda value: value in near)  # stable: those of no scene first, in random order
        wrong = [*values[: world.NUM_ANSWERS - 2], values[-1]]
        options = [right, *wrong]
        order = rng.permutation(world.NUM_ANSWERS)
        words = [quoted.get(value) or self.world.say(rng, asked, value) for value in options]
        return tuple(words[i] for i in order), int(np.argmin(order))

    def _opposites(self, rng: np.random.Generator, scene: Scene, scenes: list[Scene]) -> list[tuple[str, int]]:
        """A true statement and its opposite, in any order; one word of that names what is in no scene of the video.

        None if the video has everything, which takes more scenes than an attribute has values.
        """
        template = world.STATEMENTS[int(rng.integers(len(world.STATEMENTS)))]
        words = {name: self.world.say(rng, name, scene.values[name]) for name in world.STATED} | scene.spoken
        changed = str(rng.choice(world.WRONG))
        told = {other.values[changed] for other in scenes}
        absent = [value for value in range(self.world.sizes[changed]) if value not in told]
        if not absent:
            return []
        opposite = words | {changed: self.world.say(rng, changed, int(rng.choice(absent)))}
        pair = [(template.format(**words), 1), (template.format(**opposite), 0)]
        return pair if rng.integers(2) else pair[::-1]

    def _fillers(self) -> tuple[str, ...]:
        return world.filler_words(self.vocab_size - NUM_SPECIAL - len(world.base_vocabulary()))

    def _sizes(self) -> dict[str, int]:
        return dict(zip(SPLITS, (self.num_train, self.num_val, self.num_test), strict=True))

    def _rng(self, use: _Use, split: str, number: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, use, SPLITS.index(split), number))
