"""A store from a folder of films: what `jobs.build_store video` does."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from jobs.cli import write_json

if TYPE_CHECKING:
    from hero_platform.store.manifest import Manifest
    from hero_platform.video.build import FilmSettings


def build_video(own: argparse.Namespace, out: str, feature_set: str) -> Manifest | None:
    """Build the store, or say what would be built (None)."""
    from hero_model.config import TextIds
    from hero_platform.store.build import BuildSettings
    from hero_platform.store.tokens import TokenizerSpec
    from hero_platform.video.build import build_from_films
    from hero_platform.video.extract import Pools

    settings = film_settings(own)
    if own.dry_run:
        _dry_run(own, settings, out, feature_set)
        return None
    tokenizer = TokenizerSpec.read(own.tokenizer) if own.tokenizer else TokenizerSpec.ids_only(TextIds())
    store = BuildSettings(own.corpus, feature_set, tokenizer, own.keep_float32, int(own.shard_mb * 1e6))
    return build_from_films(settings, out, store, Pools(own.workers, own.encoder_workers, own.encoder_gpus))


def film_settings(own: argparse.Namespace) -> FilmSettings:
    """The arguments as a value."""
    from hero_platform.video.build import FilmSettings
    from hero_platform.video.decoder import Limits

    return FilmSettings(
        root=own.path,
        encoders=tuple(own.encoder),
        interval_s=own.interval,
        clip_s=own.clip_seconds,
        languages=tuple(own.language),
        by_path=own.ids == "path",
        speech=own.speech,
        splits=tuple(own.splits),
        limits=Limits(seconds=own.time_limit),
    )


def feature_set_of(own: argparse.Namespace) -> str:
    """What the features are called: the encoders and the interval, as far as a folder's name allows."""
    names = [name.rstrip("/").rsplit("/", 1)[-1] for name in own.encoder] or ["efficientnet-lite0"]
    return own.feature_set or re.sub(r"[^A-Za-z0-9._=-]+", "-", f"{'_'.join(names)}_{own.interval:g}")


def _dry_run(own: argparse.Namespace, settings: FilmSettings, out: str, feature_set: str) -> None:
    films, rejects = settings.find()
    size = sum(film.size for film in films)
    beside = sum(bool(film.sidecar) for film in films)
    print(f"would build {out} ({own.corpus}, {feature_set})")
    print(f"from {len(films):,} films, {size / 1e6:,.1f} MB, {beside:,} with a subtitle file beside them")
    print(f"with {own.workers} decoders and {own.encoder_workers} encoders; {len(rejects):,} files already rejected")
    write_json(own.json, {
        "store": out, "corpus": own.corpus, "feature_set": feature_set, "films": len(films), "bytes": size,
        "with_subtitle_file": beside, "rejects": len(rejects), "workers": own.workers,
        "encoder_workers": own.encoder_workers,
    })  # fmt: skip
