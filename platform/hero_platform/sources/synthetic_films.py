"""The synthetic corpus as films: its hidden stories drawn and encoded, so that everything from pixels on can be shown.

A film shows what a frame feature of the same video is made of (`synthetic`): the place is the ground, who is there is a
large figure that crosses the picture while the scene lasts, and act, object and mood are small and faint. What is said
lies beside it as SRT. Nothing is drawn that a feature does not hold.

With `write_texts` the films become a store as anybody's do: `jobs.build_store video`, then `annotations --corpus tvr`.
"""

from __future__ import annotations

import colorsys
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import av
import numpy as np

from hero_platform import files
from hero_platform.sources.base import Annotation, RawVideo
from hero_platform.sources.synthetic import SyntheticSource
from hero_platform.sources.synthetic_world import Scene

WIDTH, HEIGHT = 192, 144  # pixels
NOISE = 8.0  # standard deviation of the noise, of 255 ...
GRAIN = 16  # ... in squares of so many pixels: what is finer is lost when an encoder makes a picture smaller
FAINT = 0.35  # contrast of what is faint
_RATES = range(4, 61)  # pictures a second that are tried
_Y, _X = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
_FIGURES: tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], ...] = (  # around (0, 0), of radius 1
    lambda x, y: np.hypot(x, y) < 1,
    lambda x, y: np.maximum(abs(x), abs(y)) < 0.85,
    lambda x, y: (y > -0.9) & (y < 0.8) & (abs(x) < (y + 0.9) * 0.6),
    lambda x, y: abs(x) + abs(y) < 1.1,
    lambda x, y: (np.maximum(abs(x), abs(y)) < 0.95) & (np.minimum(abs(x), abs(y)) < 0.3),
    lambda x, y: abs(np.hypot(x, y) - 0.75) < 0.25,
    lambda x, y: (np.maximum(abs(x), abs(y)) < 0.9) & (np.floor((x + 1) * 3) % 2 == 0),
    lambda x, y: (abs(x) < 0.35) & (abs(y) < 1.1),
)


def write_films(folder: Path, corpus: SyntheticSource, videos: Iterable[str] | None = None) -> list[Path]:
    """Write `<id>.mp4` and `<id>.srt` of videos of a corpus; returns the films.

    Args:
        folder: where; made if it is not there.
        corpus: its settings; one whose frames or subtitles are hidden or shuffled is drawn as it was before that.
        videos: ids; None: all of them.

    Raises:
        ValueError: a video is not in the corpus, or no rate fits a whole number of pictures between two frames.
    """
    rate = next((rate for rate in _RATES if (corpus.interval_s * rate).is_integer()), None)
    if rate is None:
        raise ValueError(f"no rate has a whole number of pictures in {corpus.interval_s} s: choose another interval_s")
    wanted = list(videos) if videos is not None else [planned.id for planned in corpus.plan()[0]]
    films = []
    for video in corpus.read(wanted):
        if not isinstance(video, RawVideo):
            raise ValueError(f"{video.id}: {video.reason}")
        split, _, digits = video.id.partition("-")
        film = folder / f"{video.id}.mp4"
        _write_film(film, corpus, corpus.scenes(split, int(digits)), rate, int(digits))
        files.write_bytes(film.with_suffix(".srt"), _srt(video).encode())
        films.append(film)
    return films


