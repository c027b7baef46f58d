"""Official weights in and out through the command line, and a run that starts from them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hero_model.official import to_official
from hero_platform import config_io
from hero_platform.infer.evaluation import load_model
from hero_platform.train import resolve, snapshot
from hero_platform.train.worker import build_module
from jobs import convert, evaluate

REPO = Path(__file__).resolve().parents[2]
SHARED = REPO.parent / "shared" / "golden"
TINY = Path(os.environ.get("HERO_GOLDEN_DIR") or (SHARED if SHARED.is_dir() else REPO / "tests" / "golden")) / "tiny"
SIZES, ROBERTA_SIZES = str(TINY / "config_finetune.json"), str(TINY / "roberta_init" / "config.json")


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_there_and_back(ending: str, tmp_path: Path, capsys):
    source = TINY / "weights_pretrain.safetensors"
    out, back = str(tmp_path / "hero"), str(tmp_path / f"back{ending}")
    command = ["checkpoint", str(source), "--out", out, "--config", str(TINY / "config_finetune.json")]
    assert convert.main([*command, "--json", str(tmp_path / "a.json")]) == 0
    facts = json.loads((tmp_path / "a.json").read_text())
    assert facts["missing"] == facts["unexpected"] == facts["ignored"] == []
    assert convert.main(["official", facts["folder"], "--out", back]) == 0
    want = load_file(source)
    got = torch.load(back, weights_only=True) if ending == ".pt" else load_file(back)
    assert set(got) == set(want)
    assert all(torch.equal(got[name], want[name].float()) for name in want)


@pytest.mark.parametrize(("ending", "saver"), [(".pt", "torch.save"), (".safetensors", "safetensors.torch.save_file")])
def test_a_file_is_replaced_only_whole(ending: str, saver: str, tmp_path: Path, monkeypatch):
    source, out = TINY / "weights_pretrain.safetensors", tmp_path / f"back{ending}"
    assert convert.main(["checkpoint", str(source), "--out", str(tmp_path / "hero"), "--config", SIZES]) == 0
    command = ["official", str(tmp_path / "hero" / "step_00000000"), "--out", str(out)]
    assert convert.main(command) == 0
    first = out.read_bytes()
    assert convert.main(command) == 0 and out.read_bytes() == first

    def tear(state: object, target: Any) -> None:
        (target if hasattr(target, "write") else target.open("wb")).write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(saver, tear)
        assert convert.main(command) == 130
    assert out.read_bytes() == first and sorted(os.listdir(tmp_path)) == [out.name, "hero"]


def test_what_the_official_saver_wrote_starts_a_run(tmp_path: Path):
    out = str(tmp_path / "hero")
    source, sizes = str(TINY / "ckpt" / "model_step_7.pt"), str(TINY / "config_finetune.json")
    assert convert.main(["checkpoint", source, "--out", out, "--config", sizes, "--recipe", "finetune_tvr"]) == 0
    folder = f"{out}/step_00000000"
    module, config = load_model(folder)  # as jobs.evaluate --checkpoint does
    official = torch.load(source, weights_only=True)
    for name, value in to_official(module.state_dict()).items():
        assert torch.equal(value, official[name].float()), name
    assert resolve.weights_of(folder) == resolve.weights_of(out) == folder
    module = build_module(config_io.from_json(json.dumps({**config_io.to_dict(config), "init_from": folder})))
    assert torch.equal(module.hero.cross.text.words.weight, snapshot.load(folder).model["hero.cross.text.words.weight"])


def test_a_folder_keeps_the_conversion_it_holds(tmp_path: Path, capsys):
    out, source, retrained = tmp_path / "hero", TINY / "weights_pretrain.safetensors", tmp_path / "x.safetensors"
    state = load_file(source)
    save_file({**state, "v_encoder.mask_embedding.weight": state["v_encoder.mask_embedding.weight"] + 1}, retrained)
    command, other = (
        ["checkpoint", str(path), "--out", str(out), "--config", str(TINY / "config_finetune.json")]
        for path in (source, retrained)
    )

    def content() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in out.rglob("*") if path.is_file()}

    assert convert.main(command) == 0
    first = content()
    assert convert.main(command) == 0 and content() == first  # the same again is fine
    for words in ([*command, "--recipe", "finetune_tvr"], other):
        assert convert.main(words) == 2
        error = capsys.readouterr().err
        assert "already holds checkpoints that are not this conversion" in error and error.count("\n") == 1
        assert content() == first

    (out / "step_00000000").rename(out / "step_00000007")  # as in the checkpoints of a run, which must not be thinned
    assert convert.main(command) == 2 and len(content()) == len(first)
    (out / "step_00000007").rename(out / "step_00000000")
    (out / "step_00000000" / "model.safetensors").write_bytes(b"damaged")
    assert convert.main(command) == 0
    assert snapshot.load(str(out / "step_00000000")).step == 0


def test_roberta_gives_its_part_of_the_initial_weights(tmp_path: Path):
    (tmp_path / "roberta").mkdir()
    state = load_file(TINY / "roberta_init" / "roberta_ckpt.safetensors")
    save_file(state, tmp_path / "roberta" / "model.safetensors")
    command = ["roberta", str(tmp_path / "roberta"), "--out", str(tmp_path / "out"), "--frame-dim", "12"]
    assert convert.main([*command, "--config", str(TINY / "roberta_init" / "config.json")]) == 0
    got = to_official(snapshot.load(str(tmp_path / "out" / "step_00000000")).model)
    for name, value in load_file(TINY / "roberta_init" / "after_load.safetensors").items():
        assert torch.equal(got[name], value), name
    assert not got["v_encoder.mask_embedding.weight"][0].any()
    others = [name for name in got if not name.startswith("v_encoder.f_encoder.")]
    assert set(others) <= {"v_encoder.mask_embedding.weight", "v_encoder.pad"}  # a run draws the rest itself


@pytest.mark.parametrize(
    ("words", "lacking"),
    [
        (["roberta", str(TINY / "roberta_init"), "--frame-dim", "12", "--config", ROBERTA_SIZES], "mlm, "),
        (
            ["checkpoint", str(TINY / "weights_pretrain.safetensors"), "--config", SIZES, "--recipe", "finetune_tvqa"],
            "video_qa (heads.answers.",
        ),
    ],
)
def test_a_part_of_a_model_is_no_model_to_evaluate(
    words: list[str], lacking: str, tiny_store: str, tmp_path: Path, capsys
):
    if words[0] == "roberta":
        shutil.copytree(words[1], tmp_path / "roberta")
        (tmp_path / "roberta" / "roberta_ckpt.safetensors").rename(tmp_path / "roberta" / "model.safetensors")
        words = ["roberta", str(tmp_path / "roberta"), *words[2:]]
    assert convert.main([*words, "--out", str(tmp_path / "out")]) == 0
    folder = f"{tmp_path}/out/step_00000000"
    where = ["--corpus", "synthetic", "--split", "val", "--store", tiny_store]
    assert evaluate.main(["--checkpoint", folder, *where]) == 2
    error = capsys.readouterr().err
    assert f"{folder} has no weights for {lacking}" in error and f"--init-from {folder}" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("writer", "reason"),
    [
        ("zip", "it wants to run posix.mkdir, and code is refused"),
        ("legacy", "it wants to run posix.mkdir, and code is refused"),
        ("pickle", "a damaged pickle, or objects in it"),  # of a protocol that checkpoints do not use
    ],
)
def test_code_in_a_checkpoint_is_refused_and_not_run(writer: str, reason: str, tmp_path: Path, capsys, recwarn):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    state = {"v_encoder.f_encoder.embeddings.word_embeddings.weight": torch.ones(2, 2), "hidden": Evil()}
    if writer == "pickle":
        (tmp_path / "evil.pt").write_bytes(pickle.dumps({"hidden": Evil()}))
    else:
        torch.save(state, tmp_path / "evil.pt", _use_new_zipfile_serialization=writer == "zip")
    assert convert.main(["checkpoint", str(tmp_path / "evil.pt"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"evil.pt is no readable checkpoint of tensors and plain values: {reason}\n" in error
    assert error.count("\n") == 1
    assert list(recwarn) == []  # which would be further lines
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_a_folder_and_a_file_in_each_others_place_are_one_line(tmp_path: Path, capsys):
    source = str(TINY / "weights_pretrain.safetensors")
    command = ["checkpoint", source, "--config", str(TINY / "config_finetune.json"), "--out"]
    assert convert.main([*command, str(tmp_path / "hero")]) == 0
    for ending in ("pt", "safetensors"):
        folder = tmp_path / f"folder.{ending}"
        folder.mkdir()
        assert convert.main(["official", str(tmp_path / "hero" / "step_00000000"), "--out", str(folder)]) == 2
        error = capsys.readouterr().err
        assert f"--out {folder} is a folder: name a file in it" in error and error.count("\n") == 1
        assert list(folder.iterdir()) == [] and not list(tmp_path.glob("*.partial"))
    (tmp_path / "file").write_text("mine")
    assert convert.main([*command, str(tmp_path / "file")]) == 2
    error = capsys.readouterr().err
    assert "is a file: name a folder for the checkpoint" in error and error.count("\n") == 1


def test_mistakes_are_one_line(tmp_path: Path, capsys):
    save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors")
    (folder := tmp_path / "folder.pt").mkdir()
    for words, message in (
        (["checkpoint", str(tmp_path / "none.pt")], "there is no checkpoint file"),
        (["checkpoint", str(tmp_path / "x.safetensors")], "holds no HERO weights"),
        (["roberta", str(tmp_path)], "no RoBERTa weights there"),
        (["official", str(tmp_path)], "is missing"),
        (["official", str(tmp_path), "--out", str(folder)], "is a folder: name a file in it"),
        (["official", str(tmp_path / "none"), "--dry-run"], "there is nothing to convert at"),
        (["checkpoint", str(tmp_path / "x.safetensors"), "--recipe", "pretrain_tw"], "did you mean pretrain_tv?"),
    ):
        assert convert.main([words[0], "--out", str(tmp_path / "out.pt"), *words[1:]]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
