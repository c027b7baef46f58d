"""A folder of films to a feature store: found, decoded, encoded, heard where they have no subtitles, then built."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hero_platform import files
from hero_platform.sources.base import Reject
from hero_platform.sources.splits import describe_paths
from hero_platform.sources.video import VideoSource
from hero_platform.store import plan as planning
from hero_platform.store.build import BuildSettings, build, ray_cluster
from hero_platform.store.manifest import MANIFEST, Manifest
from hero_platform.store.media import ENCODERS, ROOT
from hero_platform.video import encoders
from hero_platform.video.decoder import Limits
from hero_platform.video.extract import Job, Pools, extract
from hero_platform.video.films import Film, describe_films, find_films
from hero_platform.video.speech import describe_speech, listen
from hero_platform.video.views import chunk_intervals
from hero_platform.video.work import FilmRecord, Work

logger = logging.getLogger(__name__)

LEAST_S = 0.001  # of an interval
DEFAULT_CLIP_S = 60.0  # as the official HowTo100M data (hero.md 5.4)


@dataclass(frozen=True)
class FilmSettings:
    """What decides the features and texts of a store, besides the films."""

    root: str
    encoders: tuple[str, ...] = ()  # in the order of their features; none: the one that works offline
    interval_s: float = 1.5
    clip_s: float = DEFAULT_CLIP_S  # 0: films are never cut
    languages: tuple[str, ...] = ("en", "eng")
    by_path: bool = False  # ids are paths, not names
    speech: str = ""  # folder of a speech model
    splits: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)

    @property
    def place(self) -> str:
        """The root as the store keeps it: absolute."""
        return self.root.rstrip("/") if files.is_remote(self.root) else os.path.abspath(self.root)

    def __post_init__(self) -> None:
        """Raise ValueError: a clip would be shorter than an interval, or there would be no end of frames."""
        if not self.interval_s > 0 or self.clip_s < 0 or 0 < self.clip_s < self.interval_s:
            raise ValueError(f"clips of {self.clip_s:g} s at {self.interval_s:g} s a frame: one of them is too short")
        if self.interval_s < LEAST_S:
            raise ValueError(f"--interval {self.interval_s:g}: the least is {LEAST_S:g} s; films have fewer pictures")

    @property
    def clip_intervals(self) -> int:
        """Intervals of a clip; 0: all."""
        return int(self.clip_s / self.interval_s + 1e-9)

    def find(self) -> tuple[list[Film], list[Reject]]:
        """The films, and what cannot be one. Raises ValueError: there is none."""
        return find_films(self.place, self.languages, by_path=self.by_path)


def build_from_films(
    settings: FilmSettings, out: str, store: BuildSettings, pools: Pools, *, progress: bool = True
) -> Manifest:
    """Build the store at `out`, or go on with an interrupted build of the same films there, film by film.

    Args:
        settings: the films, and how they become features.
        out: a folder or `s3://` URL, as in `store.build.build`; the work folder stands beside it.
        store: what the store is made like; with a tokenizer of special ids only, subtitles are left out.
        pools: how many decode and encode at once.
        progress: show bars with rate and time left on stderr.

    Raises:
        ValueError: there are no films, an encoder cannot be had, or `out` holds another build.
    """
    films, rejects = settings.find()
    with_text = store.tokenizer.kind != "ids"
    speech = _speech_model(settings.speech)
    joined = encoders.load(settings.encoders)
    described = _describe(settings, films, encoders.describe(joined), speech)
    described |= {"texts": with_text, "device": pools.device}
    if planning.has_settings(out, store.describe(described)) and files.exists(files.join(out, MANIFEST)):
        Work.beside(out).remove()  # of a build that was killed between its last two steps
        return Manifest.read(out)
    job = _job(settings, Work.open(out, _extracted_by(described)), joined, described)
    with job.work.alone(), ray_cluster(pools.cores):
        records, bad, took = extract(films, job, pools, progress=progress)
        if with_text:
            _hear(records, settings, speech, job, pools)
        else:
            logger.warning("no tokenizer is named, so subtitles are left out: --tokenizer DIR has RoBERTa's vocabulary")
        source = VideoSource(
            root=settings.place,
            work=job.work,
            records=tuple(records),
            rejects=(*rejects, *bad),
            described=described,
            width=joined.width,
            chunk_intervals=chunk_intervals(job.views),
            interval_s=settings.interval_s,
            clip_intervals=settings.clip_intervals,
            with_text=with_text,
            splits=settings.splits,
        )
        manifest = build(
            source, out, **store.as_arguments(), workers=pools.cores, progress=progress, record={"extraction": took}
        )
        job.work.remove()
    return manifest


def _job(settings: FilmSettings, work: Work, joined: encoders.Joined, described: Mapping[str, Any]) -> Job:
    return Job(
        root=settings.place,
        work=work,
        encoders=settings.encoders,
        described=json.dumps(described[ENCODERS]),
        views=tuple(encoder.view for encoder in joined.encoders),
        interval_s=settings.interval_s,
        languages=settings.languages,
        limits=settings.limits,
    )


def _hear(
    records: list[FilmRecord], settings: FilmSettings, speech: dict[str, str] | None, job: Job, pools: Pools
) -> None:
    """Have films without subtitles transcribed, or say that they stay without text."""
    silent = [record.film for record in records if not (record.film.sidecar or record.subtitles)]
    if silent and speech:
        heard = listen(silent, settings.speech, job, pools)
        logger.warning("speech was found in %d of %d films without subtitles", heard, len(silent))
    elif silent and not settings.speech:
        logger.warning("%d films have no subtitles and stay without text: --speech names a model", len(silent))


def _speech_model(folder: str) -> dict[str, str] | None:
    """The speech model, for the manifest; None where none is named or none is there, which one line says."""
    if folder and not os.path.isdir(folder):
        logger.warning("%s: no speech model there, so films without subtitles stay without text", folder)
        return None
    return describe_speech(folder) if folder else None


def _describe(
    settings: FilmSettings, films: list[Film], described: list[dict[str, Any]], speech: dict[str, str] | None
) -> dict[str, Any]:
    """The manifest's source entry."""
    return {
        "kind": "video",
        "features": files.name_of(settings.place),
        ROOT: settings.place,
        "films_sha256": describe_films(settings.place, films),
        ENCODERS: described,
        "interval_s": settings.interval_s,
        "clip_s": settings.clip_s,
        "languages": list(settings.languages),
        "speech": speech,
        "ids": "path" if settings.by_path else "name",
        "splits": describe_paths(settings.splits) or "train",
    }


def _extracted_by(described: Mapping[str, Any]) -> dict[str, Any]:
    """What of the settings decides the files in the work folder."""
    return {name: described[name] for name in (ROOT, ENCODERS, "interval_s", "languages", "speech", "device")}
