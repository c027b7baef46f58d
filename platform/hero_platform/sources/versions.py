"""Versions of frame features that HERO and VALUE publish, and their widths (hero.md 4.8): which is which, said once."""

from __future__ import annotations

WIDTHS = {
    "resnet_slowfast": 4352,
    "resnet_mil-nce": 3072,
    "clip-vit_slowfast": 2816,
    "clip-vit_mil-nce": 1536,
    "resnet": 2048,
    "slowfast": 2304,
    "clip-vit": 512,
    "mil-nce": 1024,
}


def width_problem(version: str, width: int) -> str:
    """What is wrong with features of this width under this version's name; empty when nothing is or it is unknown."""
    expected = WIDTHS.get(version, width)
    return "" if width == expected else f"features are {width} wide, but {version} is {expected} wide"
