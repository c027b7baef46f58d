"""The tokenizer against ids that the pinned transformers 2.0.0 gave, from both forms of the vocabulary."""

import json
import os
import pickle
from pathlib import Path

import pytest

from hero_model.config import TextIds
from hero_model.text import RobertaTokenizer, WordTokenizer
from hero_platform.store.tokens import TokenizerSpec, tokenise

REPO = Path(__file__).parents[3]
SHARED = Path(os.environ.get("HERO_GOLDEN_DIR", REPO.parent / "shared" / "golden")) / "lmdb"
REAL = REPO.parent / "shared" / "real"
FOLDERS = {"huggingface": SHARED / "tokenizer/roberta-base", "fairseq": REAL / "roberta"}
VARIANTS = ("sub", "query", "tvc")


@pytest.fixture(scope="module", params=FOLDERS)
def spec(request):
    if not FOLDERS[request.param].exists():
        pytest.skip(f"no {FOLDERS[request.param]}")
    return TokenizerSpec.roberta(str(FOLDERS[request.param]))


def test_every_golden_case(spec):
    path = SHARED / "expected/tokenizer_cases.json"
    if not path.exists():
        pytest.skip(f"no {path}")
    cases = json.loads(path.read_text())["cases"]
    for variant in VARIANTS:
        assert tokenise(spec, [case["text"] for case in cases], variant) == [case[variant] for case in cases]
    assert [spec.load().decode(case["tvc"]) for case in cases] == [case["decoded_tvc"] for case in cases]
    assert len(cases) >= 60


def test_special_ids_are_roberta(spec):
    assert spec.text_ids == TextIds()


def test_digest_is_of_content_not_of_files(spec):
    assert spec.describe()["digest"] == "bc9733abfd9c1ec0b6f0ab35d7abbf453fda66fe9f87a5132250a42d5b5cef0c"


def test_spec_travels_by_value(spec):
    copy = pickle.loads(pickle.dumps(spec))
    assert copy == spec
    assert "vocab" not in repr(spec).replace("vocab_size", "")  # megabytes stay out of messages
    assert tokenise(copy, ["Hello world"], "sub") == [[31414, 232]]


def test_blanks_and_spelled_out_specials(spec):
    assert tokenise(spec, ["", "   ", " \n\t"], "sub") == [[], [], []]
    assert tokenise(spec, ["Hello <mask> world</s>"], "query") == [[31414, 50264, 8331, 2]]


def test_lone_surrogate_is_undecodable_text(spec):
    with pytest.raises(ValueError, match="undecodable text"):
        tokenise(spec, ["fine", "bad \ud800"], "sub")


def test_words():
    spec = TokenizerSpec.of_words(["Cat", "sits"])
    assert spec.text_ids == TextIds(0, 1, 2, mask=6, vocab_size=7, random_low=4, random_high=6)
    assert tokenise(spec, ["cat SITS  there"], "sub") == [[4, 5, 3]]
    assert spec.load().decode([4, 5]) == "cat sits"
    assert spec.digest == WordTokenizer(["cat", "sits"]).digest != WordTokenizer(["sits", "cat"]).digest


@pytest.mark.parametrize("words", [["a", "A"], ["two words"], [""]])
def test_bad_word_lists(words):
    with pytest.raises(ValueError, match="distinct, non-empty words"):
        TokenizerSpec.of_words(words)


def test_ids_only_cannot_tokenise():
    spec = TokenizerSpec.ids_only(TextIds())
    assert tokenise(spec, [], "sub") == []
    with pytest.raises(ValueError, match="name a vocabulary folder"):
        tokenise(spec, ["text"], "sub")


def test_no_vocabulary_in_the_folder(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no RoBERTa vocabulary there; need vocab.json \+ merges.txt"):
        TokenizerSpec.roberta(str(tmp_path))


@pytest.mark.parametrize(
    ("vocabulary", "merges", "reason"),
    [
        (b"[]", b"", "not a JSON object"),
        (b"{", b"", "do not parse"),
        (b'{"a": 0}', b"", "lacks <s>"),
        (b'{"<s>":0,"<pad>":1,"</s>":2,"<unk>":3,"<mask>":9}', b"", "without gaps"),
        (b'{"<s>":0,"<pad>":1,"</s>":2,"<unk>":3,"<mask>":4}', b"a b c\n", "line 1 of the merges"),
    ],
)
def test_damaged_vocabulary(vocabulary, merges, reason):
    with pytest.raises(ValueError, match=reason):
        RobertaTokenizer.from_files({"vocab.json": vocabulary, "merges.txt": merges})


def test_decode_refuses_foreign_ids(spec):
    with pytest.raises(ValueError, match="token id 50265 is outside"):
        spec.load().decode([50265])
