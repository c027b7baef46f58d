"""Add a corpus' annotation file to a finished store: parse, match with the videos, tokenise, write a table, report."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hero_platform import files
from hero_platform.corpora.base import Corpus
from hero_platform.corpora.report import corpus_report
from hero_platform.home import check_name
from hero_platform.sources.base import Annotation, Reject
from hero_platform.store.annotations import check_annotations, table_entries, write_tables
from hero_platform.store.reader import FeatureStore
from hero_platform.store.tokens import TokenizerSpec


def add_annotations(
    corpus: Corpus,
    split: str,
    path: str,
    store: FeatureStore,
    tokenizer: TokenizerSpec | None,
    *,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Write the annotations of one public file beside a store.

    The table replaces the split's current one of its kind; the old file stays, so nothing that read it breaks.

    Args:
        corpus: whose file it is.
        split: name of the table.
        path: the file.
        store: what its videos are looked up in.
        tokenizer: the store's own; None: the one it carries.
        dry_run: report, and write nothing.

    Returns:
        `report.corpus_report`, and the table's `table` (its file) and `digest` if one was written.

    Raises:
        ValueError: the file has no annotation that can be stored, `split` cannot name a table, the tokenizer is not
            the store's, or none was given and the store carries none. Then the store is as before.
    """
    check_name("split", split)
    examples: list[Annotation] = []
    rejects: list[Reject] = []
    for found in corpus.read(path, split):
        if isinstance(found, Reject):
            rejects.append(found)
        else:
            video = stored_name(found.video, store.index.row_of) if corpus.video_files else found.video
            examples.append(replace(found, video=video))
    if not examples:
        raise ValueError(
            f"{path}: no annotation of {corpus.name} in it" + (f": {rejects[0].reason}" if rejects else "")
        )
    if dry_run:
        return corpus_report(corpus, split, examples, rejects, store)
    tokenizer = tokenizer or TokenizerSpec.of_store(store.root, store.manifest.tokenizer)
    tokenizer.check_fits(store.manifest.tokenizer, store.root)
    kept, unfit = check_annotations(examples, tokenizer, files.name_of(path))
    if not kept:
        raise ValueError(f"{path}: no annotation of {corpus.name} can be stored: {unfit[-1].reason}")
    source = {"corpus": corpus.name, "file": files.name_of(path), "sha256": files.sha256_file(path)}
    write_tables(store.root, kept, set(store.index.row_of), source | {"rejects": len(rejects)})
    rejects += unfit
    (entry,) = (e for e in table_entries(store.root) if (e["kind"], e["split"]) == (corpus.kind, split))
    table = {"table": files.join("annotations", corpus.kind, entry["file"]), "digest": entry["sha256"]}
    return corpus_report(corpus, split, kept, rejects, store) | table


def stored_name(video: str, known: Mapping[str, int]) -> str:
    """The store's id of a video: its name, or its name without the ending of a file."""
    stem = os.path.splitext(video)[0]
    return stem if video not in known and stem in known else video
