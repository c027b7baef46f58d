"""Where official collation stops counting text positions: at 511 in clips, never in MLM and queries (hero.md 1.4)."""

from __future__ import annotations

import pytest
import torch
from oracle import collate
from oracle.collate import Query, Segment, Video
from parity import packed
from parity.golden import Ranking

from hero_model.config import TextIds

LENGTH = 600
WORDS = [5] * (LENGTH - 1)


@pytest.mark.parametrize("kind, lead", [("mlm", 0), ("mfm-nce", 2), ("fom", 2), ("vcmr", 2)])
def test_positions(kind, lead):
    labels = [-1] + [7] * (LENGTH - 1) if kind == "mlm" else None
    video = Video(
        torch.zeros(1, 4),
        [Segment([lead, *WORDS], [0], labels)],
        mask=[True],
        order=[0],
        targets=[0],
        queries=(Query([0, *WORDS], (0, 0)),),
    )
    collated = collate.mlm_batch([video]) if kind == "mlm" else collate.query_batch([video])
    task = packed.task_of(kind, ranking=Ranking(1.0, 1.0, 1.0))
    batch = packed.batch_of(task, [video], TextIds())
    want = collated["position_ids" if kind == "mlm" else "f_sub_pos_ids"]
    assert want.max() == (LENGTH - 1 if kind == "mlm" else 511)
    assert torch.equal(batch.videos.segments.token_positions, want[0])
    if kind == "vcmr":
        assert torch.equal(batch.queries.layout.positions, collated["query_pos_ids"][0])
