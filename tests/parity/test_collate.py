"""The oracle's collation against official batches, forwards from raw examples and back from padded batches."""

from __future__ import annotations

import pytest
import torch
from parity import examples, golden

CASES = [case for case in golden.cases() if case.task != "vcmr_infer"]
# Read by no model, or (q_vidx of a video drawn twice) only where it agrees with the position.
UNUSED = {"f_sub_input_attn_masks", "c_pos_ids", "reordered_frame_idx", "binary_targets", "q_vidx", "vids", "qids"}


def assert_equal(got, want):
    for name in set(want) - UNUSED:
        if isinstance(want[name], torch.Tensor):
            assert torch.equal(got[name], want[name]), name
        else:
            assert got[name] == want[name], name


@pytest.mark.parametrize("case", [case for case in CASES if case.is_solo], ids=lambda case: case.id)
def test_raw_examples_collate_to_the_official_batch(case):
    assert_equal(examples.batch(case.task, examples.of_raw(case)), golden.read_batch(case.batch))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_an_official_batch_splits_into_its_examples(case):
    batch = golden.read_batch(case.batch)
    assert_equal(examples.batch(case.task, examples.split(case.task, batch)), batch)
