"""Finding golden cases by listing folders, and reading them. Nothing here knows the name of a set.

A set is a sub-folder of `$HERO_GOLDEN_DIR` (default: ../shared/golden beside the repository where it exists, else
tests/golden) that holds a `spec.json` and pre-training weights. A set may lack kinds; the default folder may not.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from oracle.model import Batch, Heads
from oracle.tasks import Ranking
from safetensors.torch import load_file
from torch import Tensor

REPO = Path(__file__).resolve().parents[2]

# Every kind of case the default folder must hold: one that is missing there is a failure, not a skip.
KINDS = (
    "padded/mlm",
    "padded/mfm-nce",
    "padded/mffr",
    "padded/fom",
    "padded/vsm",
    "padded/vcmr",
    "padded/vcmr_infer",
    "padded/vr",
    "padded/inter_vsm",
    "padded/videoqa",
    "padded/violin",
    "padded/tvc",
    "greedy",
    "solo/mlm",
    "solo/mfm-nce",
    "solo/mffr",
    "solo/fom",
    "solo/vsm",
    "solo/vcmr",
    "solo/vcmr_infer",
    "solo/vr",
    "solo/videoqa",
    "solo/violin",
    "solo/tvc",
    "train_steps",
    "train_steps_set_to_none",
    "train_steps_accum2_mlm",
    "train_steps_videoqa",
    "train_steps_violin",
    "train_steps_tvc",
    "roberta_init",
    "state_dict_keys",
    "schedule",
    "metrics/retrieval",
    "metrics/caption",
    "metrics/functions",
)

# The files of a padded case: folder -> the kind of every output file in it, by the longest matching start of its name.
_PADDED = {
    "pretrain": {"mlm": "mlm", "mfm-nce": "mfm-nce", "mffr": "mffr", "fom": "fom", "vsm": "vsm"},
    "vcmr": {"infer": "vcmr_infer", "": "vcmr"},
    "vr": {"": "vr"},
    "videoqa": {"": "videoqa"},
    "violin": {"": "violin"},
    "tvc": {"": "tvc"},
}
_SOLO_KINDS = ("mlm", "mfm-nce", "mffr", "fom", "vsm", "vcmr", "vr", "vcmr_infer", "videoqa", "violin", "tvc")


def default_root() -> Path:
    """The golden folder a run without `$HERO_GOLDEN_DIR` checks."""
    shared = REPO.parent / "shared" / "golden"
    return shared if shared.is_dir() else REPO / "tests" / "golden"


def root() -> Path:
    """The golden folder of this run."""
    return Path(os.environ.get("HERO_GOLDEN_DIR") or default_root())


@dataclass(frozen=True)
class Case:
    """One official batch with its outputs."""

    set: Path
    kind: str  # "padded/vsm", "solo/mlm", ...
    name: str  # unique within the set: "pretrain/vsm_hardneg"
    batch: Path  # without suffix; for inference the videos' batch, or the folder in solo
    out: Path
    grads: Path | None

    @property
    def task(self) -> str:
        """The kind without padded/ or solo/."""
        return self.kind.split("/", 1)[1]

    @property
    def is_solo(self) -> bool:
        """No clip of the batch is padded."""
        return self.kind.startswith("solo/")

    @property
    def id(self) -> str:
        """Test id: set, then case."""
        return f"{self.set.name}:{self.name}"


def sets() -> list[Path]:
    """The sets of this run's golden folder."""
    found = (path.parent for path in root().glob("*/spec.json"))
    return sorted(path for path in found if (path / "weights_pretrain.safetensors").is_file())


def _longest(names: list[str], wanted: str) -> str | None:
    return max((name for name in names if wanted.startswith(name)), key=len, default=None)


def _padded_cases(folder: Path) -> list[Case]:
    cases = []
    for part, kinds in _PADDED.items():
        batches = [path.stem.removeprefix("batch_") for path in sorted((folder / part).glob("batch_*.safetensors"))]
        for out in sorted((folder / part).glob("out_*.safetensors")):
            name = out.stem.removeprefix("out_")
            kind = _longest(list(kinds), name)
            batch = _longest(batches, "infer_videos" if name == "infer" else name.replace("mffr", "mfm"))
            if kind is None or batch is None:
                raise ValueError(f"{out}: no kind or batch goes with this output file; see tests/parity/golden.py")
            grads = folder / part / f"grads_{name}.json"
            cases.append(
                Case(
                    set=folder,
                    kind=f"padded/{kinds[kind]}",
                    name=f"{part}/{name}",
                    batch=folder / part / f"batch_{batch}",
                    out=out,
                    grads=grads if grads.is_file() else None,
                )
            )
    return cases


