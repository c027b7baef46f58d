"""The table, the chance line against simulation, and that pictures show what they are given."""

from __future__ import annotations

import io

import numpy as np
import pytest

from hero_model.metrics.retrieval import Ranked, RetrievalMetric, Truth, length_mask
from hero_platform.report.plots import MomentCase, loss_figure, moments_figure
from hero_platform.report.table import Line, chance, markdown, result_lines


def test_markdown_table():
    lines = [Line("scratch", {"vcmr_r1_iou05": 3.21}, {"vcmr_r1_iou05": (1.0, 5.0)}), Line("chance", {"vr_r5": 2.0})]
    assert markdown(lines, ["vcmr_r1_iou05", "vr_r5"]).splitlines() == [
        "|         | R@1 IoU 0.5   | VR R@5 |",
        "|---------|---------------|--------|",
        "| scratch | 3.2 (1.0-5.0) | -      |",
        "| chance  | -             | 2.0    |",
    ]


def test_result_lines():
    metrics = {"svmr_r1_iou07": 10.0, "svmr_r5_iou07": 20.0, "vr_r1": 5.0}
    assert result_lines(metrics, {name: (value - 1, value + 1) for name, value in metrics.items()}) == [
        "SVMR moment in its video, IoU 0.7  R@1 10.00 (9.0-11.0)  R@5 20.00 (19.0-21.0)",
        "VR video in corpus                 R@1 5.00 (4.0-6.0)",
    ]


def test_chance_is_what_random_answers_get():
    """Against 4,000 random orders of all allowed moments."""
    lengths, interval = np.array([6, 9]), np.full(2, 1.5)
    truth = Truth(np.array([1, 0]), np.array([[[1.5, 7.5]], [[3.0, 9.0]]]))
    cells = [(v, *cell) for v in (0, 1) for cell in np.argwhere(length_mask(int(lengths[v]), 2, 5)).tolist()]
    moments = np.array([[v, first * 1.5, (last + 1) * 1.5, 1.0] for v, first, last in cells])
    random = np.random.default_rng(0)
    metric = RetrievalMetric(ks=(1, 3))
    for _ in range(4_000):
        ranked = Ranked.of([moments[random.permutation(len(moments))].tolist() for _ in range(2)])
        metric.update(truth, vcmr=ranked, svmr=ranked)
    expected = chance(truth, lengths, interval, shortest=2, longest=5, ks=(1, 3))
    for name, value in metric.compute().items():
        assert expected[name] == pytest.approx(value, abs=2.0)
    assert expected["vr_r1"] == 50 and expected["vr_r3"] == 100
    assert 0 < expected["vcmr_r1_iou05"] < expected["svmr_r1_iou05"] < expected["svmr_r3_iou05"]


def test_moments_figure_shows_truth_and_answers():
    cases = [
        MomentCase(
            "who sings", "v1", 30.0, (3.0, 9.0), {"pre-trained": [(3.0, 9.0), (6.0, 12.0)], "scratch": [(20, 24)]}
        ),
        MomentCase("who left", "v2", 20.0, (0.0, 6.0), {"pre-trained": [(0.0, 4.5)], "scratch": []}),
    ]
    figure = moments_figure(cases)
    bars = [[(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches[:-1]] for axes in figure.axes]
    assert bars == [[(3.0, 9.0), (6.0, 12.0), (3.0, 9.0), (20, 24)], [(0.0, 6.0), (0.0, 4.5)]]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["true", "pre-trained", "scratch"]
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    assert stream.getvalue().startswith(b"\x89PNG")


def test_loss_figure_has_a_panel_per_task():
    figure = loss_figure({name: ([1, 2, 3], [3.0, 2.0, 1.0]) for name in ("mlm", "mfm", "fom", "vsm", "extra")})
    assert [axes.get_title() for axes in figure.axes if axes.get_visible()] == ["mlm", "mfm", "fom", "vsm", "extra"]
