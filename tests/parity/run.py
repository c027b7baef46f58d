"""Running a case on the oracle, and checking the gradients of either implementation."""

from __future__ import annotations

from collections.abc import Mapping

from oracle import captions, tasks
from oracle.model import Batch, Oracle
from parity import compare, golden
from parity.golden import Case
from torch import Tensor


def oracle(case: Case, model: Oracle, batch: Batch) -> tasks.Outputs:
    """The outputs of one case."""
    if case.task == "mlm":
        return tasks.mlm(model, batch, golden.vocab_pad(case))
    if case.task in ("vsm", "vcmr", "vr"):
        out = tasks.retrieval(model, batch, golden.ranking(case))
        return out | ({"frame_embeddings_no_clip": model.fused(batch)} if case.is_solo else {})
    if case.task == "videoqa":
        return tasks.video_qa(model, batch, golden.span_weight(case))
    if case.task == "tvc":
        return captions.captioning(model, batch, golden.smoothing(case))
    if case.task == "violin":
        return tasks.violin(model, batch)
    return {"mfm-nce": tasks.mfm_nce, "mffr": tasks.mffr, "fom": tasks.fom}[case.task](model, batch)


def check_gradients(case: Case, total: Tensor, grads: Mapping[str, Tensor | None]) -> float:
    """Against stored statistics (padded) or norms and full tensors (solo); returns the largest relative error."""
    norm, want = compare.total_norm(grads), golden.gradients(case)
    compare.number("training loss", total.item(), want.loss, compare.OUTPUT)
    compare.number("total gradient norm", norm, want.total_norm, compare.GRADIENT)
    largest = compare.statistics(grads, want.statistics, norm)
    for name, tensor in want.tensors.items():
        largest = max(largest, compare.gradient(name, grads[name], tensor, norm))
    return largest