def _solo_cases(folder: Path) -> list[Case]:
    cases = []
    for raw in sorted((folder / "solo").glob("*/*/raw.json")):
        task = read_json(raw)["task"]
        if task not in _SOLO_KINDS:
            continue
        where = folder / "solo" / read_json(raw).get("batch_and_raw_in", raw.parent.relative_to(folder / "solo"))
        cases.append(
            Case(
                set=folder,
                kind=f"solo/{task}",
                name=str(raw.parent.relative_to(folder)),
                batch=where if task == "vcmr_infer" else where / "batch",
                out=raw.parent / "out.safetensors",
                grads=None if task == "vcmr_infer" else folder / "solo" / "grad_norms.json",
            )
        )
    return cases


def cases() -> list[Case]:
    """Every batch case of every set, padded and solo."""
    return [case for folder in sets() for case in (*_padded_cases(folder), *_solo_cases(folder))]


def pretraining(folder: Path) -> dict[str, Case]:
    """The padded pre-training cases of a set by their names in `train_steps.json`: mlm, mfm-nce, ..."""
    return {case.name.split("/")[1]: case for case in _padded_cases(folder) if case.name.startswith("pretrain/")}


def files(pattern: str) -> list[Path]:
    """Files or folders of the sets (`*/...` matched below each set), for kinds that are not batches."""
    return sorted(path for folder in sets() for path in folder.glob(pattern))


def metrics(kind: str) -> list[Path]:
    """Examples of the official evaluators: `retrieval`, `caption`, `functions`."""
    return sorted((root() / "metrics").glob(f"{kind}*.json"))


def kinds_present() -> dict[str, int]:
    """How many cases of each kind this run's folder holds."""
    counts: dict[str, int] = {}
    for case in cases():
        counts[case.kind] = counts.get(case.kind, 0) + 1
    for kind in ("train_steps", "train_steps_set_to_none", "train_steps_accum2_mlm"):
        counts[kind] = len(files(f"pretrain/{kind}.json"))
    counts["greedy"] = len(greedy())
    for part in ("videoqa", "violin", "tvc"):
        counts[f"train_steps_{part}"] = len(files(f"{part}/train_steps.json"))
    counts["padded/inter_vsm"] = len(files("pretrain/inter_vsm.safetensors"))
    counts["roberta_init"] = len(files("roberta_init/info.json"))
    counts["state_dict_keys"] = len(files("state_dict_keys.json"))
    counts["schedule"] = int((root() / "schedule.json").is_file())
    for kind in ("retrieval", "caption", "functions"):
        counts[f"metrics/{kind}"] = len(metrics(kind))
    return {kind: count for kind, count in counts.items() if count}


def read_json(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text())


def read_batch(stem: Path) -> Batch:
    """Tensors and Python entries of an official batch, under one dict."""
    tensors: dict[str, Any] = dict(load_file(stem.with_name(f"{stem.name}.safetensors")))
    return {**tensors, **read_json(stem.with_name(f"{stem.name}.json"))["python"]}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file."""
    return load_file(path)


@lru_cache(maxsize=8)
def stored_weights(folder: Path, task: str = "") -> dict[str, Tensor]:
    """A set's weights as they lie on disk; shared, so never written to.

    A task with heads of its own (`<task>/weights_heads.safetensors`) has these instead of those of pre-training.
    """
    stored, heads = load_file(folder / "weights_pretrain.safetensors"), folder / task / "weights_heads.safetensors"
    if not heads.is_file():
        return stored
    return {name: tensor for name, tensor in stored.items() if name.startswith("v_encoder.")} | load_file(heads)


def weights(folder: Path, task: str = "") -> dict[str, Tensor]:
    """Fresh trainable copies of a set's weights, official names. The tied decoder stands once, as word embeddings."""
    return {
        name: tensor.clone().requires_grad_(not name.endswith(("pad", "one_hot")))
        for name, tensor in stored_weights(folder, task).items()
        if not name.endswith("lm_head.decoder.weight")
    }


def model_config(folder: Path) -> dict[str, Any]:
    """The official model config whose vocabulary the stored weights have, with the decoder's if the set has one."""
    path = folder / "config_finetune.json"
    config = read_json(path if path.is_file() else folder / "config_pretrain.json")
    captions = folder / "config_tvc.json"
    return config | ({"d_config": read_json(captions)["d_config"]} if captions.is_file() else {})


