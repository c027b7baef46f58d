import pickle
import shutil
import threading

import numpy as np
import pytest

from hero_model.packed.draw import hash_id
from hero_platform import files
from hero_platform.sources.base import Annotation, Reject
from hero_platform.store.annotations import write_annotations
from hero_platform.store.reader import FeatureStore
from hero_platform.store.tokens import TokenizerSpec

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def store(synthetic_store):
    return FeatureStore.open(synthetic_store)


@pytest.fixture
def copy(synthetic_store, tmp_path):
    """A store that may be broken."""
    return shutil.copytree(synthetic_store, tmp_path / "copy")


def test_rows_are_what_the_source_gave(store, synthetic_source):
    picked = [5, 0, 11, 5]
    rows = store.rows(picked)
    assert rows.ids == tuple(store.index.ids[picked])
    np.testing.assert_array_equal(rows.keys, [hash_id(key) for key in rows.ids])
    for place, raw in enumerate(synthetic_source.read(rows.ids)):
        frames = rows.frames[rows.frame_offsets[place] : rows.frame_offsets[place + 1]]
        np.testing.assert_array_equal(frames, raw.frames.astype(np.float16))
        segments = range(rows.segment_offsets[place], rows.segment_offsets[place + 1])
        tokens = [rows.tokens[rows.token_offsets[s] : rows.token_offsets[s + 1]].tolist() for s in segments]
        offsets = rows.segment_frame_offsets
        owned = [rows.segment_frames[offsets[s] : offsets[s + 1]].tolist() for s in segments]
        assert len(tokens) == len(raw.subtitles)
        words = store.manifest.tokenizer["text_ids"]["vocab_size"]
        assert all(0 < token < words for ids in tokens for token in ids)
        if raw.token_ids is not None:
            assert tokens == raw.token_ids and owned == raw.segment_frames
    assert rows.token_offsets[-1] == len(rows.tokens)
    assert rows.segment_frame_offsets[-1] == len(rows.segment_frames)


def test_no_rows(store):
    rows = store.rows([])
    assert rows.num_videos == 0 and rows.frames.shape == (0, 8) and rows.token_offsets.tolist() == [0]


def test_splits(store):
    assert store.splits == ["test", "train", "val"]
    assert sum(len(store.rows_of(split)) for split in store.splits) == len(store) == 12
    assert all(key.startswith("val") for key in store.index.ids[store.rows_of("val")])
    with pytest.raises(ValueError, match=r"no split 'dev', only test, train, val"):
        store.rows_of("dev")


def test_threads_may_share_a_store(synthetic_store):
    store = FeatureStore.open(synthetic_store)
    sums = [0.0] * 8

    def read(number):
        sums[number] = float(store.rows(np.arange(12)).frames.astype(np.float64).sum())

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(sums)) == 1 and sums[0] != 0


def test_a_store_pickles_as_its_path(store):
    other = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(other.rows([3]).frames, store.rows([3]).frames)
    assert len(pickle.dumps(store)) < 1000


def test_annotations_join_their_videos(store, synthetic_source):
    table = store.annotations("moments", "val")
    notes = table.notes([1, 0])
    assert notes.ids == (table.ids[1], table.ids[0])
    np.testing.assert_array_equal(store.index.ids[table.video_rows], table.videos)
    said = {note.id: note for note in synthetic_source.annotations() if (note.kind, note.split) == ("moments", "val")}
    assert set(said) == set(table.ids)
    assert notes.tokens[: notes.token_offsets[1]].tolist() == said[notes.ids[0]].tokens
    assert notes.spans_s[1].tolist() == [said[notes.ids[1]].start_s, said[notes.ids[1]].end_s]
    with pytest.raises(ValueError, match="no annotation table moments dev; it has"):
        store.annotations("moments", "dev")


def test_a_new_table_of_a_finished_store(copy):
    tokenizer = TokenizerSpec.of_words(["a", "b"])
    digest = FeatureStore.open(str(copy)).digest
    examples = [
        Annotation("statements", "val", "s1", "val-000000", "a b", label=1),
        Annotation("statements", "val", "s2", "gone", "b"),
        Annotation("statements", "val", "s1", "val-000000", "b"),
        Annotation("statements", "val", "s3", "val-000000", "b", start_s=3, end_s=2),
        Annotation("statements", "val", "s4", "val-000000", "b\udc80"),
        Annotation("statements", "val", "s5", "val-000000", "b", start_s=0, end_s=float("inf")),
        Annotation("statements", "val", "s6", "val-000000", "b", tokens=[4, 7]),
        Annotation("statements", "val", "s7", "val-000000", "b", answers_tokens=[[4], [-1]]),
        Annotation("statements", "val", "s8", "val-000000", "b", tokens=[4] * 512),
        Annotation("statements", "val", "s9", "val-000000", "b", label=2**40),
    ]
    rejects = write_annotations(str(copy), examples, tokenizer, {"val-000000"}, "here")
    assert [(reject.id, reject.reason.split()[0]) for reject in rejects] == [
        ("s1", "duplicate"),
        ("s3", "time"),
        ("s4", "undecodable"),
        ("s5", "time"),
        ("s6", "a"),
        ("s7", "a"),
        ("s8", "a"),
        ("s9", "label"),
    ]
    store = FeatureStore.open(str(copy))
    table = store.annotations("statements", "val")
    assert store.digest == digest
    assert table.labels.tolist() == [1, -1]
    assert table.video_rows[0] >= 0 and table.video_rows[1] == -1
    assert table.tokens.tolist() == [4, 5, 5] and table.token_offsets.tolist() == [0, 2, 3]


