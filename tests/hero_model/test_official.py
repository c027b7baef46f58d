"""Official weights that do not fit simply: old and half checkpoints, other heads, damaged files, RoBERTa's variants.

That official files round-trip exactly is checked against golden files in tests/parity/test_official_weights.py.
"""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

from hero_model.config import debug
from hero_model.hero import Hero
from hero_model.nn.answer_heads import AnswerHead
from hero_model.nn.heads import FrameHead, LmHead, OrderHead, QueryHead
from hero_model.official import (
    Report,
    config_from_official,
    fit_config,
    from_official,
    load_official,
    official_name,
    read_state,
    renamed,
    to_official,
)
from hero_model.roberta import load_roberta

CFG = replace(debug(), frame_dim=16, vocab_size=104, hidden_size=32)
WORDS = "v_encoder.f_encoder.embeddings.word_embeddings.weight"
POSITIONS = "v_encoder.f_encoder.img_embeddings.position_embeddings.weight"


class Whole(nn.Module):
    """Hero and some heads under the names of MultiTaskHero."""

    def __init__(self, cfg=CFG, heads=("lm", "frames", "order", "query")):
        super().__init__()
        makers = {"lm": LmHead, "frames": FrameHead, "order": OrderHead, "query": QueryHead, "answers": AnswerHead}
        self.hero = Hero(cfg)
        self.heads = nn.ModuleDict({name: makers[name](cfg) for name in heads})


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Whole()


@pytest.fixture
def state():
    torch.manual_seed(1)
    return to_official(Whole().state_dict())


def same(model, state, dtype=torch.float32):
    written = to_official(model.state_dict())
    return all(torch.equal(written[name], state[name].to(dtype)) for name in written)


def test_half_precision_is_widened(model, state):
    halves = {name: tensor.half() for name, tensor in state.items()}
    assert load_official(halves, model) == Report((), (), ())
    assert same(model, halves) and model.hero.words_VD.dtype == torch.float32


def test_the_released_checkpoint_variant(model, state):
    """FOM's head under its old name, retired heads, an entry that is no tensor (hero.md 2)."""
    released = {name.replace("v_encoder.fom_output.", "v_encoder.fr_output."): x for name, x in state.items()}
    extra = {"vocab_padded": True, "v_encoder.itm_clip_transform.net.0.weight": torch.zeros(2)}
    assert load_official(released | extra, model) == Report((), (), tuple(extra))
    assert same(model, state)
    # With both names present the old one is only a leftover.
    both = load_official(state | {"v_encoder.fr_output.linear_1.bias": torch.zeros(9)}, model)
    assert both.ignored == ("v_encoder.fr_output.linear_1.bias",)


def test_the_report_is_strict(state):
    partial = Whole(heads=("lm",))
    key = "v_encoder.c_encoder.encoder.layer.0.attention.self.key.weight"
    before = partial.hero.temporal.layers[0].attention.qkv.weight.clone()
    stranger = {name: x for name, x in state.items() if name != key} | {"v_encoder.surprise.weight": torch.ones(1)}
    report = load_official(stranger, partial)
    assert report.missing == (key,) and report.unexpected == ("v_encoder.surprise.weight",)
    heads = ("video_", "q_feat_attn.", "v_encoder.feat_regress.", "v_encoder.fom_output.")
    assert report.ignored and all(name.startswith(heads) for name in report.ignored)
    # Two thirds of a joined projection are not loaded: the initial values stay whole.
    assert torch.equal(partial.hero.temporal.layers[0].attention.qkv.weight, before)
    assert torch.equal(partial.hero.words_VD, state[WORDS])


def test_gradients_go_by_official_names(model):
    gradients = {name: torch.full_like(p, 2.0) for name, p in model.named_parameters()}
    query = "hero.cross.layers.1.attention.qkv.bias"
    gradients[query] = torch.arange(3 * CFG.hidden_size)
    split = renamed(gradients)
    prefix = "v_encoder.f_encoder.encoder.layer.1.attention.self"
    assert split[f"{prefix}.value.bias"].tolist() == list(range(2 * CFG.hidden_size, 3 * CFG.hidden_size))
    assert official_name(query) == f"{prefix}.query.bias"
    assert not any(name.endswith(("pad", "decoder.weight")) for name in split)
    with pytest.raises(ValueError, match=r"no parameter for heads\.new\.weight"):
        official_name("heads.new.weight")


def test_translation_without_a_model(state):
    ours, report = from_official(state, CFG)
    assert report == Report((), (), ())
    assert {name: x.shape for name, x in ours.items()} == {name: x.shape for name, x in Whole().state_dict().items()}


def test_translation_finds_the_task_heads_a_state_has(state):
    model = Whole(heads=("lm", "frames", "order", "answers"))
    ours, report = from_official(to_official(model.state_dict()), CFG)
    assert report == Report((), (), ()) and set(ours) == set(model.state_dict())
    both, report = from_official(state | to_official(model.state_dict()), CFG)
    assert report == Report((), (), ()) and {name.split(".")[1] for name in both if name.startswith("heads.")} == {
        "lm",
        "frames",
        "order",
        "query",
        "answers",
    }


def test_other_sizes_are_one_sentence(model, state):
    with pytest.raises(ValueError, match=r"position_embeddings.weight has shape \[7, 32\], .* makes it \[100, 32\]"):
        load_official(state | {POSITIONS: torch.zeros(7, 32)}, model)
    fitted = fit_config(CFG, state | {POSITIONS: torch.zeros(7, 32)})
    assert fitted == replace(CFG, max_segment_frames=7) and fit_config(CFG, {}) == CFG
    untied = state | {"v_encoder.f_encoder.lm_head.decoder.weight": torch.zeros_like(state[WORDS])}
    with pytest.raises(ValueError, match="differs from the word embedding"):
        load_official(untied, model)


