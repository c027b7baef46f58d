"""Query and caption databases: ids, tokens, spans and answers as the official datasets returned them."""

import json
import math

import lz4.frame
import msgpack
import pytest

from hero_platform.sources.base import Annotation
from hero_platform.sources.lmdb import LmdbSource

INTERVAL_S = 1.5


def expected(root, name):
    return json.loads((root / f"expected/{name}.json").read_text())


def text_of(record):
    return lz4.frame.compress(msgpack.packb(record))


def span_frames(note, num_frames):
    """Frame labels of a span (hero.md 4.2)."""
    if math.isnan(note.start_s):
        return [-1, -1]
    first = min(math.floor(note.start_s / INTERVAL_S), num_frames - 1)
    return [first, min(max(math.ceil(note.end_s / INTERVAL_S) - 1, first + 1), num_frames - 1)]


def notes_of(root, *names):
    source = LmdbSource(str(root / "video_db/tv"), queries=tuple(str(root / f"txt_db/{name}.db") for name in names))
    return list(source.annotations())


@pytest.fixture(scope="module")
def num_frames(golden_lmdb):
    counts = {}
    for name in ("tv", "violin"):
        counts |= json.loads((golden_lmdb / f"txt_db/{name}_subtitles.db/vid2len.json").read_text())
    return counts


@pytest.mark.parametrize("split", ["train", "val"])
def test_moments(golden_lmdb, num_frames, split):
    case = expected(golden_lmdb, "tvr")[split]
    notes = notes_of(golden_lmdb, f"tvr_{split}")
    assert [note.id for note in notes] == case["qids"]
    assert [len(note.tokens) for note in notes] == case["lens"]
    for note, item in zip(notes, case["items"], strict=True):
        (query,) = item["queries"]
        assert (note.kind, note.split, note.video) == ("moments", split, item["vid"])
        assert [0, *note.tokens] == query["input_ids"]
        assert span_frames(note, num_frames[note.video]) == query["target"]


def test_hidden_moments(golden_lmdb):
    notes = notes_of(golden_lmdb, "tvr_test_public")
    assert [note.id for note in notes] == ["90041", "90042", "90043", "90044"]
    assert {(note.split, note.video, math.isnan(note.start_s)) for note in notes} == {("test_public", "", True)}


@pytest.mark.parametrize("split", ["train", "val"])
def test_questions(golden_lmdb, num_frames, split):
    notes = notes_of(golden_lmdb, f"tvqa_{split}")
    for note, item in zip(notes, expected(golden_lmdb, "tvqa")[split], strict=True):
        assert (note.kind, note.id, [note.label]) == ("questions", item["qid"], item["target"])
        assert [[2, *note.tokens, 2, *answer] for answer in note.answers_tokens] == item["qa_input_ids"]
        assert span_frames(note, num_frames[note.video]) == item["ts_target"]
        assert len(note.answers) == 5
    assert {note.label for note in notes_of(golden_lmdb, "tvqa_test_public")} == {None}


@pytest.mark.parametrize("split", ["train", "test"])
def test_statements(golden_lmdb, split):
    case = expected(golden_lmdb, "violin")[split]
    notes = notes_of(golden_lmdb, f"violin_{split}")
    assert [note.id for note in notes] == case["qids"]
    by_id = {note.id: note for note in notes}
    collated = case["collate_first2"]
    if split == "train":  # each item brings its opposite
        pairs = [[qid, qid[:-1] + str(1 - int(qid[-1]))] for qid in case["qids"][:2]]
        chosen = [by_id[qid] for pair in pairs for qid in pair]
    else:
        chosen = notes[:2]
    assert [[note.label] for note in chosen] == collated["targets"]
    longest = max(len(note.tokens) for note in chosen)
    assert [[2, *note.tokens, *[1] * (longest - len(note.tokens))] for note in chosen] == collated["q_input_ids"]


@pytest.mark.parametrize("split", ["train", "val"])
def test_captions(golden_lmdb, num_frames, split):
    collated = expected(golden_lmdb, "tvc")[split]["train_collate_first2"]
    notes = notes_of(golden_lmdb, f"tvc_{split}")
    videos = list(dict.fromkeys(note.video for note in notes))[:2]
    first_two = [note for note in notes if note.video in videos]
    targets = [[token for token in row if token != -1] for row in collated["cap_tgt_ids"]]
    assert [[*note.tokens, 2] for note in first_two] == targets
    ranges = []
    for video in videos:
        n = num_frames[video]
        rows = [note for note in first_two if note.video == video]
        starts = [min(math.floor(note.start_s / INTERVAL_S), n) for note in rows]
        ranges.append(
            [
                [start, min(max(round(note.end_s / INTERVAL_S), start + 1), n)]
                for start, note in zip(starts, rows, strict=True)
            ]
        )
    assert ranges == collated["clip_ranges"]
    assert {note.kind for note in notes} == {"captions"}


def test_damaged_query_rows(tmp_path, write_lmdb):
    good = {"desc": "a query", "input_ids": [5], "vid": "v", "ts": [0.0, 1.5]}
    rows = {"1": text_of(good), "2": text_of({**good, "input_ids": None}), "3": text_of(good)[:-6], "4": text_of([])}
    write_lmdb(tmp_path / "my_val.db", {**rows, "5": text_of({**good, "ts": [[0, 1], [2, 3], [2, 3]]})})
    (tmp_path / "my_val.db/id2len.json").write_text('{"5": 1, "3": 1, "2": 1, "1": 1, "4": 1, "6": 1}')
    notes = list(LmdbSource("unused", queries=(str(tmp_path / "my_val.db"),)).annotations())
    assert [note.id for note in notes] == ["5", "3", "2", "1", "4", "6"]
    assert [note.id for note in notes if isinstance(note, Annotation)] == ["5", "1"]
    assert notes[0].spans == ((0, 1), (2, 3), (2, 3))  # several annotators: the commonest is trained on
    assert (notes[0].start_s, notes[0].end_s) == (2, 3) and notes[3].spans == ()


def test_query_databases_need_a_split(tmp_path, write_lmdb):
    with pytest.raises(ValueError, match="ends in no split"):
        list(LmdbSource("unused", queries=(str(tmp_path / "queries.db"),)).annotations())
    write_lmdb(tmp_path / "queries.db", {"1": text_of({"desc": "q", "input_ids": [5], "vid": "v"})})
    (note,) = LmdbSource("unused", queries=(f"val={tmp_path}/queries.db",)).annotations()
    assert (note.split, note.kind) == ("val", "moments")
