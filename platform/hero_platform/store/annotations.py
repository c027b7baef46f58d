"""Annotation tables: the examples of downstream tasks, one Arrow file per kind and split beside a store's shards.

A table is named by its content (`<split>-<digest12>.arrow`) and `<split>.json` says which one is current, so tables can
be added to a finished store without touching what its digest covers.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from hero_model.packed.draw import hash_id
from hero_model.text import Variant
from hero_platform import files
from hero_platform.sources.base import Annotation, Reject
from hero_platform.store.align import MAX_TIME_S
from hero_platform.store.manifest import ANNOTATIONS
from hero_platform.store.rows import is_text
from hero_platform.store.schema import ANNOTATION_SCHEMA, MAX_SEGMENT_TOKENS, OPTIONAL_ANNOTATION_FIELDS
from hero_platform.store.tokens import TokenizerSpec, tokenise


def write_annotations(
    root: str,
    examples: Iterable[Annotation | Reject],
    tokenizer: TokenizerSpec,
    known: set[str],
    where: str,
    source: dict[str, Any] | None = None,
) -> list[Reject]:
    """Write every table of `examples` and return the examples left out (bad, repeated, or about an unknown video).

    Args:
        root: the store.
        examples: in any order; a table keeps theirs.
        tokenizer: for texts that come without tokens.
        known: ids of the store's videos. An example of another video is kept, since its video may have been rejected
            on purpose, but it is counted in the table's entry.
        where: which source, for the rejects.
        source: facts about a file that was added to a finished store, for the tables' entries.
    """
    tables: dict[tuple[str, str], dict[str, Annotation]] = defaultdict(dict)
    rejects: list[Reject] = []
    for example in examples:
        if isinstance(example, Reject):
            rejects.append(example)
            continue
        table = tables[example.kind, example.split]
        repeated = f"duplicate id in {example.kind} {example.split}" if example.id in table else ""
        problem = repeated or _problem(example, tokenizer.text_ids.vocab_size)
        if problem:
            rejects.append(Reject(example.id, where, problem))
        else:
            table[example.id] = example
    for (kind, split), table in sorted(tables.items()):
        entry = _write_table(root, kind, split, list(table.values()), tokenizer, known)
        files.write_json(
            files.join(root, ANNOTATIONS, kind, f"{split}.json"), entry | ({"source": source} if source else {})
        )
    return rejects


def table_entries(root: str) -> list[dict[str, Any]]:
    """Entries (kind, split, file, sha256, counts) of all current tables of a store, sorted by kind and split."""
    folder = files.join(root, ANNOTATIONS)
    return [
        files.read_json(files.join(folder, kind, name))
        for kind in files.listdir(folder)
        for name in files.listdir(files.join(folder, kind))
        if name.endswith(".json")
    ]


def _problem(example: Annotation, vocab_size: int) -> str:
    """Why an example cannot be stored, or would stop a run that reads it; empty when it is good."""
    if example.start_s < 0 or example.end_s < example.start_s:
        return f"time span {example.start_s:g} - {example.end_s:g} s runs backwards"
    for start_s, end_s in ((example.start_s, example.end_s), *example.spans):
        if max(start_s, end_s) >= MAX_TIME_S:
            return f"time span {start_s:g} - {end_s:g} s is not in a video"
    if any(start_s < 0 or end_s < start_s for start_s, end_s in example.spans):
        return f"one of its time spans runs backwards: {example.spans}"
    words = (example.id, example.split, example.video, example.text, example.tag, example.group, *example.answers)
    if not all(map(is_text, words)):
        return "undecodable text"
    for ids in (example.tokens or [], *(example.answers_tokens or [])):
        if len(ids) > MAX_SEGMENT_TOKENS:
            return f"a text of {len(ids)} tokens, at most {MAX_SEGMENT_TOKENS} fit the model"
        if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
            return f"a token id outside [0, {vocab_size})"
    return _label_problem(example)


def _label_problem(example: Annotation) -> str:
    """What is wrong with the answers of a question, or the label of a question or statement; empty when nothing is."""
    if example.kind not in ("questions", "statements"):
        return ""
    choices = 2
    if example.kind == "questions":
        choices = len(example.answers if example.answers_tokens is None else example.answers_tokens)
        if choices < 2:
            return f"a question needs at least two answers and has {choices}"
    if example.label is not None and not 0 <= example.label < choices:
        return f"label {example.label} is no choice: with {choices} it must be 0 to {choices - 1}"
    return ""


def _write_table(
    root: str, kind: str, split: str, rows: list[Annotation], tokenizer: TokenizerSpec, known: set[str]
) -> dict[str, Any]:
    """Write one table and give its entry."""
    variant: Variant = "tvc" if kind == "captions" else "query"
    untokenised = iter(tokenise(tokenizer, [row.text for row in rows if row.tokens is None], variant))
    columns: dict[str, list[Any]] = {
        "id": [row.id for row in rows],
        "key": [hash_id(row.id) for row in rows],
        "video": [row.video for row in rows],
        "text": [row.text for row in rows],
        "tokens": [next(untokenised) if row.tokens is None else row.tokens for row in rows],
        "start_s": [row.start_s for row in rows],
        "end_s": [row.end_s for row in rows],
        "answers": [list(row.answers) for row in rows],
        "answers_tokens": [
            tokenise(tokenizer, row.answers, variant) if row.answers_tokens is None else row.answers_tokens
            for row in rows
        ],
        "label": [row.label for row in rows],
    }
    optional: dict[str, list[Any]] = {
        "spans_s": [[time for span in row.spans for time in span] for row in rows],
        "tag": [row.tag for row in rows],
        "group": [row.group for row in rows],
    }
    said = [field for field in OPTIONAL_ANNOTATION_FIELDS if any(optional[field.name])]
    schema = pa.schema([*ANNOTATION_SCHEMA, *said])
    columns |= optional
    batch = pa.record_batch([pa.array(columns[field.name], field.type) for field in schema], schema=schema)
    data = ipc_bytes(batch)
    digest = hashlib.sha256(data).hexdigest()
    folder = files.join(root, ANNOTATIONS, kind)
    name = f"{split}-{digest[:12]}.arrow"
    files.makedirs(folder)
    files.write_bytes(files.join(folder, name), data)
    videos = {row.video for row in rows if row.video}
    return {
        "kind": kind,
        "split": split,
        "file": name,
        "sha256": digest,
        "num_rows": len(rows),
        "num_videos": len(videos),
        "num_without_video": sum(bool(row.video) and row.video not in known for row in rows),
        "num_hidden_video": sum(not row.video for row in rows),
    }


def ipc_bytes(batch: pa.RecordBatch) -> bytes:
    """A whole Arrow IPC file of one record batch."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return sink.getvalue().to_pybytes()