class Evil:
    def __reduce__(self):
        return print, ("this file has run code",)


@pytest.mark.parametrize("kind", ["pickle", "damaged", "empty", "list"])
def test_unreadable_files(tmp_path, capsys, kind):
    path = tmp_path / "model.pt"
    if kind == "pickle":
        torch.save({"weight": Evil()}, path)
    elif kind == "list":
        torch.save([torch.zeros(2)], path)
    else:
        path.write_bytes(b"" if kind == "empty" else pickle.dumps({"a": 1})[:-3] + b"junk")
    with pytest.raises(ValueError, match=str(path)) as error:
        read_state(path)
    assert "\n" not in str(error.value)
    assert "this file has run code" not in capsys.readouterr().out


def test_files_of_the_wrong_thing(tmp_path, model):
    with pytest.raises(ValueError, match="there is no checkpoint file"):
        load_official(tmp_path / "none.pt", model)
    (tmp_path / "bad.safetensors").write_bytes(b"0" * 40)
    with pytest.raises(ValueError, match="no readable checkpoint"):
        load_official(tmp_path / "bad.safetensors", model)
    torch.save({"resnet.weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other.pt holds no HERO weights"):
        load_official(tmp_path / "other.pt", model)


PART = {
    "hidden_size": 32,
    "hidden_dropout_prob": 0.2,
    "attention_probs_dropout_prob": 0.3,
    "hidden_act": "gelu",
    "initializer_range": 0.01,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": 70,
}
RAW = {
    "f_config": PART | {"num_hidden_layers": 6, "vocab_size": 101, "type_vocab_size": 1},
    "c_config": PART | {"num_hidden_layers": 3, "max_position_embeddings": 50},
    "q_config": PART | {"num_hidden_layers": 0, "num_attention_heads": 2},
}


def test_official_configuration():
    cfg = config_from_official(RAW, frame_dim=16)
    assert (cfg.vocab_size, cfg.vocab_pad, cfg.type_vocab_size) == (104, 3, 2)
    assert (cfg.cross.num_layers, cfg.temporal.num_layers, cfg.query.num_heads) == (6, 3, 2)
    assert (cfg.cross.max_positions, cfg.temporal.max_positions) == (70, 50)
    assert (cfg.dropout, cfg.attention_dropout, cfg.initializer_range) == (0.2, 0.3, 0.01)
    captioning = config_from_official({name: part for name, part in RAW.items() if name != "q_config"})
    assert captioning.query.num_heads == 4
    with pytest.raises(ValueError, match="has no 'c_config'"):
        config_from_official({"f_config": RAW["f_config"]})
    with pytest.raises(ValueError, match="must be the same"):
        config_from_official(RAW | {"c_config": RAW["c_config"] | {"hidden_dropout_prob": 0.0}})


def roberta_state(num_layers=12, words=101):
    """A RoBERTa of CFG's sizes, from a deeper Hero's own encoder."""
    torch.manual_seed(2)
    deep = Whole(replace(CFG, cross=replace(CFG.cross, num_layers=num_layers)), heads=("lm",))
    prefix = "v_encoder.f_encoder."
    state = {n.removeprefix(prefix): x for n, x in to_official(deep.state_dict()).items() if n.startswith(prefix)}
    state = {n: x for n, x in state.items() if not n.startswith(("img_embeddings", "pad"))}
    state["embeddings.token_type_embeddings.weight"] = state["embeddings.token_type_embeddings.weight"][:1]
    for name in ("embeddings.word_embeddings.weight", "lm_head.bias", "lm_head.decoder.weight"):
        state[name] = state[name][:words]
    return {f"roberta.{name}": x for name, x in state.items()}


@pytest.mark.parametrize(("skip_layers", "layers"), [(True, (5, 11)), (False, (0, 1))])
def test_roberta_layers(skip_layers, layers):
    model, roberta = Whole(replace(CFG, vocab_pad=3)), roberta_state()
    assert load_roberta(model, roberta, skip_layers=skip_layers) == Report((), (), ())
    written = to_official(model.state_dict())
    name = "encoder.layer.{}.intermediate.dense.weight"
    for ours, theirs in enumerate(layers):
        assert torch.equal(
            written["v_encoder.f_encoder." + name.format(ours)], roberta["roberta." + name.format(theirs)]
        )
    assert model.hero.words_VD[101:].abs().max() == 0


def test_roberta_without_its_language_head():
    """Stock files name it otherwise; the official code then skips it and leaves PyTorch's initialisation (1.13)."""
    model, roberta = Whole(replace(CFG, vocab_pad=3)), roberta_state()
    stock = {name.replace("roberta.lm_head.", "lm_head."): x for name, x in roberta.items()}
    report = load_roberta(model, stock)
    assert {name.split(".")[2] for name in report.missing} == {"lm_head"}
    assert set(report.ignored) == {name for name in stock if name.startswith("lm_head.")}
    dense = model.heads["lm"].dense
    assert (
        dense.weight.abs().max() <= CFG.hidden_size**-0.5 and dense.weight.std() > 0.09 and dense.bias.abs().max() > 0
    )


def test_roberta_must_fit():
    with pytest.raises(ValueError, match="RoBERTa has 101 words and the model 104 with vocab_pad 0"):
        load_roberta(Whole(), roberta_state())
    with pytest.raises(ValueError, match="holds no RoBERTa weights"):
        load_roberta(Whole(), {"bert.embeddings.word_embeddings.weight": torch.zeros(4, 32)})
