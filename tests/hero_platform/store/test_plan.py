import pytest

from hero_platform.sources.base import Planned
from hero_platform.store.plan import Plan, cut_shards, digest_videos, load_plan, order_videos

VIDEOS = [Planned(f"v{number:02d}", 10, 0) for number in range(20)]


def test_videos_are_ordered_by_id_and_repetitions_rejected():
    videos, rejects = order_videos([VIDEOS[3], VIDEOS[1], VIDEOS[3]], "here")
    assert [video.id for video in videos] == ["v01", "v03"]
    assert [(reject.id, "duplicate id" in reject.reason) for reject in rejects] == [("v03", True)]


def test_shards_keep_order_and_size():
    size = 10 * 100 * 2 + 1024
    shards = cut_shards(VIDEOS, 100, "float16", 3 * size)
    assert [key for shard in shards for key in shard] == [video.id for video in VIDEOS]
    assert {len(shard) for shard in shards[:-1]} == {3}
    assert all(len(cut_shards(VIDEOS, 100, "float32", 3 * size)[0]) < len(shard) for shard in shards[:-1])


def test_a_small_corpus_is_still_cut_for_several_workers():
    assert len(cut_shards(VIDEOS, 100, "float16", 1 << 30)) == 4


def test_a_video_larger_than_a_shard_stands_alone():
    videos = [Planned("a", 1, 0), Planned("b", 1000, 0), Planned("c", 1, 0)]
    assert cut_shards(videos, 100, "float16", 4000) == (("a",), ("b",), ("c",))


def test_a_plan_is_continued_or_refused(tmp_path):
    root, digest = str(tmp_path), digest_videos(VIDEOS)
    settings = {"dtype": "float16", "corpus": "tv"}
    assert load_plan(root, settings, digest) is None
    plan = Plan(settings, digest, 4, (("v00", "v01"), ("v02",)), ())
    plan.write(root)
    assert load_plan(root, settings, digest) == plan
    with pytest.raises(ValueError, match="differs in dtype"):
        load_plan(root, {**settings, "dtype": "float32"}, digest)
    with pytest.raises(ValueError, match="the list of videos"):
        load_plan(root, settings, digest_videos(VIDEOS[1:]))


def test_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"not empty.*thesis\.tex"):
        load_plan(str(tmp_path), {}, "")