def write_texts(folder: Path, corpus: SyntheticSource) -> None:
    """Write the texts that belong to the films of a corpus, in the forms that `jobs.build_store` reads.

    `words.txt` is the vocabulary (`--tokenizer`), `<split>.json` lists the videos of a split (`--splits`) and
    `<split>.jsonl` has its moments as TVR publishes them (`annotations --corpus tvr`).

    Args:
        folder: where; made if it is not there.
        corpus: its settings.
    """
    files.write_bytes(folder / "words.txt", "".join(f"{word}\n" for word in corpus.words()).encode())
    videos: dict[str, list[str]] = {}
    for planned in corpus.plan()[0]:
        videos.setdefault(planned.id.partition("-")[0], []).append(planned.id)
    moments: dict[str, list[str]] = {split: [] for split in videos}
    for number, note in enumerate(corpus.annotations()):  # numbers of another kind are left out
        if isinstance(note, Annotation) and note.kind == "moments":
            row = {"desc_id": number, "desc": note.text, "vid_name": note.video, "ts": [note.start_s, note.end_s]}
            moments[note.split].append(json.dumps(row) + "\n")
    for split, ids in videos.items():
        files.write_json(folder / f"{split}.json", ids)
        files.write_bytes(folder / f"{split}.jsonl", "".join(moments[split]).encode())


def _write_film(film: Path, corpus: SyntheticSource, scenes: list[Scene], rate: int, seed: int) -> None:
    """Draw and encode all scenes."""
    rng = np.random.default_rng((corpus.seed, seed))
    sizes = corpus.world.sizes
    per_frame = round(corpus.interval_s * rate)
    with files.staged(film) as partial, av.open(str(partial), "w", format="mp4") as made:
        stream = made.add_stream("libx264", rate=rate, options={"crf": "26", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.gop_size = 2 * rate  # a player finds a moment quickly
        stream.thread_count = 1
        for scene in scenes:
            count = (scene.stop - scene.start) * per_frame
            still, colour = ground(scene, sizes), _colour(scene.values["who"] / sizes["who"], 0.9, 1.0)
            for number in range(count):
                noise = rng.normal(0, NOISE, (HEIGHT // GRAIN, WIDTH // GRAIN, 1))
                picture = still.copy()
                picture[figure(scene.values["who"], number / max(1, count - 1))] = colour
                picture += noise.repeat(GRAIN, axis=0).repeat(GRAIN, axis=1)
                shown = np.ascontiguousarray(picture.clip(0, 255).astype(np.uint8))
                made.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        made.mux(stream.encode(None))


def ground(scene: Scene, sizes: dict[str, int]) -> np.ndarray:
    """What stays the same in a scene: its place, and faintly its act, object and mood. `[HEIGHT, WIDTH, 3]`, 0-255."""
    share = scene.values["place"] / sizes["place"]
    stripes = ((_X * np.cos(np.pi * share) + _Y * np.sin(np.pi * share)) // 12 % 2)[..., None]
    picture = _colour(share, 0.55, 0.45) * (1 - stripes) + _colour(share, 0.45, 0.6) * stripes
    rows = slice(int(HEIGHT * 0.86), int(HEIGHT * 0.97))
    for name, left in (("act", 0.06), ("object", 0.39), ("mood", 0.72)):  # a bar code each, along the lower edge
        bits = scene.values[name] + 1
        for bit in range(5):
            if bits >> bit & 1:
                start = int(WIDTH * (left + 0.045 * bit))
                spot = picture[rows, start : start + int(WIDTH * 0.035)]
                spot += FAINT * (255 * (bit % 2) - spot)
    return picture.astype(np.float32)


def figure(who: int, done: float) -> np.ndarray:
    """Where somebody stands in a picture when a scene is so far, 0 to 1: `[HEIGHT, WIDTH]` bool."""
    x = (_X - WIDTH * (0.25 + 0.5 * done)) / (HEIGHT * 0.28)
    y = (_Y - HEIGHT * 0.48) / (HEIGHT * 0.28)
    return _FIGURES[who % len(_FIGURES)](x, y)


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    """`[3]` float64, 0 to 255."""
    return 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))


def _srt(video: RawVideo) -> str:
    """The subtitles of a video as SRT."""
    return "".join(
        f"{number}\n{_clock(said.start_s)} --> {_clock(said.end_s)}\n{said.text}\n\n"
        for number, said in enumerate(video.subtitles, start=1)
    )


def _clock(seconds: float) -> str:
    """`00:01:02,500`."""
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d},{ms % 1000:03d}"