def heads(folder: Path) -> Heads:
    """Head counts of a set, one per stack."""
    config = model_config(folder)
    parts = ("f_config", "c_config", "q_config", "d_config")
    return Heads(*(config[part]["num_attention_heads"] for part in parts if part in config))


def sizes(folder: Path) -> dict[str, int]:
    """What random examples for a set's weights need to know."""
    stored = stored_weights(folder)
    return {
        "vocab": read_json(folder / "spec.json")["spec"]["vocab_raw"],
        "width": stored["v_encoder.mask_embedding.weight"].shape[1],
        "fom_classes": len(stored["v_encoder.fom_output.linear_2.bias"]),
        "segment_frames": len(stored["v_encoder.f_encoder.img_embeddings.position_embeddings.weight"]),
        "clip_frames": len(stored["v_encoder.c_encoder.embeddings.position_embeddings.weight"]),
    }


def vocab_pad(case: Case) -> int:
    """How many trailing classes this MLM case drops."""
    if case.is_solo:
        return read_json(case.out.with_name("raw.json"))["settings"]["vocab_pad"]
    spec = read_json(case.set / "spec.json")["spec"]
    return 0 if case.name.endswith("vocabpad0") else spec["vocab"] - spec["vocab_raw"]


def ranking(case: Case) -> Ranking:
    """Loss settings of a VSM, VCMR or VR case."""
    spec = read_json(case.set / "spec.json")
    if case.task == "vr":
        solo = case.set / "solo" / "spec.json"
        given = read_json(solo)["vr_kwargs"] if solo.is_file() else {"lw_neg_ctx": 10.0, "lw_neg_q": 10.0}
        given = {"lw_st_ed": 0.0, "ranking_loss_type": "hinge", "margin": spec["spec"]["margin"], **given}
    else:
        given = spec["vsm_kwargs"]
    settings = Ranking(
        span_weight=given["lw_st_ed"],
        ctx_weight=given["lw_neg_ctx"],
        query_weight=given["lw_neg_q"],
        margin=given["margin"],
        ranking="lse" if case.name.endswith("_lse") else given["ranking_loss_type"],
    )
    model = read_json(case.out.with_name("raw.json"))["settings"].get("model", {}) if case.is_solo else {}
    if model.get("use_hard_negative"):
        return replace(settings, hard_pool=model["hard_pool_size"], hard_weight=float(model["hard_neg_weight"]))
    if case.name.endswith("_hardneg"):
        return replace(settings, hard_pool=spec["spec"]["hard_pool"])
    return settings


def span_weight(case: Case) -> float:
    """Weight of the span loss in question answering; officially .4 (hero.md 4.4)."""
    settings = read_json(case.out.with_name("raw.json"))["settings"] if case.is_solo else {}
    return settings.get("temporal_weight", 0.4)


def smoothing(case: Case) -> float:
    """Label smoothing of a captioning case, which the name of a padded one says."""
    if case.is_solo:
        return read_json(case.out.with_name("raw.json"))["settings"]["lsr"]
    return float(case.name.rpartition("_lsr")[2])


def greedy() -> list[Path]:
    """Files with captions decoded greedily."""
    return files("tvc/greedy.json") + files("solo/*/*/greedy.json")


def as_batches(case: Case) -> tuple[Batch, Batch]:
    """Videos and queries of a padded inference case."""
    return read_batch(case.batch), read_batch(case.batch.with_name(case.batch.name.replace("videos", "queries")))


def head(tensor: Tensor) -> list[float]:
    """The first four entries, as the golden files store them."""
    return torch.as_tensor(tensor).flatten()[:4].tolist()


@dataclass(frozen=True)
class Gradients:
    """What a case stores of the gradients of its training loss."""

    loss: float
    total_norm: float
    statistics: dict[str, dict[str, Any] | None]  # {norm, sum, absmax, head}; solo has the norm only
    tensors: dict[str, Tensor]  # solo: a few full gradients


def gradients(case: Case) -> Gradients:
    """The stored gradients of a case that has them."""
    assert case.grads is not None
    stored = read_json(case.grads)
    if not case.is_solo:
        return Gradients(stored["loss"], stored["total_grad_norm"], stored["params"], {})
    key = case.name.removeprefix("solo/")
    entry = stored["cases"][key]
    names = stored["param_names"][case.task]
    norms = {n: None if v is None else {"norm": v} for n, v in zip(names, entry["norms"], strict=True)}
    full = read_tensors(case.set / "solo" / "grad_tensors.safetensors")
    tensors = {name.split("|", 1)[1]: value for name, value in full.items() if name.startswith(f"{key}|")}
    return Gradients(entry["loss"], entry["total_grad_norm"], norms, tensors)
