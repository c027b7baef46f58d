"""Text to token ids: RoBERTa's byte-level BPE as HERO's preprocessing used it, and a word-level tokenizer for tests.

The reference behaviour is transformers 2.0.0's `RobertaTokenizer` called by HERO's scripts/prepro_*.py (hero.md 5.2):
blanks are stripped at both ends, no space is put in front, so the first word is spelled as inside a word, and no
special token is added. What is done to the text before that depends on its use, see `VARIANTS`.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from hero_model.config import TextIds

if TYPE_CHECKING:
    from tokenizers import Tokenizer as BpeTokenizer

Variant = Literal["sub", "query", "tvc"]
"""sub: subtitles, entities unescaped, all-capitals lowered; query: lowered only; tvc: captions, as written."""

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
VOCABULARY_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe", "dict.txt"))
WORDS_FILE = "words.txt"
_FILES = {WORDS_FILE, *VOCABULARY_FILES[0], *VOCABULARY_FILES[1]}

_SPECIAL_RE = re.compile("(" + "|".join(re.escape(token) for token in SPECIALS) + ")")
# What transformers 2.0.0 applied to every decoded text, in this order.
_CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


class Tokenizer(Protocol):
    """Turns text into ids and back."""

    @property
    def text_ids(self) -> TextIds:
        """Special ids and the size of the vocabulary."""

    @property
    def digest(self) -> str:
        """SHA-256 of the vocabulary's content, the same whichever files it came from."""

    def encode(self, texts: Sequence[str], variant: Variant) -> list[list[int]]:
        """Token ids of each text, without special tokens."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids."""


def normalise(text: str, variant: Variant) -> str:
    """Apply the rule of `variant` that comes before tokenising (hero.md 5.2)."""
    if variant == "sub":
        text = html.unescape(text)
    if variant != "tvc" and text.isupper():
        text = text.lower()
    return text


