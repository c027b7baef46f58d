import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hero_platform.store.reader import FeatureStore
from jobs.build_store import main

GOLDEN = Path(os.environ.get("HERO_GOLDEN_DIR") or Path(__file__).parents[3] / "shared" / "golden") / "lmdb"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden databases at {GOLDEN}")
QUICK = """
import sys
from jobs.build_store import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
heavy = {"torch", "ray", "mlflow", "pyarrow"} & set(sys.modules)
print(code, sorted(heavy))
"""


@pytest.fixture(scope="module")
def ray_two():
    from hero_platform.store.build import ray_cluster

    with ray_cluster(2):
        yield


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["--help"], 0),
        (["lmdb", "--help"], 0),
        (["lmdb"], 2),
        (["synthetic", "--videos", "many"], 2),
        (["synthetic", "--workers", "0"], 2),
        (["nonsense"], 2),
        ([], 2),
    ],
)
def test_help_and_flag_errors_import_nothing_heavy(argv, code):
    done = subprocess.run([sys.executable, "-c", QUICK, *argv], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"{code} []"
    assert len(done.stderr.splitlines()) == (code == 2)


def test_a_worker_imports_no_torch():
    """A build worker holds a shard, not a model: torch would add 300 MB to each."""
    modules = "hero_platform.store.build, hero_platform.sources.lmdb, hero_platform.sources.npz"
    modules += ", hero_platform.sources.video, hero_platform.video.speech"
    code = f"import sys, {modules}, hero_platform.sources.synthetic; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["lmdb", "--video-db", "{tmp}", "--corpus", "tv"], "no LMDB there"),
        (["npz", "--features", "{tmp}", "--corpus", "x"], "{tmp}"),
        (["npz", "--features", "{tmp}", "--subtitles", "{tmp}", "--corpus", "x"], "--tokenizer"),
        (["synthetic", "--videos", "3", "--val-videos", "9"], "--val-videos 9"),
        (["synthetic", "--videos", "0"], "no videos"),
        (["synthetic", "--scenes", "5", "2"], "num_scenes is (5, 2); give (least, most)"),
        (["synthetic", "--name", "../x"], "store name '../x' may only hold"),
        (["inspect", "{tmp}"], "is not a store"),
    ],
)
def test_a_mistake_is_one_line(argv, message, tmp_path, capsys):
    assert main([word.format(tmp=tmp_path) for word in argv]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert message.format(tmp=tmp_path) in error


def test_the_length_of_generated_videos_is_chosen(tmp_path):
    """8 videos of 2 scenes of 3 frames, 16 float32 numbers each."""
    result = tmp_path / "result.json"
    words = ["--scenes", "2", "2", "--scene-frames", "3", "3", "--videos", "8", "--frame-dim", "16"]
    assert main(["synthetic", *words, "--out", str(tmp_path / "s"), "--dry-run", "--json", str(result)]) == 0
    assert json.loads(result.read_text())["bytes"] == 8 * 6 * 16 * 4


def test_dry_run_says_what_would_be_built_and_builds_nothing(tmp_path, capsys):
    out, result = tmp_path / "store", tmp_path / "result.json"
    argv = ["synthetic", "--videos", "20", "--out", str(out), "--dry-run", "--json", str(result)]
    assert main(argv) == 0
    assert not out.exists()
    assert json.loads(result.read_text())["videos"] == 20
    assert str(out) in capsys.readouterr().out


@needs_golden
@pytest.mark.ray
def test_released_databases_become_a_store(ray_two, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HERO_HOME", str(tmp_path))
    queries = [str(GOLDEN / "txt_db" / f"tvr_{split}.db") for split in ("train", "val", "test_public")]
    argv = ["--txt-db", str(GOLDEN / "txt_db/tv_subtitles.db"), "--video-db", str(GOLDEN / "video_db/tv")]
    assert main(["lmdb", *argv, "--corpus", "tv", "--query-db", *queries]) == 0
    path = tmp_path / "stores/tv/resnet_slowfast_1.5"
    store = FeatureStore.open(str(path))
    _check_against_official_reader(store)
    assert len(store.annotations("moments", "train")) == 32
    assert (store.annotations("moments", "test_public").video_rows == -1).all()
    capsys.readouterr()
    report = tmp_path / "report.json"
    assert main(["inspect", str(path), "--json", str(report)]) == 0
    value = json.loads(report.read_text())
    assert value["videos"] == 12 and value["splits"] == {"test_public": 1, "train": 8, "val": 3}
    assert [reject["id"] for reject in value["rejects"]] == ["castle_s02e10_seg02_clip_15"]
    assert sum(value["histograms"]["frames a video"]["counts"]) == 12
    shard = next(path.glob("shards/*.arrow"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert main(["inspect", str(path)]) == 1
    assert str(shard) in capsys.readouterr().err


def _check_against_official_reader(store):
    """Alignment, tokens and features of every video against what the official classes returned."""
    aligned = json.loads((GOLDEN / "expected/sub_db.json").read_text())["tv|max_clip_len=100"]["vid_sub2frame"]
    items = json.loads((GOLDEN / "expected/video_sub_items.json").read_text())["tv|max_clip_len=100|sub_ctx_len=0"]
    compared = 0
    for row, key in enumerate(store.index.ids):
        rows = store.rows([row])
        owned = np.split(rows.segment_frames, rows.segment_frame_offsets[1:-1])
        assert [[number, part.tolist()] for number, part in enumerate(owned)] == aligned[key]
        tokens = [part.tolist() for part in np.split(rows.tokens, rows.token_offsets[1:-1])]
        if key in items:
            assert [[2, *ids] for ids in tokens] == items[key]["input_ids"]
            assert len(rows.frames) == items[key]["n_frames"]
            compared += 1
    assert compared >= 8
