import time

import numpy as np
import pyarrow as pa
import pytest

from hero_platform import files
from hero_platform.sources.base import Reject, Subtitle
from hero_platform.store.rows import VideoRow
from hero_platform.store.shard import ShardWriter, finished_shard, sidecar, write_shard

NAME = "shards/00000.arrow"


def video(number):
    frames = np.random.default_rng(number).random((number + 1, 4)).astype(np.float16)
    subtitles = [Subtitle(0, 1, "\u266a"), Subtitle(1, 2, "")]
    return VideoRow(f"v{number}", "train", 9.0, 1.5, frames, [[5, 6], []], [[0], []], subtitles)


def write(root, numbers=(0, 1, 2), rejects=()):
    writer = ShardWriter(4, "float16")
    for number in numbers:
        writer.add(video(number))
    return write_shard(str(root), NAME, writer, list(rejects), time.monotonic())


def test_bytes_depend_on_the_rows_alone(tmp_path):
    one, other = write(tmp_path / "a"), write(tmp_path / "b")
    assert one.sha256 == other.sha256 == files.sha256_file(tmp_path / "b" / NAME)
    assert write(tmp_path / "c", numbers=(0, 2, 1)).sha256 != one.sha256


def test_columns_are_as_the_schema_says(tmp_path):
    info = write(tmp_path)
    assert (info.num_rows, info.num_frames, info.num_segments, info.num_tokens) == (3, 6, 6, 6)
    reader = pa.ipc.open_file(pa.memory_map(str(tmp_path / NAME)))
    assert reader.num_record_batches == 1
    rows = reader.read_all().to_pylist()
    assert [row["id"] for row in rows] == ["v0", "v1", "v2"]
    assert rows[1]["tokens"] == [5, 6] and rows[1]["segment_num_tokens"] == [2, 0]
    assert rows[1]["segment_frames"] == [0] and rows[1]["segment_num_frames"] == [1, 0]
    assert rows[1]["segment_text"] == ["\u266a", ""]
    np.testing.assert_array_equal(np.array(rows[2]["frames"], np.float16), video(2).frames)


def test_a_finished_shard_is_found_again(tmp_path):
    info = write(tmp_path, rejects=[Reject("x", "here", "bad")])
    assert finished_shard(str(tmp_path), NAME) == info


@pytest.mark.parametrize("damage", ["flip", "no digest", "half a digest"])
def test_a_shard_without_a_matching_digest_is_built_again(tmp_path, damage):
    write(tmp_path)
    path, beside = tmp_path / NAME, sidecar(str(tmp_path / NAME))
    if damage == "flip":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "no digest":
        files.remove(beside)
    else:
        files.write_bytes(beside, files.read_bytes(beside)[:40])
    assert finished_shard(str(tmp_path), NAME) is None


def test_a_shard_may_be_empty(tmp_path):
    assert write(tmp_path, numbers=()).num_rows == 0
    assert finished_shard(str(tmp_path), NAME) is not None


def test_a_video_on_disk_takes_its_own_bytes_and_no_more(tmp_path):
    """Bytes that have to be read for a video: features, tokens and frame lists, and less than 1% besides."""
    writer, content = ShardWriter(512, "float16"), 0
    for number in range(20):
        frames = np.zeros((50, 512), np.float16)
        tokens, owned = [[5] * 11] * 22, [[0, 1]] * 22
        subtitles = [Subtitle(0, 1, "as said")] * 22
        writer.add(VideoRow(f"v{number}", "train", 75.0, 1.5, frames, tokens, owned, subtitles))
        content += frames.nbytes + 4 * 22 * (11 + 2 + 2) + 22 * (16 + len("as said") + 4)
    info = write_shard(str(tmp_path), NAME, writer, [], time.monotonic())
    assert content < info.num_bytes < 1.01 * content