class RobertaTokenizer:
    """Byte-level BPE with RoBERTa's vocabulary.

    Deviation: a text of blanks only gives no token. The reference gives one special token there, which one depending
    on the order of a Python set.
    """

    def __init__(self, vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> None:
        missing = [token for token in SPECIALS if token not in vocabulary]
        if missing:
            raise ValueError(f"the vocabulary lacks {', '.join(missing)}: it is not RoBERTa's")
        if sorted(vocabulary.values()) != list(range(len(vocabulary))):
            raise ValueError("the vocabulary's ids are not 0, 1, 2, ... without gaps")
        self._vocabulary = dict(vocabulary)
        self._merges = list(merges)

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> RobertaTokenizer:
        """Build from file name -> content: vocab.json + merges.txt, or encoder.json + vocab.bpe + dict.txt (fairseq).

        Raises:
            ValueError: neither set is complete, or one does not parse.
        """
        try:
            if "vocab.json" in files and "merges.txt" in files:
                return cls(_string_to_int(files["vocab.json"]), _parse_merges(files["merges.txt"]))
            if all(name in files for name in VOCABULARY_FILES[1]):
                vocabulary = _fairseq_vocabulary(_string_to_int(files["encoder.json"]), files["dict.txt"])
                return cls(vocabulary, _parse_merges(files["vocab.bpe"]))
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError) as error:
            raise ValueError(f"the vocabulary files do not parse: {error!r}") from error
        raise ValueError("no RoBERTa vocabulary: need vocab.json + merges.txt, or encoder.json + vocab.bpe + dict.txt")

    @cached_property
    def text_ids(self) -> TextIds:
        """RoBERTa's special ids; random replacements leave out the specials at both ends (hero.md 5.2, v_range)."""
        size = len(self._vocabulary)
        made_up = sum(token.startswith("madeupword") for token in self._vocabulary)
        return TextIds(
            cls=self._vocabulary["<s>"],
            pad=self._vocabulary["<pad>"],
            sep=self._vocabulary["</s>"],
            mask=self._vocabulary["<mask>"],
            vocab_size=size,
            random_low=4,
            random_high=size - 1 - made_up,
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the tokens in id order, then the merges."""
        tokens = sorted(self._vocabulary, key=self._vocabulary.__getitem__)
        pairs = [f"{left} {right}" for left, right in self._merges]
        return _digest("roberta", [*tokens, "", *pairs])

    def encode(self, texts: Sequence[str], variant: Variant) -> list[list[int]]:
        """Token ids of each text, without special tokens (those spelled out in the text become their ids)."""
        pieces: list[str] = []  # texts between spelled-out special tokens, all encoded in one call
        owners: list[int] = []
        for owner, text in enumerate(texts):
            for part in _SPECIAL_RE.split(normalise(text, variant)):
                if stripped := part.strip():
                    pieces.append(stripped)
                    owners.append(owner)
        ids: list[list[int]] = [[] for _ in texts]
        plain = [piece for piece in pieces if piece not in SPECIALS]
        encoded = iter(self._bpe.encode_batch(plain, add_special_tokens=False))
        for owner, piece in zip(owners, pieces, strict=True):
            ids[owner].extend([self._vocabulary[piece]] if piece in SPECIALS else next(encoded).ids)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids, with the reference's clean-up of spaces before punctuation.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        outside = [index for index in ids if not 0 <= index < len(self._vocabulary)]
        if outside:
            raise ValueError(f"token id {outside[0]} is outside the vocabulary of {len(self._vocabulary)}")
        text = self._bpe.decode(list(ids), skip_special_tokens=False)
        for spaced, clean in _CLEAN_UP:
            text = text.replace(spaced, clean)
        return text

    @cached_property
    def _bpe(self) -> BpeTokenizer:
        from tokenizers import Tokenizer as BpeTokenizer
        from tokenizers import decoders, models, pre_tokenizers

        bpe = BpeTokenizer(models.BPE(vocab=self._vocabulary, merges=self._merges))
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        bpe.decoder = decoders.ByteLevel()
        return bpe


class WordTokenizer:
    """One id per word of a closed list, words separated by blanks; unknown words get id 3, case is ignored."""

    def __init__(self, words: Sequence[str]) -> None:
        lowered = [word.lower() for word in words]
        if len(set(lowered)) != len(lowered) or any(not word or word.split() != [word] for word in lowered):
            raise ValueError("a word list needs distinct, non-empty words without blanks")
        self._tokens = ["<s>", "<pad>", "</s>", "<unk>", *lowered, "<mask>"]
        self._ids = {token: index for index, token in enumerate(self._tokens)}

    @property
    def text_ids(self) -> TextIds:
        """Cls 0, pad 1, sep 2, unk 3, the words, and mask last."""
        size = len(self._tokens)
        return TextIds(cls=0, pad=1, sep=2, mask=size - 1, vocab_size=size, random_low=4, random_high=size - 1)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the words in id order."""
        return _digest("words", self._tokens)

    def encode(self, texts: Sequence[str], variant: Variant) -> list[list[int]]:
        """Token ids of each text; `variant` only decides whether HTML entities are unescaped."""
        return [[self._ids.get(word, 3) for word in normalise(text, variant).lower().split()] for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """The words of these ids, joined by single blanks."""
        return " ".join(self._tokens[index] for index in ids)


def read_vocabulary(folder: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a folder: the words of `words.txt`, else RoBERTa's vocabulary in either of its two file sets.

    Raises:
        ValueError: the folder holds neither.
    """
    contents = {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name in _FILES}
    if WORDS_FILE in contents:
        return WordTokenizer(contents[WORDS_FILE].decode("utf-8").split())
    return RobertaTokenizer.from_files(contents)


def _digest(kind: str, lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join([kind, *lines]).encode()).hexdigest()


def _string_to_int(content: bytes) -> dict[str, int]:
    value = json.loads(content.decode("utf-8"))
    if not isinstance(value, dict) or not all(isinstance(index, int) for index in value.values()):
        raise ValueError("the vocabulary file is not a JSON object of token -> id")
    return value


def _parse_merges(content: bytes) -> list[tuple[str, str]]:
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(content.decode("utf-8").splitlines(), start=1):
        if not line or line.startswith("#version"):
            continue
        pair = line.split(" ")
        if len(pair) != 2:
            raise ValueError(f"line {number} of the merges is not two tokens: {line!r}")
        merges.append((pair[0], pair[1]))
    return merges


def _fairseq_vocabulary(encoder: Mapping[str, int], dictionary: bytes) -> dict[str, int]:
    """Re-index GPT-2's tokens by fairseq's dict.txt: four specials, one id per line, then the mask."""
    token_of = {str(index): token for token, index in encoder.items()}
    listed = [line.split(" ")[0] for line in dictionary.decode("utf-8").splitlines() if line]
    tokens = ["<s>", "<pad>", "</s>", "<unk>"]
    tokens += [name if name.startswith("madeupword") else token_of[name] for name in listed]
    tokens.append("<mask>")
    return {token: index for index, token in enumerate(tokens)}
