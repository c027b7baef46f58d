"""Annotation tables as read: columns as NumPy, joined with the rows of their store, and views on Arrow buffers.

Legend: N examples of a table, A annotated spans of an example, B examples asked for, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from hero_model.packed.batch import Answers, Notes
from hero_model.packed.pack import spans

if TYPE_CHECKING:
    from hero_platform.store.reader import StoreIndex


@dataclass(frozen=True)
class AnnotationTable:
    """N examples of one kind and split, columns as in `schema.ANNOTATION_SCHEMA`."""

    kind: str
    split: str
    table: pa.Table
    digest: str  # hex SHA-256 of the table's file
    keys: np.ndarray  # [N] uint64, hash of the id
    tokens: np.ndarray  # [T] int32, text after text, without special ids
    token_offsets: np.ndarray  # [N + 1] int64
    spans_s: np.ndarray  # [N, 2] float64 seconds, NaN where hidden
    labels: np.ndarray  # [N] int64, -1 where hidden
    answers: Answers  # of all rows, none for a kind without answers
    video_rows: np.ndarray  # [N] int64, row of the store, -1 where the video is hidden or not in the store

    @classmethod
    def of(cls, table: pa.Table, entry: dict[str, Any], index: StoreIndex) -> AnnotationTable:
        """Join a table with the rows of its store."""
        table = table.combine_chunks()
        tokens = one_chunk(table.column("tokens"))
        answers = one_chunk(table.column("answers_tokens"))
        rows = [index.row_of.get(video, -1) for video in table.column("video").to_pylist()]
        return cls(
            kind=entry["kind"],
            split=entry["split"],
            table=table,
            digest=entry["sha256"],
            keys=numpy_of(table.column("key")),
            tokens=numpy_of(tokens.values),
            token_offsets=numpy_of(tokens.offsets).astype(np.int64),
            spans_s=np.stack([numpy_of(table.column("start_s")), numpy_of(table.column("end_s"))], axis=1),
            labels=np.array([-1 if label is None else label for label in table.column("label").to_pylist()], np.int64),
            answers=Answers(
                tokens=numpy_of(answers.values.values),
                token_offsets=numpy_of(answers.values.offsets).astype(np.int64),
                offsets=numpy_of(answers.offsets).astype(np.int64),
            ),
            video_rows=np.array(rows, dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def ids(self) -> np.ndarray:
        """[N] strings, as objects."""
        return self.table.column("id").to_numpy(zero_copy_only=False)

    @cached_property
    def videos(self) -> np.ndarray:
        """[N] ids of videos, as objects; empty where hidden."""
        return self.table.column("video").to_numpy(zero_copy_only=False)

    @cached_property
    def tags(self) -> tuple[str, ...]:
        """Group of each row by which results are reported (TVR: v, t, vt); empty if the table has none."""
        return tuple(self.table.column("tag").to_pylist()) if "tag" in self.table.column_names else ()

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """What rows share (TVC: the id of the captioned clip); empty if the table has none."""
        return tuple(self.table.column("group").to_pylist()) if "group" in self.table.column_names else ()

    @cached_property
    def all_spans_s(self) -> np.ndarray:
        """[N, A, 2] float64 seconds of every annotator, NaN beyond those of a row; A = 1 without several (DiDeMo)."""
        if "spans_s" not in self.table.column_names:
            return self.spans_s[:, None]
        given = [np.reshape(spans, (-1, 2)) for spans in self.table.column("spans_s").to_pylist()]
        table = np.full((len(given), max(1, *map(len, given)), 2), np.nan)
        table[:, 0] = self.spans_s
        for row, own in zip(table, given, strict=True):
            row[: len(own)] = own
        return table

    @cached_property
    def num_tokens(self) -> np.ndarray:
        """[N] tokens of each row's text and longest answer together: what official length limits count."""
        lengths, counts = np.diff(self.answers.token_offsets), np.diff(self.answers.offsets)
        longest = np.zeros(len(self), dtype=np.int64)
        if lengths.size:
            longest[counts > 0] = np.maximum.reduceat(lengths, self.answers.offsets[:-1][counts > 0])
        return np.diff(self.token_offsets) + longest

    @cached_property
    def opposites(self) -> np.ndarray:
        """[N] int64 row of the opposite statement about the same video (the id's last -0 or -1 flipped), -1 if none."""
        row_of = {name: row for row, name in enumerate(self.ids)}
        flipped = {"-0": "-1", "-1": "-0"}
        found = [row_of.get(name[:-2] + flipped[name[-2:]], -1) if name[-2:] in flipped else -1 for name in self.ids]
        opposite = np.array(found, dtype=np.int64)
        return np.where(self.video_rows[opposite] == self.video_rows, opposite, -1)

    def notes(self, indices: Sequence[int] | np.ndarray) -> Notes:
        """B examples as the tasks take them; the videos are `store.rows(table.video_rows[indices])`."""
        wanted = np.asarray(indices, dtype=np.int64)
        starts, ends = self.token_offsets[wanted].tolist(), self.token_offsets[wanted + 1].tolist()
        texts = [self.tokens[start:end] for start, end in zip(starts, ends, strict=True)]
        return Notes(
            ids=tuple(self.ids[wanted].tolist()),
            keys=self.keys[wanted],
            tokens=concatenate(texts, np.empty(0, np.int32)),
            token_offsets=offsets_of(np.array([len(text) for text in texts], dtype=np.int64)),
            spans_s=self.spans_s[wanted],
            labels=self.labels[wanted],
            answers=self._answers(wanted) if len(self.answers.token_offsets) > 1 else None,
        )

    def _answers(self, wanted: np.ndarray) -> Answers:
        """The answers of these rows."""
        counts = np.diff(self.answers.offsets)[wanted]
        chosen = spans(self.answers.offsets[:-1][wanted], counts)
        lengths = np.diff(self.answers.token_offsets)[chosen]
        tokens = self.answers.tokens[spans(self.answers.token_offsets[:-1][chosen], lengths)]
        return Answers(tokens, offsets_of(lengths), offsets_of(counts))


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """The single array behind a column."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def numpy_of(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Zero-copy view of a numeric array without nulls."""
    array = one_chunk(column) if isinstance(column, pa.ChunkedArray) else column
    return array.to_numpy(zero_copy_only=True)


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """[N] lengths -> [N + 1] int64 starts, the last one being the total."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def concatenate(parts: list[np.ndarray], empty: np.ndarray) -> np.ndarray:
    """Concatenate views, or `empty` when there are none."""
    return np.concatenate(parts) if parts else empty
