"""Arrow schemas of a store: its shards, its index and its annotation tables (design D8, docs/data.md).

Legend: V width of a frame feature.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

SCHEMA_VERSION = 2

MAX_SEGMENT_TOKENS = 511  # text positions of RoBERTa (512) less the leading special token

DTYPES: dict[str, np.dtype[Any]] = {"float16": np.dtype(np.float16), "float32": np.dtype(np.float32)}

INDEX_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("key", pa.uint64()),  # hero_model.packed.draw.hash_id(id): the "video" in every stateless draw
        ("split", pa.dictionary(pa.int32(), pa.string())),
        ("shard", pa.int32()),
        ("row", pa.int32()),  # inside its shard
        ("duration_s", pa.float64()),
        ("num_frames", pa.int32()),
        ("num_segments", pa.int32()),
        ("num_tokens", pa.int32()),
        ("crc32", pa.uint32()),  # of what models read of the row: see `shard.row_checksum`
    ]
)

ANNOTATION_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("key", pa.uint64()),  # hash_id(id)
        ("video", pa.string()),  # empty where the split hides it
        ("text", pa.string()),
        ("tokens", pa.list_(pa.int32())),  # without special ids
        ("start_s", pa.float64()),  # NaN where hidden
        ("end_s", pa.float64()),
        ("answers", pa.list_(pa.string())),
        ("answers_tokens", pa.list_(pa.list_(pa.int32()))),
        ("label", pa.int32()),  # null where hidden
    ]
)

OPTIONAL_ANNOTATION_FIELDS = (  # a table has one of these columns only if a row of it says something there
    pa.field("spans_s", pa.list_(pa.float64())),  # start, end, start, end, ...: several annotators' spans (DiDeMo)
    pa.field("tag", pa.string()),  # group by which results are reported (TVR: v, t, vt)
    pa.field("group", pa.string()),  # what several annotations share (TVC: the clip that captions describe)
)


def video_schema(frame_dim: int, dtype: str) -> pa.Schema:
    """Schema of a shard: one row a video, `frames` [F, V] as V values per frame of `dtype` (float16 or float32).

    Segment columns are flat: segment k of a video owns the next `segment_num_tokens[k]` of `tokens` and the next
    `segment_num_frames[k]` of `segment_frames` (frame indices inside the video, ascending).
    """
    values = pa.from_numpy_dtype(DTYPES[dtype])
    return pa.schema(
        [
            ("id", pa.string()),
            ("split", pa.string()),
            ("duration_s", pa.float64()),
            ("interval_s", pa.float64()),
            ("num_frames", pa.int32()),
            ("frames", pa.large_list(pa.list_(values, frame_dim))),
            ("tokens", pa.list_(pa.int32())),
            ("segment_num_tokens", pa.list_(pa.int32())),
            ("segment_num_frames", pa.list_(pa.int32())),
            ("segment_frames", pa.list_(pa.int32())),
            ("segment_start_s", pa.list_(pa.float64())),
            ("segment_end_s", pa.list_(pa.float64())),
            ("segment_text", pa.list_(pa.string())),
        ],
        metadata={"hero_schema_version": str(SCHEMA_VERSION)},
    )
