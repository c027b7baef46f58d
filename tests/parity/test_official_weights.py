"""Official weights by name: what we write is what the official code wrote, and RoBERTa initialises the same model."""

from __future__ import annotations

import re

import pytest
import torch
from parity import golden, packed
from safetensors.torch import load_file

from hero_model import official
from hero_model.roberta import load_roberta
from hero_platform.train import optim

ROBERTA = golden.files("roberta_init/info.json")


def set_id(path):
    return path.parent.name if path.is_file() else path.name


# Official classes with heads of their own.
TASK_OF = {"HeroForVideoQA": "videoqa", "HeroForViolin": "violin", "HeroForTvc": "tvc"}
NOT_STORED = {"tvc": {"decoder.tri_mask"}}  # a constant that the golden files leave out


@pytest.mark.parametrize("folder", golden.sets(), ids=set_id)
@pytest.mark.parametrize("task", ["", *TASK_OF.values()])
def test_round_trip(folder, task):
    if task and not (folder / task).is_dir():
        pytest.skip(f"{folder} has no weights for {task}")
    stored = golden.stored_weights(folder, task)
    model = packed.load(folder, task=task)
    report = official.load_official(stored, model)
    assert (report.missing, report.unexpected, report.ignored) == ((), (), ())
    written = official.to_official(model.state_dict())
    assert set(written) == set(stored) | NOT_STORED.get(task, set())
    for name, tensor in stored.items():
        assert torch.equal(written[name], tensor if not name.endswith("pad") else torch.zeros_like(tensor)), name


@pytest.mark.parametrize("path", golden.files("state_dict_keys.json"), ids=set_id)
def test_names_shapes_and_kinds(path):
    listed = golden.read_json(path)
    for kind in {"HeroForPretraining", "HeroForVcmr", "HeroForVr", *TASK_OF} & set(listed):
        model = packed.load(path.parent, task=TASK_OF.get(kind, ""))
        written = official.to_official(model.state_dict())
        trained = {name for ours, _ in model.named_parameters() for name in official.renamed({ours: torch.zeros(3)})}
        want = {name: (tuple(shape), dtype, use) for name, shape, dtype, use in listed[kind]}
        assert set(written) == set(want)
        for name, (shape, dtype, use) in want.items():
            tied = name.endswith("lm_head.decoder.weight")
            assert (tuple(written[name].shape), str(written[name].dtype)) == (shape, f"torch.{dtype}"), name
            assert (name in trained or tied) == (use == "param"), name


@pytest.mark.parametrize("path", golden.files("ckpt/*.pt"), ids=lambda path: f"{path.parts[-3]}:{path.name}")
def test_saved_checkpoint(path):
    """What the official ModelSaver writes: the state dict and one entry that is no tensor."""
    stored = torch.load(path, weights_only=True)
    extra = {name for name, value in stored.items() if not isinstance(value, torch.Tensor)}
    model = packed.load(path.parents[1])
    report = official.load_official(path, model)
    assert (report.missing, report.unexpected, set(report.ignored)) == ((), (), extra)
    written = official.to_official(model.state_dict())
    assert all(torch.equal(written[name], stored[name]) for name in written if not name.endswith("pad"))


@pytest.mark.parametrize("path", ROBERTA, ids=lambda path: path.parts[-3])
def test_roberta_initialisation(path, errors):
    info = golden.read_json(path)
    shapes = {name: shape for name, shape, _, _ in info["all_keys"]}
    cfg = official.config_from_official(
        golden.read_json(path.with_name("config.json")),
        frame_dim=shapes["v_encoder.mask_embedding.weight"][1],
        max_segment_frames=shapes["v_encoder.f_encoder.img_embeddings.position_embeddings.weight"][0],
    )
    assert cfg.vocab_pad == info["vocab_pad"]
    torch.manual_seed(0)
    model = packed.all_heads(cfg)
    before = {name: tensor.clone() for name, tensor in official.to_official(model.state_dict()).items()}
    assert {name: list(tensor.shape) for name, tensor in before.items()} == shapes
    report = load_roberta(model, path.with_name("roberta_ckpt.safetensors"))
    assert (report.missing, report.unexpected) == ((), ())
    after, want = official.to_official(model.state_dict()), load_file(path.with_name("after_load.safetensors"))
    for name, tensor in want.items():
        assert torch.equal(after[name], torch.zeros_like(tensor) if name.endswith("pad") else tensor), name
    for name in set(after) - set(want) - {"v_encoder.mask_embedding.weight"}:
        assert torch.equal(after[name], before[name]), f"{name} changed"
    rows = after["v_encoder.mask_embedding.weight"]
    assert rows[0].abs().max().item() == info["mask_embedding_row0_absmax_v_encoder"]
    assert torch.equal(rows[1], before["v_encoder.mask_embedding.weight"][1])
    types = after["v_encoder.f_encoder.embeddings.token_type_embeddings.weight"]
    assert torch.equal(types[0], types[1]) == info["token_type_rows_equal"]
    errors.note("load_roberta weights", "roberta_init", str(path), 0.0)


@pytest.mark.parametrize("folder", golden.sets(), ids=set_id)
@pytest.mark.parametrize("kind", ["HeroForPretraining", *TASK_OF])
def test_optimizer_groups(folder, kind):
    """The product's groups over the packed model are the official ones, joined projections named by their parts."""
    path = golden.root() / "schedule.json"
    if not path.is_file():
        pytest.skip(f"{golden.root()} holds no schedule.json")
    groups = golden.read_json(path)["adamw_param_groups"]["models"][kind]
    model = packed.load(folder, task=TASK_OF.get(kind, ""))
    ours = optim.param_groups(model.named_parameters(), official.official_name, weight_decay=0.01, head_lr_mul=10.0)
    for got, want in zip(ours, groups, strict=True):
        names = {part for name in got["names"] for part in official.renamed({name: torch.zeros(3)})}
        assert unnumbered(names) == unnumbered(want["params"])
        assert (got["weight_decay"], got["lr_mul"]) == (want["weight_decay"], want["initial_lr_times"])


def unnumbered(names):
    """Without layer numbers: the listed model has another depth."""
    return {re.sub(r"\.layer\.\d+\.", ".layer.#.", name) for name in names}
