"""Vision models of `transformers` as encoders, from a local folder or the Hugging Face hub: CLIP, ViT, VideoMAE, ...

Only safetensors and JSON are read and no code that comes with a model is run (design D6).
"""

from __future__ import annotations

import hashlib
import os
from importlib.metadata import version
from typing import Any

import torch

from hero_platform import files
from hero_platform.video.encoders import normalised, preprocessing
from hero_platform.video.views import View

_FIRST_TOKEN = frozenset(
    ("beit", "clip_vision_model", "deit", "dinov2", "dinov3_vit", "timesformer", "vit", "vit_msn", "vivit")
)
_HALF = (0.5, 0.5, 0.5)  # mean and deviation where a folder has no preprocessor_config.json


class VisionModel:
    """One vision model; which of its outputs is the feature follows from its kind.

    Two towers (CLIP, SigLIP): the projected image feature. Maps (ResNet, ConvNeXt): their average. Tokens: the first
    where models of this kind are trained to put the summary there (ViT, TimeSformer), else the average (VideoMAE).
    """

    def __init__(self, name: str, device: str) -> None:
        """Load a model.

        Raises:
            ValueError: it is not there, is damaged, or no vision model.
        """
        self._name = name
        folder = name if os.path.isdir(name) else _downloaded(name)
        self._model, self._sha256 = _loaded(folder)
        self._model = self._model.eval().to(device)
        config = self._model.config
        self._kind = config.model_type
        self._vision = getattr(config, "vision_config", config)
        self._is_clip = hasattr(self._vision, "num_frames")
        self.view, self._mean, self._std = _preprocessing(folder, self._vision)
        with torch.inference_mode():
            empty = torch.zeros(1, self.view.frames, 3, self.view.height, self.view.width, device=device)
            self.width = self.encode(empty).shape[1]

    def describe(self) -> dict[str, Any]:
        """See `Encoder`. A folder is known by its name; its weights' digest says which model it is."""
        return {
            "name": files.name_of(self._name) if os.path.isdir(self._name) else self._name,
            "kind": f"transformers {self._kind}",
            "version": version("transformers"),
            "weights_sha256": self._sha256,
            "preprocessing": preprocessing(self.view, self._mean, self._std),
        }

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """See `Encoder`."""
        images = normalised(pixels, self._mean, self._std)
        images = images if self._is_clip else images[:, 0]
        if hasattr(self._model, "get_image_features"):
            found = self._model.get_image_features(pixel_values=images)
            return found if isinstance(found, torch.Tensor) else found.pooler_output
        states = self._model(pixel_values=images).last_hidden_state
        if states.dim() == 4:  # [N, width, rows, columns]
            return states.mean(dim=(2, 3))
        return states[:, 0] if self._kind in _FIRST_TOKEN else states.mean(dim=1)


def _downloaded(name: str) -> str:
    """Folder of a model of the hub, from the local cache if it is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return str(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, HFValidationError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"encoder {name}: no such folder, and the Hugging Face hub did not give it: {reason}"
        ) from error


def _loaded(folder: str) -> tuple[Any, str]:
    """The model in a folder, and the digest of its weights."""
    weights = sorted(name for name in files.listdir(folder) if name.endswith(".safetensors"))
    if "config.json" not in files.listdir(folder) or not weights:
        raise ValueError(f"{folder} holds no model of transformers (config.json and *.safetensors)")
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, report = AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # of many kinds, all of which mean this
        raise ValueError(f"{folder}: its model cannot be loaded: {str(error).splitlines()[0]}") from error
    missing = sorted(name for name in report["missing_keys"] if "pooler" not in name)
    if missing:
        raise ValueError(f"{folder}: its weights lack {len(missing)} tensors of the model, such as {missing[0]}")
    if not hasattr(getattr(model.config, "vision_config", model.config), "num_channels"):
        raise ValueError(f"{folder} holds a {model.config.model_type}, which sees no pictures")
    digests = [files.sha256_file(files.join(folder, name)) for name in weights]
    return model, digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _preprocessing(folder: str, config: Any) -> tuple[View, tuple[float, ...], tuple[float, ...]]:
    """The view, mean and deviation that a folder's preprocessor_config.json asks for, or those of its kind."""
    stated: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        if not stated and name in files.listdir(folder):
            stated = files.read_json(files.join(folder, name))
    frames = int(getattr(config, "num_frames", 1))
    side = int(_first(getattr(config, "image_size", 224)))
    size, crop = stated.get("size"), stated.get("crop_size")
    height, width = _sides(crop if crop and stated.get("do_center_crop", True) else size, side)
    short_side: int | None = None
    if isinstance(size, dict) and "shortest_edge" in size:
        short_side = max(int(size["shortest_edge"]), min(height, width))
    elif stated.get("do_center_crop") or not isinstance(size, dict):
        short_side = max(height, width)
    mean, std = (tuple(stated.get(name) or _HALF) for name in ("image_mean", "image_std"))
    return View(frames, height, width, short_side), mean, std


def _sides(size: Any, default: int) -> tuple[int, int]:
    """Height and width of the forms a size is written in."""
    if isinstance(size, dict) and "height" in size:
        return int(size["height"]), int(size["width"])
    if isinstance(size, dict) and "shortest_edge" in size:
        return int(size["shortest_edge"]), int(size["shortest_edge"])
    return (int(size), int(size)) if isinstance(size, int) else (default, default)


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list | tuple) else value
