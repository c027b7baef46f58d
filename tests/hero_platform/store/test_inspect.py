import json

import pytest

from hero_platform.store.inspect import format_report, report

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def value(synthetic_store):
    return report(synthetic_store)


def test_counts_agree_with_each_other_and_the_source(value, synthetic_source):
    videos = list(synthetic_source.read([planned.id for planned in synthetic_source.plan()[0]]))
    assert value["videos"] == len(videos) == sum(value["splits"].values())
    assert value["frames"] == sum(len(video.frames) for video in videos)
    assert value["segments"] == sum(len(video.subtitles) for video in videos)
    assert value["hours"] == pytest.approx(sum(len(video.frames) for video in videos) * 1.5 / 3600, rel=0.05)
    for histogram in value["histograms"].values():
        assert sum(histogram["counts"]) == len(videos)
        assert len(histogram["edges"]) == len(histogram["counts"]) + 1
    assert value["histograms"]["frames a video"]["quantiles"][4] == max(len(video.frames) for video in videos)
    assert sum(entry["num_rows"] for entry in value["annotations"]) == len(list(synthetic_source.annotations()))


def test_report_is_json_and_text(value):
    assert json.loads(json.dumps(value)) == value
    text = format_report(value)
    for expected in (value["digest"], "12 (test 2, train 8, val 2)", "moments val", "rejects: 0", "as they were built"):
        assert expected in text
    damaged = format_report(
        {**value, "damaged": ["x is missing"], "rejects": [{"id": "v", "where": "w", "reason": "r"}]}
    )
    assert "DAMAGED: x is missing" in damaged and "v: r (w)" in damaged
