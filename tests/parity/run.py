"""Running a case on the oracle."""

from __future__ import annotations

from oracle import tasks
from oracle.model import Batch, Oracle
from parity import golden
from parity.golden import Case


def oracle(case: Case, model: Oracle, batch: Batch) -> tasks.Outputs:
    """The outputs of one case."""
    if case.task == "mlm":
        return tasks.mlm(model, batch, golden.vocab_pad(case))
    if case.task in ("vsm", "vcmr", "vr"):
        out = tasks.retrieval(model, batch, golden.ranking(case))
        return out | ({"frame_embeddings_no_clip": model.fused(batch)} if case.is_solo else {})
    return {"mfm-nce": tasks.mfm_nce, "mffr": tasks.mffr, "fom": tasks.fom}[case.task](model, batch)
