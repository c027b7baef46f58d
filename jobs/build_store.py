"""Build a feature store, add annotations to one, or look into one: python -m jobs.build_store {lmdb,npz,...}."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jobs.cli import Parser, add_common, program_of, run_job, write_json
from jobs.store_sources import add_sources, chosen_source

if TYPE_CHECKING:
    from hero_platform.sources.base import Source
    from hero_platform.store.manifest import Manifest
    from hero_platform.store.reader import FeatureStore

PROGRAM = program_of("jobs.build_store")
_EXAMPLES = f"""examples:
  {PROGRAM} lmdb --txt-db txt_db/tv_subtitles.db --video-db video_db/tv --corpus tv
  {PROGRAM} npz --features features --subtitles subs.jsonl --tokenizer roberta --corpus mine
  {PROGRAM} conquer tvr_feature_release.tar.gz --subtitles subs.jsonl --tokenizer roberta --corpus tv
  {PROGRAM} video films --tokenizer roberta --corpus mine
  {PROGRAM} synthetic --videos 1000 --seed 0
  {PROGRAM} annotations --corpus tvr --split val tvr_val_release.jsonl --store outputs/stores/tvr/x
  {PROGRAM} annotations --corpus tv --splits txt_db/pretrain_splits/tv_train.json txt_db/pretrain_splits/tv_val.json
  {PROGRAM} inspect outputs/stores/synthetic/synthetic"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code (0 done, 1 a damaged store, 2 a mistake in the call or its input)."""
    own = parser().parse_args(argv)
    job = {"inspect": _inspect, "annotations": _annotations, "video": _video}.get(own.command, _build)
    return run_job(PROGRAM, lambda: job(own))


def _build(own: argparse.Namespace) -> int:
    """Build a store from the named source."""
    from hero_platform import home
    from hero_platform.store.build import build

    home.check_name("corpus", own.corpus)
    if own.name:
        home.check_name("store", own.name)
    with chosen_source(own) as (source, tokenizer, feature_set):
        out = own.out or home.store_dir(own.corpus, own.name or feature_set)
        if own.dry_run:
            return _dry_run(own, source, out, feature_set)
        manifest = build(
            source,
            out,
            corpus=own.corpus,
            feature_set=feature_set,
            tokenizer=tokenizer,
            shard_bytes=int(own.shard_mb * 1e6),
            keep_float32=own.keep_float32,
            workers=own.workers,
        )
    return _built(own, out, manifest)


def _video(own: argparse.Namespace) -> int:
    """Build a store from a folder of films."""
    from hero_platform import home
    from jobs.store_video import build_video, feature_set_of

    home.check_name("corpus", own.corpus)
    feature_set = feature_set_of(own)
    out = own.out or home.store_dir(own.corpus, own.name or feature_set)
    manifest = build_video(own, out, feature_set)
    return 0 if manifest is None else _built(own, out, manifest)


def _built(own: argparse.Namespace, out: str, manifest: Manifest) -> int:
    """Say what a finished store holds."""
    from hero_platform import transfer

    totals = {name: manifest.total(f"num_{name}") for name in ("rows", "frames", "segments", "tokens", "bytes")}
    print(f"store    {out}\ndigest   {manifest.digest}")
    print(f"videos   {totals['rows']:,} in {len(manifest.shards)} shards, {totals['bytes'] / 1e6:,.1f} MB")
    print(f"rejects  {manifest.num_rejects:,}" + (" (see rejects.jsonl there)" if manifest.num_rejects else ""))
    print(f"rate     {manifest.build['videos_per_s']:,.1f} videos/s, {manifest.build['megabytes_per_s']:,.1f} MB/s")
    if took := manifest.build.get("extraction"):
        rate = took["film_seconds"] / max(took["seconds"], 1e-9)
        print(f"films    {rate:,.1f} s of film a second, {rate / took['cores']:,.1f} a core")
    if transfer.TOTAL.requests:
        print(f"s3       {transfer.TOTAL}")
    print(f"next     {PROGRAM} inspect {out}")
    result = {
        "store": out,
        "digest": manifest.digest,
        **totals,
        "rejects": manifest.num_rejects,
        "build": manifest.build,
        "s3": transfer.TOTAL.as_dict(),
    }
    write_json(own.json, result)
    return 0


def _dry_run(own: argparse.Namespace, source: Source, out: str, feature_set: str) -> int:
    """Say what a build would read and write."""
    planned, rejects = source.plan()
    size = sum(video.bytes_hint for video in planned)
    result = {
        "store": out,
        "corpus": own.corpus,
        "feature_set": feature_set,
        "videos": len(planned),
        "rejects": len(rejects),
        "bytes": size,
        "workers": own.workers,
        "source": source.provenance(),
    }
    print(f"would build {out} ({own.corpus}, {feature_set})")
    print(f"from {len(planned):,} videos, about {size / 1e6:,.1f} MB of features; {len(rejects):,} already rejected")
    write_json(own.json, result)
    return 0


