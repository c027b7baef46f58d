"""Every corpus: rows as published, and what becomes of broken ones. Real samples where they are at hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hero_platform.corpora import CORPORA
from hero_platform.corpora.report import reachability
from hero_platform.sources.base import Annotation, Reject

REAL = Path(__file__).resolve().parents[4] / "shared" / "real"
SAMPLES = [  # corpus, file, rows, annotations
    ("tvr", "tvr/tvr_val_first200.jsonl", 200),
    ("tvr", "tvr/tvr_test_public_first100.jsonl", 100),
    ("how2r", "how2/how2R_train_first200.csv", 200),
    ("how2r", "how2/how2R_test_public_first200.csv", 200),
    ("how2qa", "how2/how2QA_test_public_first200.csv", 200),
    ("didemo", "didemo/didemo_test_first200.json", 200),
    ("msrvtt", "msrvtt/msrvtt_1kA_200.csv", 200),
    ("tvqa", "tvqa/tvqa_test_public_first200.jsonl", 200),
    ("tvqa", "tvqa/tvqa_plus_val_first200.jsonl", 200),
    ("violin", "violin/violin_test_last200.jsonl", 200),
    ("tvc", "tvc/tvc_val_first200_refs_from_tvr.jsonl", 208),
]
ANSWERS = {f"a{place}": f"answer {place}" for place in range(5)}
FIXTURES: dict[str, tuple[str, list[str], list[str]]] = {  # corpus -> file name, good lines, bad lines
    "tvr": (
        "tvr_val.jsonl",
        [
            '{"vid_name": "v", "duration": 9, "ts": [1.5, 4], "desc": "a man", "type": "vt", "desc_id": 7}',
            '{"desc": "hidden", "desc_id": 8}',
        ],
        [
            "{not json",
            "[1, 2]",
            '{"vid_name": "v", "ts": [4, 1], "desc": "x", "desc_id": 1}',
            '{"vid_name": "v", "ts": [1], "desc": "x", "desc_id": 2}',
            '{"vid_name": "v", "ts": [1, NaN], "desc": "x", "desc_id": 3}',
            '{"vid_name": "v", "ts": [1, 2], "desc": " ", "desc_id": 4}',
            '{"vid_name": "v", "ts": [1, 2], "desc_id": 5}',
            '{"vid_name": "v", "ts": [1, 2], "desc": "again", "desc_id": 7}',
        ],
    ),
    "how2r": (
        "how2r.csv",
        ["id,[60:120],[74.28:84.4],a query", 'id,[0:60],[1.0:2.5],"one, two",'],
        [
            'id,[0:60],[1:2],"open',
            f"id,[0:60],[1:2],{'x' * 200_000}",
            "id,[0:60],[70:80],outside",
            "id,[0:60],query",
            "id,[0-60],[1:2],dash",
            "id,[0:60],[1:2],",
        ],
    ),
    "how2qa": (
        "how2qa.csv",
        ["id,[67.57:95.13],no,nay,never,a question?,yes"],
        ["id,[67.57:95.13],no,nay,a question?,yes", "id,[9:1],no,nay,never,a question?,yes"],
    ),
    "didemo": (
        "test_data.json",
        [
            '[{"annotation_id": 3, "video": "a.mp4", "description": "x", "num_segments": 6,'
            ' "times": [[4, 4], [0, 0], [4, 4], [3, 4]]}'
        ],
        [
            ', {"annotation_id": 4, "video": "a.mp4", "description": "x", "num_segments": 5, "times": [[4, 5]]}',
            ', {"annotation_id": 5, "description": "x", "times": [[0, 0]]}, 5]',
        ],
    ),
    "msrvtt": (
        "msrvtt.csv",
        ["key,vid_key,video_id,sentence", "ret0,msr9770,video9770,a person connects something"],
        ["ret1,msr9771,video9771", "ret2,msr9772,video9772,"],
    ),
    "tvqa": (
        "tvqa.jsonl",
        [
            json.dumps({"qid": 5, "q": "why?", "vid_name": "v", "ts": "1.5-4", "answer_idx": "3", **ANSWERS}),
            json.dumps({"qid": 6, "q": "why?", "vid_name": "v", "ts": "nan-nan", **ANSWERS}),
        ],
        [
            json.dumps({"qid": 7, "q": "why?", "vid_name": "v", "answer_idx": 5, **ANSWERS}),
            *(
                json.dumps({"qid": 9, "q": "why?", "vid_name": "v", "answer_idx": index, **ANSWERS})
                for index in (2.9, True, -1, "", "b", [1])
            ),
            json.dumps({"qid": 8, "q": "why?", "vid_name": "v", **ANSWERS, "a4": None}),
        ],
    ),
    "violin": (
        "violin.jsonl",
        ['{"paired_id": "v-0-1", "vid_name": "v", "statement": "a man", "answer": 0}'],
        ['{"paired_id": "v-0-0", "vid_name": "v", "statement": "a man", "answer": "yes"}', '{"paired_id": "x"}'],
    ),
    "tvc": (
        "tvc.jsonl",
        [
            '{"vid_name": "v", "ts": [1, 4], "clip_id": 9, "descs": [{"desc": "a", "desc_id": 1}, '
            '{"desc": "b", "desc_id": 2}]}',
            '{"vid_name": "v", "ts": [1, 4], "clip_id": 10}',
        ],
        ['{"vid_name": "v", "clip_id": 11, "descs": []}'],
    ),
}


def parse(name: str, path: Path, split: str = "val") -> tuple[list[Annotation], list[Reject]]:
    found = list(CORPORA[name].read(str(path), split))
    good = [one for one in found if isinstance(one, Annotation)]
    return good, [one for one in found if isinstance(one, Reject)]


@pytest.fixture
def read(tmp_path: Path):
    def _read(name: str) -> tuple[list[Annotation], list[Reject]]:
        file, good, bad = FIXTURES[name]
        path = tmp_path / file
        path.write_text("\n".join(good + bad) + "\n", "utf-8")
        return parse(name, path)

    return _read


@pytest.mark.parametrize(("name", "file", "count"), SAMPLES)
def test_real_rows_all_parse(name: str, file: str, count: int):
    if not (REAL / file).exists():
        pytest.skip("no real samples here")
    good, bad = parse(name, REAL / file)
    assert bad == [] and len(good) == count == len({one.id for one in good})
    assert all(one.kind == CORPORA[name].kind and one.split == "val" and one.text for one in good)


@pytest.mark.parametrize("name", CORPORA)
def test_bad_rows_are_named_and_good_ones_stay(name: str, read):
    good, bad = read(name)
    file, rows, broken = FIXTURES[name]
    assert good and len(bad) == (len(broken) if name != "didemo" else 3)
    assert all(reject.reason and reject.where.startswith(file) for reject in bad)
    if name != "didemo":
        assert [reject.where for reject in bad] == [f"{file}:{len(rows) + 1 + n}" for n in range(len(broken))]


def test_moments(read):
    (seen, hidden), bad = read("tvr")
    assert (seen.id, seen.video, seen.start_s, seen.end_s, seen.tag) == ("7", "v", 1.5, 4.0, "vt")
    assert hidden.video == "" and math.isnan(hidden.start_s)
    assert "duplicate" in bad[-1].reason and "'desc" in bad[-2].reason
    (late, early), _ = read("how2r")
    assert (late.video, late.start_s, late.end_s) == ("id.1", 14.28, 24.4)
    assert (early.video, early.text) == ("id.0", "one, two")
    (moment,), bad = read("didemo")
    assert moment.spans == ((20, 25), (0, 5), (20, 25), (15, 25)) and (moment.start_s, moment.end_s) == (20, 25)
    assert [reject.where for reject in bad] == [f"test_data.json: entry {n}" for n in (2, 3, 4)]
    (sentence,), _ = read("msrvtt")
    assert (sentence.id, sentence.video) == ("ret0", "video9770") and math.isnan(sentence.start_s)


def test_the_whole_of_msrvtt(tmp_path: Path):
    """One object with all splits; its sentences of the split asked for."""
    path = tmp_path / "train_val_videodatainfo.json"
    videos = [{"video_id": f"video{n}", "split": split} for n, split in enumerate(("train", "validate", "test"))]
    sentences: list[Any] = [{"sen_id": n, "video_id": f"video{n % 3}", "caption": f"text {n}"} for n in range(6)]
    sentences += [{"sen_id": 7, "video_id": "video1"}, "no object", {"sen_id": 8, "video_id": "video9", "caption": "x"}]
    path.write_text(json.dumps({"info": {"year": "2016"}, "videos": videos, "sentences": sentences}, indent=1))
    for split, wanted in (("train", ["0", "3"]), ("val", ["1", "4"]), ("test", ["2", "5"])):
        good, bad = parse("msrvtt", path, split)
        assert [one.id for one in good] == wanted and {one.split for one in good} == {split}
        assert [reject.where.rpartition(": ")[2] for reject in bad] == ["entry 7", "entry 8", "entry 9"]
    assert good[0].text == "text 2" and good[0].video == "video2"


def test_questions_statements_and_captions(read):
    (answered, hidden), _ = read("tvqa")
    assert (answered.label, answered.start_s, answered.end_s) == (3, 1.5, 4.0) and len(answered.answers) == 5
    assert hidden.label is None and math.isnan(hidden.start_s)
    (question,), _ = read("how2qa")
    assert question.answers[question.label] == "yes" and sorted(question.answers) == ["nay", "never", "no", "yes"]
    assert (question.video, question.start_s) == ("id.1", 7.57)
    (statement,), _ = read("violin")
    assert (statement.id, statement.label) == ("v-0-1", 0)
    captions, _ = read("tvc")
    assert [(one.id, one.group, one.text) for one in captions] == [("1", "9", "a"), ("2", "9", "b"), ("10", "10", "")]


def test_a_quote_left_open_loses_its_own_row_only(tmp_path: Path):
    path = tmp_path / "how2r.csv"
    path.write_bytes(b'id,[0:60],[1:2],"a ""b"", c"\r\nid,[0:60],[1:2],"open\r\n\r\nid,[0:60],[1:2],d\r\n')
    good, bad = parse("how2r", path)
    assert [(one.id, one.text) for one in good] == [("1", 'a "b", c'), ("4", "d")]
    assert [(reject.where, reject.reason) for reject in bad] == [
        ("how2r.csv:2", "not readable CSV: unexpected end of data")
    ]


def test_files_that_are_none(tmp_path: Path):
    for name, content in (("a.jsonl", b"\xff\xfe\xff"), ("b.json", b"[1, 2")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            parse("tvr", tmp_path / name)
    with pytest.raises(ValueError, match="not there"):
        parse("tvr", tmp_path / "nothing.jsonl")


@pytest.mark.parametrize(
    ("name", "file", "line", "message"),
    [
        ("tvr", "how2r.csv", "id,[0:60],[1:2],x", "how2r.csv is CSV, but tvr publishes JSON"),
        ("how2r", "tvr.jsonl", '{"desc_id": 1}', "tvr.jsonl is JSON, but how2r publishes CSV"),
    ],
)
def test_a_file_of_another_form_is_one_error(name: str, file: str, line: str, message: str, tmp_path: Path):
    (tmp_path / file).write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        parse(name, tmp_path / file)


def test_reachability_by_hand():
    """Ten frames of 1 s, answers of 3 or 4 frames: a moment of 3 s is met exactly, one of 6 s by 4/6 at best."""
    spans = [np.array([[2.0, 5.0]]), np.array([[2.0, 8.0]]), np.array([[2.0, 3.0]])]
    shares = reachability(spans, np.full(3, 10), 1.0, shortest=2, longest=4)
    assert shares == {"label": 1 / 3, "0.5": 2 / 3, "0.7": 1 / 3}
    several = [np.array([[2.0, 5.0], [2.0, 5.0], [0.0, 1.0], [0.0, 1.0]]), np.array([[2.0, 5.0], *[[0.0, 1.0]] * 3])]
    assert reachability(several, np.full(2, 10), 1.0, shortest=2, longest=4)["0.7"] == 0.5


def test_reachability_of_real_moments():
    path = REAL / "tvr" / "tvr_val_first200.jsonl"
    if not path.exists():
        pytest.skip("no real samples here")
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    frames = np.array([min(100, math.ceil(row["duration"] / 1.5)) for row in rows])
    shares = reachability([np.array([row["ts"]], float) for row in rows], frames, 1.5, shortest=2, longest=16)
    assert shares["label"] == pytest.approx(0.782, abs=0.1)  # of the whole split (hero.md 4.2); these are 200 of it
    assert shares["0.5"] == pytest.approx(0.849, abs=0.1) and shares["0.7"] == pytest.approx(0.697, abs=0.1)
