"""Sizes and special ids of a HERO model (hero.md 1.1-1.4). `base()` is the paper's, `debug()` trains in seconds."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TextIds:
    """Special ids of the tokenizer a store was built with; the defaults are RoBERTa's."""

    cls: int = 0
    pad: int = 1
    sep: int = 2
    mask: int = 50264
    vocab_size: int = 50265  # real ids, before padding to a multiple of 8
    random_low: int = 4  # MLM's random replacements are uniform in [random_low, random_high)
    random_high: int = 50261


@dataclass(frozen=True)
class EncoderConfig:
    """One transformer stack."""

    num_layers: int
    num_heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 514


@dataclass(frozen=True)
class HeroConfig:
    """The whole model. `hidden_size` is the same in every part (hero.md 1.2)."""

    hidden_size: int = 768
    frame_dim: int = 4352
    vocab_size: int = 50272  # rows of the word table, a multiple of 8
    vocab_pad: int = 0  # trailing score columns MLM drops: 7 after RoBERTa initialisation, 0 from a HERO checkpoint
    type_vocab_size: int = 2
    max_segment_frames: int = 100  # rows of the frame position table inside a segment
    fom_classes: int = 100
    span_kernel: int = 5
    cross: EncoderConfig = field(default_factory=lambda: EncoderConfig(num_layers=6))
    temporal: EncoderConfig = field(default_factory=lambda: EncoderConfig(num_layers=3))
    query: EncoderConfig = field(default_factory=lambda: EncoderConfig(num_layers=0))
    decoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(num_layers=2, max_positions=1024))
    dropout: float = 0.1
    attention_dropout: float = 0.1
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12  # inside transformer layers; 1e-5 everywhere else (hero.md 1.3)
    flat: bool = False  # the paper's F-TRM: see `cross_layers`; default: the hierarchical HERO

    @property
    def cross_layers(self) -> int:
        """Layers of the cross-modal encoder.

        A flat model reads all frames and all subtitles of a video as one sequence, and has no temporal encoder: its
        layers, as many, go on top of the cross-modal ones. Everything else is the same (docs/tasks.md, "Flat").
        """
        return self.cross.num_layers + (self.temporal.num_layers if self.flat else 0)


def base() -> HeroConfig:
    """The paper's model: 121,037,262 parameters with the pre-training heads."""
    return HeroConfig()


def debug() -> HeroConfig:
    """A model of the same shape that trains in seconds on one CPU core."""
    return HeroConfig(
        hidden_size=64,
        cross=EncoderConfig(num_layers=2, num_heads=4, intermediate_size=128),
        temporal=EncoderConfig(num_layers=1, num_heads=4, intermediate_size=128),
        query=EncoderConfig(num_layers=0, num_heads=4, intermediate_size=128),
        decoder=EncoderConfig(num_layers=2, num_heads=4, intermediate_size=128, max_positions=1024),
    )