def _inspect(own: argparse.Namespace) -> int:
    """Print what is in a store and check its digests."""
    from hero_platform import transfer
    from hero_platform.store.inspect import format_report, report

    if own.dry_run:
        print(f"would read every file of {own.path}")
        return 0
    value = report(own.path)
    print(format_report(value))
    if transfer.TOTAL.requests:
        print(f"s3: {transfer.TOTAL}")
    write_json(own.json, {**value, "s3": transfer.TOTAL.as_dict()})
    for line in value["damaged"]:
        print(f"{PROGRAM}: {line}", file=sys.stderr)
    return 1 if value["damaged"] else 0


def _annotations(own: argparse.Namespace) -> int:
    """Add a corpus' annotation file to a finished store, or set the splits of its videos."""
    from hero_platform import home
    from hero_platform.store.reader import FeatureStore

    path = own.store or home.store_of(own.corpus)
    if not path:
        raise ValueError(f"{home.root()} has no store of {own.corpus}: name one with --store PATH")
    if not own.file and not own.splits:
        raise ValueError("nothing to do: give an annotation FILE, or --splits with lists of ids")
    result: dict[str, Any] = {"store": path}
    if own.splits:
        result["splits"] = _splits(own, FeatureStore.open(path))
    if own.file:
        result["annotations"] = _annotation_file(own, FeatureStore.open(path))
    write_json(own.json, result)
    return 0


def _splits(own: argparse.Namespace, store: FeatureStore) -> dict[str, Any]:
    """Set splits from lists of ids."""
    from hero_platform.sources.splits import read_splits
    from hero_platform.store.reader import FeatureStore
    from hero_platform.store.split_tables import write_splits

    ids: dict[str, list[str]] = {}
    for video, split in read_splits(own.splits).items():
        ids.setdefault(split, []).append(video)
    if own.dry_run:
        print(f"would set   {', '.join(f'{split} ({len(videos):,} ids)' for split, videos in ids.items())}")
        return {}
    facts = write_splits(store.root, ids, store.index.row_of)
    for split, count in facts["videos"].items():
        print(f"split       {split}: {count:,} videos; {facts['strangers'][split]:,} ids that the store has not")
    facts["digest"] = FeatureStore.open(store.root).digest
    print(f"digest      {facts['digest']} (runs record it; the store itself is unchanged)")
    return facts


def _annotation_file(own: argparse.Namespace, store: FeatureStore) -> dict[str, Any]:
    """Write one table beside the store."""
    from hero_platform.corpora import CORPORA
    from hero_platform.corpora.add import add_annotations
    from hero_platform.corpora.report import format_corpus_report
    from hero_platform.store.tokens import TokenizerSpec

    if own.corpus not in CORPORA:
        raise ValueError(f"no annotation files are known for {own.corpus!r}, only for {', '.join(CORPORA)}")
    if not own.split:
        raise ValueError("--split names the split that FILE holds, such as train or val")
    tokenizer = TokenizerSpec.read(own.tokenizer) if own.tokenizer else None
    facts = add_annotations(CORPORA[own.corpus], own.split, own.file, store, tokenizer, dry_run=own.dry_run)
    print(format_corpus_report(facts))
    if "table" in facts:
        print(f"wrote        {store.root}/{facts['table']}\ndigest       {facts['digest']}")
    return facts


def parser() -> Parser:
    """The job's command line."""
    parser = Parser(prog=PROGRAM, description=__doc__, epilog=_EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True, metavar="SOURCE", parser_class=Parser)

    add_sources(commands)

    annotations = commands.add_parser(
        "annotations", help="add a public annotation file to a finished store, or set the splits of its videos"
    )
    annotations.add_argument("file", nargs="?", metavar="FILE", help="a corpus' annotation file as published")
    annotations.add_argument("--corpus", required=True, help="whose file it is: tvr, how2r, didemo, msrvtt, tvqa, ...")
    annotations.add_argument("--split", help="the split that FILE holds")
    annotations.add_argument("--store", metavar="PATH", help="the store (default: the corpus' one under HERO_HOME)")
    annotations.add_argument("--tokenizer", metavar="PATH", help="the vocabulary, for a store that carries none")
    annotations.add_argument("--splits", nargs="+", default=[], metavar="[SPLIT=]FILE", help="JSON lists of video ids")
    add_common(annotations, name="unused here")

    inspect = commands.add_parser("inspect", help="what is in a store; checks its digests (exit code 1: damaged)")
    inspect.add_argument("path", metavar="PATH", help="folder or s3:// URL of a store")
    add_common(inspect, name="unused here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
