"""How fast a run goes: the progress line, and what fraction of a GPU's arithmetic the model uses."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TextIO

from hero_model.config import HeroConfig

LINE_EVERY_S = 10.0  # without a terminal, a line this often
REDRAW_EVERY_S = 0.2  # on a terminal the one line is redrawn at most this often

# Dense bf16 (V100: fp16) operations a second by part of the device name, from the makers' data sheets.
PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "V100": 125e12,
}


class Progress:
    """One line with step, rate, time left and loss: redrawn on a terminal, repeated now and then in a log."""

    def __init__(self, name: str, *, start: int, total: int, stream: TextIO | None = None) -> None:
        self._name = name
        self._total = total
        self._stream = stream or sys.stderr
        self._began: float | None = None  # of the second step seen: the first one pays for warming up
        self._first = start
        self._shown = -LINE_EVERY_S
        self._losses: dict[str, float] = {}

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *failure: object) -> None:
        if self._stream.isatty():
            self._stream.write("\n")

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show that `step` updates are done; `metrics` are the newest ones."""
        for name, value in metrics.items():
            if name.startswith("train/loss/") and name.count("/") == 3:
                self._losses[name.split("/")[2]] = value
        now = time.monotonic()
        if self._began is None or step < self._first:  # the latter: workers went back to a checkpoint
            self._began, self._first = now, step
        interval = REDRAW_EVERY_S if self._stream.isatty() else LINE_EVERY_S
        if now - self._shown < interval and step < self._total:
            return
        self._shown = now
        line = self.line(step, now - self._began)
        self._stream.write(f"\r\033[K{line}" if self._stream.isatty() else f"{line}\n")
        self._stream.flush()

    def line(self, step: int, seconds: float) -> str:
        """The line after `step`, `seconds` after the first step seen."""
        parts = [f"{self._name}: step {step:,} of {self._total:,}"]
        if step > self._first and seconds > 0:
            rate = (step - self._first) / seconds
            parts.append(f"{rate:.2f} steps/s, {duration((self._total - step) / rate)} left")
        if self._losses:
            parts.append("loss " + " ".join(f"{task} {loss:.3f}" for task, loss in sorted(self._losses.items())))
        return " | ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as people say them: `45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def row_flops(cfg: HeroConfig) -> float:
    """Floating-point operations of forward and backward per packed row of the cross-modal encoder (hero.md 7.1).

    The encoder's matrix products dominate; attention scores at these lengths, the heads and the temporal encoder are
    left out, so the utilisation computed from it is a little too low, never too high.
    """
    layer = 4 * cfg.hidden_size**2 + 2 * cfg.hidden_size * cfg.cross.intermediate_size
    return 3 * 2.0 * layer * cfg.cross_layers


def peak_flops(device_name: str) -> float | None:
    """The dense bf16 peak of a known GPU, in operations a second; None for others."""
    return next((peak for part, peak in PEAK_FLOPS.items() if part in device_name), None)
