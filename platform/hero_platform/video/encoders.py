"""What turns pictures into features: the contract, and which encoder a name means.

An encoder is named on the command line: `efficientnet-lite0`, whose weights come with a Python package, or a vision
model of `transformers`, by local folder or by its name on the Hugging Face hub.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from hero_platform.video.views import View

DEFAULT = "efficientnet-lite0"
_BATCH = {"cpu": 2, "cuda": 32}  # intervals at once; decides the last bits, so no setting: few stay in a cache


class Encoder(Protocol):
    """One loaded encoder."""

    view: View

    @property
    def width(self) -> int:
        """Of its features."""

    def describe(self) -> dict[str, Any]:
        """JSON-ready: name, kind, version, weights_sha256, preprocessing. Equal for equal features."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """[N, frames, 3, height, width] float32 in 0..1, on the encoder's device -> features [N, width]."""


@dataclass(frozen=True)
class Joined:
    """Several encoders whose features stand side by side in the stated order.

    Features of single pictures are L2-normalised, those of clips are not: the official layout is ResNet, normalised,
    then SlowFast (hero.md 5.4).
    """

    encoders: tuple[Encoder, ...]
    device: str

    @property
    def width(self) -> int:
        """V."""
        return sum(encoder.width for encoder in self.encoders)

    def encode(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Per encoder [N, frames, height, width, 3] uint8 -> features [N, V] float32."""
        parts = []
        for encoder, own in zip(self.encoders, pictures, strict=True):
            size = _BATCH[self.device]
            with torch.inference_mode():
                batches = [self._encode(encoder, own[at : at + size]) for at in range(0, len(own), size)]
            parts.append(np.concatenate(batches))
        return np.concatenate(parts, axis=1)

    def _encode(self, encoder: Encoder, pictures: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(pictures.copy()).to(self.device).movedim(-1, 2).float() / 255
        features = encoder.encode(pixels)
        if is_2d(encoder):
            features = torch.nn.functional.normalize(features, dim=-1)
        return features.float().cpu().numpy()


def is_2d(encoder: Encoder) -> bool:
    """Whether an encoder sees single pictures."""
    return encoder.view.frames == 1


def load(names: Sequence[str], device: str = "cpu") -> Joined:
    """Load encoders by name; on the CPU each takes one thread, so that there may be one a core.

    Raises:
        ValueError: there is no such encoder, or its package or weights are missing or damaged.
    """
    if device == "cpu":
        torch.set_num_threads(1)
    return Joined(tuple(_load(name, device) for name in names or [DEFAULT]), device)


def describe(joined: Joined) -> list[dict[str, Any]]:
    """What the manifest says of the encoders, in their order."""
    return [
        {**encoder.describe(), "width": encoder.width, "l2_normalised": is_2d(encoder)} for encoder in joined.encoders
    ]


def _load(name: str, device: str) -> Encoder:
    if name == DEFAULT:
        from hero_platform.video.efficientnet import EfficientNetLite

        return EfficientNetLite(device)
    if not os.path.isdir(name) and "/" not in name:
        raise ValueError(
            f"there is no encoder {name!r}: name {DEFAULT}, a folder with a vision model of transformers, "
            "or one on the Hugging Face hub (owner/name)"
        )
    from hero_platform.video.transformers_models import VisionModel

    return VisionModel(name, device)


def preprocessing(view: View, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """What was done to the pictures, for the manifest."""
    return {
        "frames": view.frames,
        "size": [view.height, view.width],
        "short_side": view.short_side,
        "resample": "bicubic (swscale)",
        "mean": [round(float(value), 6) for value in mean],
        "std": [round(float(value), 6) for value in std],
    }


def normalised(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Subtract a mean and divide by a deviation per colour of [..., 3, height, width]."""
    shift, scale = (pixels.new_tensor(list(values)).view(3, 1, 1) for values in (mean, std))
    return (pixels - shift) / scale
