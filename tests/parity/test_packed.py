"""The packed model against the official code: solo cases whole, padded cases in all that padding cannot change."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from oracle import collate
from parity import compare, examples, golden, packed, run
from parity.golden import Case

from hero_model.tasks import Captioning

CASES = golden.cases()
BATCHES = [case for case in CASES if case.task != "vcmr_infer"]
# Computed inside a loss, from outputs that are compared.
DERIVED = {"logits", "loss_per_token_lsr0", "loss_elementwise", "st_prob", "ed_prob"}
SPAN_LOSSES = {"eval_loss_st_ed": "span", "train_loss_st_ed": "span/mean"}
RANKING_LOSSES = {
    "eval_loss_neg_ctx": "ctx",
    "eval_loss_neg_q": "query",
    "train_loss_neg_ctx": "ctx/mean",
    "train_loss_neg_q": "query/mean",
}
QUESTION_LOSSES = {"qa_loss": "answer/mean", "temporal_loss": "span/unweighted"}
CAPTION_LOSSES = {"loss_per_token": "caption", "loss_per_token_lsr0.1": "caption"}
# Official eval losses are sums but for FOM and entailment.
TERMS = {"mlm": "mlm", "mfm-nce": "mfm", "mffr": "mfm", "fom": "fom/mean", "violin": "entailment/mean"}


def prepared(case: Case):
    """Task, examples and special ids of a case; solo cases start from raw examples, so that packing is covered."""
    text = packed.text_ids(case.set)
    ranking = golden.ranking(case) if case.task in ("vsm", "vcmr", "vr") else None
    smoothing = golden.smoothing(case) if case.task == "tvc" else 0.0
    if case.is_solo:
        context = golden.read_json(case.out.with_name("raw.json"))["settings"]["sub_ctx_len"]
        return (
            packed.task_of(case.task, context=context, ranking=ranking, smoothing=smoothing),
            examples.of_raw(case),
            text,
        )
    batch = golden.read_batch(case.batch)
    videos = examples.split(case.task, batch)
    video_only = all([segment.text for segment in video.segments] == [[text.cls]] for video in videos)
    # A padded VSM batch holds its queries apart from their subtitles: it is a moment retrieval batch.
    kind = "vcmr" if case.task == "vsm" else case.task
    return packed.task_of(kind, ranking=ranking, video_only=video_only, smoothing=smoothing), videos, text


def independent_of_padding(case: Case, batch) -> bool:
    """Whether every loss and gradient of the case is (hero.md 1.15)."""
    if case.task in ("mlm", "mffr", "fom", "vr", "videoqa", "violin", "tvc"):
        return True
    lengths, longest = batch["c_attn_masks"].sum(dim=1), batch["c_attn_masks"].shape[1]
    if case.task == "mfm-nce":
        return bool((lengths == longest).all())
    paired = len(batch["targets"]) == len(lengths)
    own = lengths if paired else lengths[batch["q_vidx"]]
    return bool(((own == longest) | (own == 1)).all())  # over a single frame the span loss is 0 whatever the logits


def official_share(task, batch) -> float:
    """What the official mean is of ours: without smoothing it counts the padding of captions too (docs/tasks.md)."""
    if not isinstance(task, Captioning) or task.smoothing:
        return 1.0
    return (batch["cap_tgt_ids"] >= 0).float().mean().item()


def flat(name: str, want: torch.Tensor, batch, half_kernel: int):
    """A padded golden output as the packed model lays it out, and which of its entries padding leaves alone."""
    if "c_attn_masks" not in batch:  # MLM never looks beyond a segment
        return want, None
    real = batch["c_attn_masks"].bool()
    if name == "neg_pred":
        rows = real[~batch["c_v_masks"]]
        return want[rows], None
    if name in ("frame_embeddings", "frame_embeddings_no_clip", "repr", "repr_no_clip"):
        return want[real], None
    if name in ("st_logits", "ed_logits"):
        lengths = real.sum(dim=1, keepdim=True)
        safe = (torch.arange(real.shape[1]) < lengths - half_kernel) | (lengths == real.shape[1])
        return want[..., real] if want.dim() == 3 else want[real], safe[real]
    if "cap_tgt_ids" in batch:  # what is left of captions and moments, caption after caption
        return want[batch["cap_tgt_ids"] >= 0 if name == "logits" else batch["cap_attn_mask"].bool()], None
    if name == "st_ed_head":  # one clip of each question: the copies for its answers are alike
        return want[real[:: len(real) // len(want)]], None
    if name == "scores" and "shuffled_orders" in batch:
        return want.unflatten(0, real.shape)[real], None
    return want, None


def compare_outputs(got, want, batch, half_kernel=0) -> float:
    """Compare what both sides have; returns the largest relative error."""
    largest = 0.0
    for name, expected in want.items():
        if name not in got:
            continue
        actual, (expected, safe) = got[name], flat(name, expected, batch, half_kernel)
        if safe is not None and expected.dim() == 1:  # as many queries as videos: only each query's own video is stored
            actual = actual[torch.repeat_interleave(batch["c_attn_masks"].sum(dim=1)), torch.arange(len(expected))]
        if safe is not None:
            actual, expected = actual[..., safe], expected[..., safe]
        error = compare.relative(actual, expected)
        assert error <= compare.OUTPUT, f"{name}: relative error {error:.2e}"
        largest = max(largest, error)
    return largest


@pytest.mark.parametrize("case", BATCHES, ids=lambda case: case.id)
def test_outputs_losses_and_gradients(case, errors):
    task, videos, text = prepared(case)
    official, want = golden.read_batch(case.batch), golden.read_tensors(case.out)
    model = packed.load(case.set, golden.vocab_pad(case) if case.task == "mlm" else 0, case.task)
    batch = packed.batch_of(task, videos, text)
    half_kernel = model.hero.cfg.span_kernel // 2
    outputs = packed.outputs(model, task, batch)
    error = compare_outputs(outputs, want, official, half_kernel)
    result = packed.losses(model, task, batch)
    total = result.total * official_share(task, official)
    losses = dict(RANKING_LOSSES)
    whole = independent_of_padding(case, official)
    if whole:
        losses |= SPAN_LOSSES | QUESTION_LOSSES | CAPTION_LOSSES | {"loss": TERMS.get(case.task), "train_total": None}
    for name in losses.keys() & want.keys():
        got = total if losses[name] is None else result.terms[losses[name]]
        expected = want[name].double().sum()
        difference = abs(got.item() - expected.item()) / max(abs(expected.item()), 1e-30)
        assert difference <= compare.OUTPUT or got.item() == expected.item(), f"{name}: relative error {difference:.2e}"
        error = max(error, difference if expected else 0.0)
    compared = outputs.keys() | losses.keys() | DERIVED | (set() if whole else SPAN_LOSSES.keys() | {"loss"})
    assert want.keys() <= compared, f"not compared: {sorted(want.keys() - compared)}"
    errors.note("packed outputs", case.kind, case.id, error)
    if whole and case.grads is not None:
        grads = packed.gradients(model, total)
        errors.note("packed gradients", case.kind, case.id, run.check_gradients(case, total, grads))


def search(case: Case, video_batch, query_batch):
    """Every query against the videos of one batch."""
    text = packed.text_ids(case.set)
    videos = collate.split(video_batch)
    videos[0] = replace(videos[0], queries=collate.split_queries(query_batch))
    task = MOMENTS
    model = packed.load(case.set)
    out = packed.outputs(model, task, packed.batch_of(task, videos, text))
    return out, model.heads["query"].start.weight.shape[-1] // 2


MOMENTS = packed.task_of("vcmr", ranking=golden.Ranking(span_weight=1.0, ctx_weight=1.0, query_weight=1.0))


@pytest.mark.parametrize("case", [c for c in CASES if c.kind == "padded/vcmr_infer"], ids=lambda case: case.id)
def test_inference(case, errors):
    videos, queries = golden.as_batches(case)
    out, half_kernel = search(case, videos, queries)
    error = compare_outputs(out, golden.read_tensors(case.out), videos, half_kernel)
    errors.note("packed outputs", case.kind, case.id, error)


@pytest.mark.parametrize("case", [c for c in CASES if c.kind == "solo/vcmr_infer"], ids=lambda case: case.id)
def test_inference_one_video_at_a_time(case, errors):
    want, queries = golden.read_tensors(case.out), golden.read_batch(case.batch / "batch_queries")
    for raw in golden.read_json(case.batch / "raw.json")["videos"]:
        name = raw["vid"]
        videos = golden.read_batch(case.batch / f"batch__{name}")
        out, half_kernel = search(case, videos, queries)
        expected = {key.split("/", 1)[1]: value for key, value in want.items() if key.startswith(f"{name}/")}
        expected["frame_embeddings"] = expected["frame_embeddings"].reshape(1, *out["frame_embeddings"].shape)
        assert expected.keys() <= out.keys() | DERIVED
        errors.note("packed outputs", case.kind, case.id, compare_outputs(out, expected, videos, half_kernel))


@pytest.mark.parametrize("path", golden.files("pretrain/inter_vsm.safetensors"), ids=lambda path: path.parts[-3])
def test_intermediate_states(path, errors):
    case = golden.pretraining(path.parents[1])["vsm"]
    task, videos, text = prepared(case)
    out = packed.outputs(packed.load(case.set), task, packed.batch_of(task, videos, text))
    got = {
        "repr": out["frame_embeddings"],
        "repr_no_clip": out["frame_embeddings_no_clip"],
        "query_mod": out["query_mod"],
    }
    error = compare_outputs(got, golden.read_tensors(path), golden.read_batch(case.batch))
    errors.note("packed outputs", "padded/inter_vsm", case.id, error)
