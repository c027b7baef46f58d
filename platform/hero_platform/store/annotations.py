"""Annotation tables: the examples of downstream tasks, one Arrow file per kind and split beside a store's shards.

A table is named by its content (`<split>-<digest12>.arrow`) and `<split>.json` says which one is current, so tables can
be added to a finished store without touching what its digest covers.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from hero_model.packed.draw import hash_id
from hero_model.text import Variant
from hero_platform import files
from hero_platform.home import check_name
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
) -> list[Reject]:
    """Write every table of `examples` and return the examples left out (bad or repeated).

    Args:
        root: the store.
        examples: in any order; a table keeps theirs.
        tokenizer: for texts that come without tokens.
        known: ids of the store's videos, as in `write_tables`.
        where: which source, for the rejects.

    Raises:
        ValueError: a text has no tokens and the tokenizer has special ids only, or a split cannot name a table.
    """
    kept, rejects = check_annotations(examples, tokenizer, where)
    write_tables(root, kept, known)
    return rejects


def check_annotations(
    examples: Iterable[Annotation | Reject], tokenizer: TokenizerSpec, where: str
) -> tuple[list[Annotation], list[Reject]]:
    """Tell the examples that can be stored, tokenised, from those that cannot; both in their order.

    Args:
        examples: in any order.
        tokenizer: for texts that come without tokens.
        where: which source, for rejects of examples that do not say where they stood.

    Raises:
        ValueError: a text has no tokens, and the tokenizer has special ids only.
    """
    listed = [(row, "" if isinstance(row, Reject) else _problem(row)) for row in examples]
    readable = [row for row, problem in listed if isinstance(row, Annotation) and not problem]
    tokenised = iter(_tokenised(readable, tokenizer))
    kept: dict[tuple[str, str, str], Annotation] = {}
    rejects: list[Reject] = []
    for example, unreadable in listed:
        if isinstance(example, Reject):
            rejects.append(example)
            continue
        ready = example if unreadable else next(tokenised)
        name = (example.kind, example.split, example.id)
        repeated = f"duplicate id in {example.kind} {example.split}" if name in kept else ""
        if problem := repeated or unreadable or _tokens_problem(ready, tokenizer.text_ids.vocab_size):
            rejects.append(Reject(example.id, example.where or where, problem))
        else:
            kept[name] = ready
    return list(kept.values()), rejects


def write_tables(
    root: str, examples: Iterable[Annotation], known: set[str], source: dict[str, Any] | None = None
) -> None:
    """Write the tables of `examples`; each becomes the current one of its kind and split.

    Args:
        root: the store.
        examples: from `check_annotations`.
        known: ids of the store's videos. An example of another video is kept, since its video may have been rejected
            on purpose, but it is counted in the table's entry.
        source: facts about a file that was added to a finished store, for the tables' entries.

    Raises:
        ValueError: a split cannot name a table; nothing is written then.
    """
    tables: dict[tuple[str, str], list[Annotation]] = defaultdict(list)
    for example in examples:
        tables[example.kind, example.split].append(example)
    for _, split in tables:
        check_name("split", split)  # it becomes the name of a file
    for (kind, split), rows in sorted(tables.items()):
        entry = _write_table(root, kind, split, rows, known)
        files.write_json(
            files.join(root, ANNOTATIONS, kind, f"{split}.json"), entry | ({"source": source} if source else {})
        )


def table_entries(root: str) -> list[dict[str, Any]]:
    """Entries (kind, split, file, sha256, counts) of all current tables of a store, sorted by kind and split."""
    folder = files.join(root, ANNOTATIONS)
    return [
        files.read_json(files.join(folder, kind, name))
        for kind in files.listdir(folder)
        for name in files.listdir(files.join(folder, kind))
        if name.endswith(".json")
    ]


def _tokenised(examples: Sequence[Annotation], tokenizer: TokenizerSpec) -> list[Annotation]:
    """The examples, each with its token ids."""
    texts: dict[Variant, list[str]] = defaultdict(list)
    for example in examples:
        if example.tokens is None:
            texts[_variant(example)].append(example.text)
    ids = {variant: iter(tokenise(tokenizer, own, variant)) for variant, own in texts.items()}  # one call, not one each
    return [
        replace(
            example,
            tokens=next(ids[_variant(example)]) if example.tokens is None else example.tokens,
            answers_tokens=tokenise(tokenizer, example.answers, _variant(example))
            if example.answers_tokens is None
            else example.answers_tokens,
        )
        for example in examples
    ]


def _variant(example: Annotation) -> Variant:
    return "tvc" if example.kind == "captions" else "query"


def _problem(example: Annotation) -> str:
    """Why an example cannot be tokenised or stored; empty when it can."""
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
    return _label_problem(example)


def _tokens_problem(example: Annotation, vocab_size: int) -> str:
    """Why the token ids of an example would stop a run that reads it; empty when they are good."""
    for ids in (example.tokens or [], *(example.answers_tokens or [])):
        if len(ids) > MAX_SEGMENT_TOKENS:
            return f"a text of {len(ids)} tokens, at most {MAX_SEGMENT_TOKENS} fit the model"
        if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
            return f"a token id outside [0, {vocab_size})"
    return ""


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


def _write_table(root: str, kind: str, split: str, rows: list[Annotation], known: set[str]) -> dict[str, Any]:
    """Write one table and give its entry."""
    columns: dict[str, list[Any]] = {
        "id": [row.id for row in rows],
        "key": [hash_id(row.id) for row in rows],
        "video": [row.video for row in rows],
        "text": [row.text for row in rows],
        "tokens": [row.tokens for row in rows],
        "start_s": [row.start_s for row in rows],
        "end_s": [row.end_s for row in rows],
        "answers": [list(row.answers) for row in rows],
        "answers_tokens": [row.answers_tokens for row in rows],
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
