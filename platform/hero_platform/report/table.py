"""Results as Markdown: recalls side by side with their intervals, and what chance alone would give.

Legend: Q queries, B videos, L frames of one video.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hero_model.metrics.retrieval import Truth, length_mask, temporal_iou

COLUMNS = tuple(f"vcmr_r{k}_iou{cut}" for cut in ("05", "07") for k in (1, 5, 10))
TITLES = {"vcmr": "moment in corpus", "svmr": "moment in its video", "vr": "video in corpus"}


@dataclass(frozen=True)
class Line:
    """One system in a table."""

    label: str
    values: Mapping[str, float]  # recall name -> percent
    intervals: Mapping[str, Sequence[float]] = field(default_factory=dict)  # recall name -> 95% interval


def markdown(lines: Sequence[Line], columns: Sequence[str] = COLUMNS) -> str:
    """A Markdown table, one row a system: `12.4 (10.9-14.0)`."""
    table = [["", *(title(name) for name in columns)]]
    return aligned(table + [[line.label, *(_cell(line, name) for name in columns)] for line in lines])


def aligned(cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table of cells, the first row its head."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    rows = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    rows.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(rows)


def result_lines(metrics: Mapping[str, float], intervals: Mapping[str, Sequence[float]]) -> list[str]:
    """All recalls of one evaluation for a terminal, one task and overlap a line."""
    rows: dict[str, list[str]] = {}
    for name in intervals:
        task, recall, *cut = name.split("_")
        label = f"{task.upper()} {TITLES[task]}" + (f", IoU {_overlap(cut[0])}" if cut else "")
        low, high = intervals[name]
        rows.setdefault(label, []).append(f"R@{recall[1:]} {metrics[name]:.2f} ({low:.1f}-{high:.1f})")
    if "vr_median_rank" in metrics:
        label = "VR place of the right video"
        rows[label] = [f"median {metrics['vr_median_rank']:g}", f"mean {metrics['vr_mean_rank']:.1f}"]
    width = max(map(len, rows), default=0)
    return [f"{label.ljust(width)}  {'  '.join(cells)}" for label, cells in rows.items()]


def mean_lines(metrics: Mapping[str, float], intervals: Mapping[str, Sequence[float]]) -> list[str]:
    """Means for a terminal, one a line: `accuracy 71.20 (69.0-73.3)`, groups below."""
    width = max(map(len, metrics), default=0)
    lines = []
    for name, value in metrics.items():
        low_high = f" ({intervals[name][0]:.1f}-{intervals[name][1]:.1f})" if name in intervals else ""
        lines.append(f"{name.ljust(width)}  {value:.2f}{low_high}")
    return lines


def title(name: str) -> str:
    """`vcmr_r1_iou05` -> `R@1 IoU 0.5`; the task is named where it is not VCMR."""
    task, recall, *cut = name.split("_")
    text = f"R@{recall[1:]}" + (f" IoU {_overlap(cut[0])}" if cut else "")
    return text if task == "vcmr" else f"{task.upper()} {text}"


def chance(
    truth: Truth,
    lengths_B: np.ndarray,
    interval_s: np.ndarray,
    *,
    shortest: int,
    longest: int,
    thresholds: Sequence[float] = (0.5, 0.7),
    ks: Sequence[int] = (1, 5, 10, 100),
) -> dict[str, float]:
    """Expected recalls, in percent, of answers drawn without looking: exact, not simulated.

    Every allowed moment is equally likely and none is drawn twice, so the first K of M moments, h of them correct, miss
    with the hypergeometric probability of zero.

    Args:
        truth: Q queries, one annotated span each.
        lengths_B: `[B]` frames of each video.
        interval_s: `[B]` seconds between frames.
        shortest: as in `Decoding`.
        longest: as in `Decoding`.
        thresholds: least overlaps.
        ks: recalls.
    """
    cells = [np.argwhere(length_mask(length, shortest, longest)) for length in lengths_B.tolist()]
    num_cells = np.array([len(own) for own in cells])
    results: dict[str, float] = {}
    for threshold in thresholds:
        correct = np.array(
            [
                (temporal_iou((cells[v] + [0, 1]) * interval_s[v], span) >= np.float32(threshold)).sum()
                for v, span in zip(truth.videos_Q.tolist(), truth.spans_QA2[:, 0], strict=True)
            ]
        )
        cut = f"iou{threshold:.1f}".replace(".", "")
        for task, total in (("vcmr", np.full(len(correct), num_cells.sum())), ("svmr", num_cells[truth.videos_Q])):
            for k in ks:
                results[f"{task}_r{k}_{cut}"] = float(_any_of_first(k, total, correct).mean() * 100)
    results |= {f"vr_r{k}": min(k / len(lengths_B), 1.0) * 100 for k in ks}
    return results


def _any_of_first(k: int, total: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Probability that a random order has one of `correct` among its first `k` of `total`."""
    drawn = np.arange(k)[:, None]
    left = np.maximum(total - drawn, 1)
    return 1 - np.prod(np.where(drawn < total, np.maximum(total - correct - drawn, 0) / left, 1.0), axis=0)


def _cell(line: Line, name: str) -> str:
    if name not in line.values:
        return "-"
    text = f"{line.values[name]:.1f}"
    if name in line.intervals:
        low, high = line.intervals[name]
        text += f" ({low:.1f}-{high:.1f})"
    return text


def _overlap(cut: str) -> str:
    """`iou07` -> `0.7`."""
    return f"{cut[3]}.{cut[4:]}"
