"""The padded oracle against every golden case: with padding_effects on all of them, off those without padding."""

from __future__ import annotations

import pytest
import torch
from oracle import tasks
from oracle.model import Oracle
from parity import compare, golden, run
from parity.golden import Case

CASES = golden.cases()
BATCHES = [case for case in CASES if case.task != "vcmr_infer"]


def modes(case: Case) -> list[bool]:
    """Where nothing is padded the switch must make no difference."""
    return [True, False] if case.is_solo else [True]


@pytest.mark.parametrize("case", BATCHES, ids=lambda case: case.id)
def test_outputs_and_gradients(case, errors):
    for padding_effects in modes(case):
        weights = golden.weights(case.set, case.task)
        oracle = Oracle(weights, golden.heads(case.set), padding_effects)
        out = run.oracle(case, oracle, golden.read_batch(case.batch))
        who = f"oracle {'on' if padding_effects else 'off'}"
        errors.note(f"{who} outputs", case.kind, case.id, compare.outputs(out, golden.read_tensors(case.out)))
        if case.grads is not None:
            grads = compare.gradients_of(out["total"], weights)
            errors.note(f"{who} gradients", case.kind, case.id, run.check_gradients(case, out["total"], grads))


@pytest.mark.parametrize("case", [c for c in CASES if c.kind == "padded/vcmr_infer"], ids=lambda case: case.id)
def test_inference(case, errors):
    oracle = Oracle(golden.weights(case.set), golden.heads(case.set))
    out = tasks.search(oracle, *golden.as_batches(case))
    errors.note("oracle on outputs", case.kind, case.id, compare.outputs(out, golden.read_tensors(case.out)))


@pytest.mark.parametrize("case", [c for c in CASES if c.kind == "solo/vcmr_infer"], ids=lambda case: case.id)
@pytest.mark.parametrize("padding_effects", [True, False])
def test_inference_one_video_at_a_time(case, padding_effects, errors):
    oracle = Oracle(golden.weights(case.set), golden.heads(case.set), padding_effects)
    want = golden.read_tensors(case.out)
    queries = golden.read_batch(case.batch / "batch_queries")
    names = [video["vid"] for video in golden.read_json(case.batch / "raw.json")["videos"]]
    scores = []
    for name in names:
        out = tasks.search(oracle, golden.read_batch(case.batch / f"batch__{name}"), queries)
        scores.append(out["q2video_scores"])
        expected = {key.split("/", 1)[1]: value for key, value in want.items() if key.startswith(f"{name}/")}
        out["frame_embeddings"] = out["frame_embeddings"].reshape(expected["frame_embeddings"].shape)
        who = f"oracle {'on' if padding_effects else 'off'} outputs"
        errors.note(who, case.kind, case.id, compare.outputs(out, expected))
    assert compare.relative(torch.cat(scores, dim=1), want["q2video_scores_all"]) <= compare.OUTPUT


@pytest.mark.parametrize("path", golden.files("pretrain/inter_vsm.safetensors"), ids=lambda path: path.parts[-3])
def test_intermediate_states(path, errors):
    oracle = Oracle(golden.weights(path.parents[1]), golden.heads(path.parents[1]))
    batch, want = golden.read_batch(path.with_name("batch_vsm")), golden.read_tensors(path)
    embeddings = oracle.segment_input(batch)
    hidden = oracle.cross_modal(embeddings, batch["f_attn_masks"])
    matched, branch = oracle.matched_frames(batch, hidden), oracle.frame_branch(batch)
    pooler = "v_encoder.f_encoder.pooler.dense"
    got = {
        "f_embeddings": embeddings,
        "f_sequence_output": hidden,
        "f_pooled_output": torch.tanh(
            hidden[:, 0] @ oracle.weights[f"{pooler}.weight"].T + oracle.weights[f"{pooler}.bias"]
        ),
        "matched_frames": matched,
        "frame_transform": branch,
        "repr_no_clip": branch + matched,
        "c_embeddings": oracle.embed_clip(branch + matched),
        "repr": oracle.temporal(branch + matched, batch["c_attn_masks"]),
        "query_txt": oracle.query_tokens(batch),
        "query_mod": oracle.queries(batch),
    }
    errors.note("oracle on outputs", "padded/inter_vsm", path.parts[-3], compare.outputs(got, want))


def test_the_default_folder_holds_every_kind():
    if golden.root().resolve() != golden.default_root().resolve():
        pytest.skip("another golden folder may lack kinds")
    missing = set(golden.KINDS) - set(golden.kinds_present())
    assert not missing, f"{golden.root()} lacks golden cases of {sorted(missing)}"