def test_texts_and_answers_longer_than_the_model_reads_are_rejected(copy):
    tokenizer = TokenizerSpec.of_words(["a", "b"])
    most, more = " ".join(["a"] * 511), " ".join(["a"] * 512)
    examples = [
        Annotation("questions", "val", "text", "val-000000", more, answers=("a", "b")),
        Annotation("questions", "val", "answer", "val-000000", "a", answers=("a", more), where="q.jsonl:2"),
        Annotation("questions", "val", "fits", "val-000000", most, answers=(most, "b")),
    ]
    rejects = write_annotations(str(copy), examples, tokenizer, {"val-000000"}, "here")
    reason = "a text of 512 tokens, at most 511 fit the model"
    assert rejects == [Reject("text", "here", reason), Reject("answer", "q.jsonl:2", reason)]
    assert FeatureStore.open(str(copy)).annotations("questions", "val").ids.tolist() == ["fits"]


def test_a_split_that_is_a_path_writes_no_table(copy):
    before = sorted(copy.parent.rglob("*"))
    examples = [Annotation("statements", split, "s1", "val-000000", "a") for split in ("fine", "../../evil")]
    with pytest.raises(ValueError, match=r"split name '\.\./\.\./evil'"):
        write_annotations(str(copy), examples, TokenizerSpec.of_words(["a"]), {"val-000000"}, "here")
    assert sorted(copy.parent.rglob("*")) == before


def test_labels_that_name_no_choice_are_rejected(copy):
    two, tokenizer = {"answers": ("a", "b")}, TokenizerSpec.of_words(["a", "b"])
    examples = [
        Annotation("questions", "val", "fine", "val-000000", "a", label=1, **two),
        Annotation("questions", "val", "hidden", "val-000000", "a", **two),
        Annotation("questions", "val", "third", "val-000000", "a", label=2, **two),
        Annotation("questions", "val", "single", "val-000000", "a", label=0, answers=("a",)),
        Annotation("statements", "val", "both", "val-000000", "a", label=2),
    ]
    rejects = write_annotations(str(copy), examples, tokenizer, {"val-000000"}, "here")
    assert {reject.id: reject.reason for reject in rejects} == {
        "third": "label 2 is no choice: with 2 it must be 0 to 1",
        "single": "a question needs at least two answers and has 1",
        "both": "label 2 is no choice: with 2 it must be 0 to 1",
    }
    assert FeatureStore.open(str(copy)).annotations("questions", "val").labels.tolist() == [1, -1]


@pytest.mark.parametrize("name", ["shards/00001.arrow", "rejects.jsonl", "annotations"])
def test_verify_names_a_changed_file(copy, name):
    FeatureStore.open(str(copy)).verify()
    path = next((copy / name).rglob("*.arrow")) if name == "annotations" else copy / name
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ValueError, match=path.name):
        FeatureStore.open(str(copy)).verify()


def test_verify_names_a_missing_file(copy):
    (copy / "shards/00000.arrow").unlink()
    with pytest.raises(ValueError, match=r"00000\.arrow is missing"):
        FeatureStore.open(str(copy)).verify()


def test_a_changed_index_or_manifest_does_not_open(copy, tmp_path):
    manifest = files.read_json(copy / "manifest.json")
    files.write_json(copy / "manifest.json", {**manifest, "frame_dim": 9})
    with pytest.raises(ValueError, match="edited"):
        FeatureStore.open(str(copy))
    files.write_json(copy / "manifest.json", {**manifest, "schema_version": 99})
    with pytest.raises(ValueError, match="schema version 99"):
        FeatureStore.open(str(copy))
    files.write_json(copy / "manifest.json", manifest)
    files.write_bytes(copy / "index.arrow", b"")
    with pytest.raises(ValueError, match=r"index\.arrow .* damaged"):
        FeatureStore.open(str(copy))
    with pytest.raises(ValueError, match="is not a store"):
        FeatureStore.open(str(tmp_path / "nowhere"))


def test_ray_dataset_reads_a_split(store):
    rows = store.ray_dataset("train", ["id", "num_frames"]).take_all()
    expected = store.rows_of("train")
    assert sorted(row["id"] for row in rows) == sorted(store.index.ids[expected])
    assert sum(row["num_frames"] for row in rows) == store.index.num_frames[expected].sum()
    assert set(rows[0]) == {"id", "num_frames"}


def test_a_batch_copies_each_byte_of_its_videos_once(store, monkeypatch):
    """What is read for a video is its buffers, whole, and nothing beside them."""
    read = 0

    def counted(parts, empty):
        nonlocal read
        read += sum(part.nbytes for part in parts)
        return np.concatenate(parts) if parts else empty

    monkeypatch.setattr("hero_platform.store.reader.concatenate", counted)
    picked = np.array([3, 0, 7])
    rows, index = store.rows(picked), store.index
    frames, segments, tokens = (
        int(getattr(index, f"num_{name}")[picked].sum()) for name in ("frames", "segments", "tokens")
    )
    assert read == frames * store.frame_dim * 2 + 4 * (tokens + 2 * segments + len(rows.segment_frames))
