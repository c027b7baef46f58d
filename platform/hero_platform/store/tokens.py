"""Which tokenizer a store is built with, as a value that travels to Ray tasks.

A `TokenizerSpec` carries the vocabulary itself (1-2 MB), not a path, so a worker on another host needs no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, Literal

from hero_model.config import TextIds
from hero_model.text import VOCABULARY_FILES, WORDS_FILE, RobertaTokenizer, Tokenizer, Variant, WordTokenizer
from hero_platform import files

Kind = Literal["roberta", "words", "ids"]

FOLDER = "tokenizer"  # inside a store; the manifest's digest of the tokenizer says whether it is intact


@dataclass(frozen=True)
class TokenizerSpec:
    """A tokenizer by content. Build it with `roberta`, `of_words` or `ids_only`, not directly."""

    kind: Kind
    digest: str  # of the vocabulary; empty for "ids"
    text_ids: TextIds
    vocabulary_files: tuple[tuple[str, bytes], ...] = field(default=(), repr=False)
    words: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def roberta(cls, folder: str) -> TokenizerSpec:
        """RoBERTa's vocabulary from a local or S3 folder, in either of its two file sets (hero_model.text).

        Raises:
            ValueError: the folder holds neither set, or it does not parse.
        """
        present = set(files.listdir(folder))
        for names in VOCABULARY_FILES:
            if present.issuperset(names):
                content = tuple((name, files.read_bytes(files.join(folder, name))) for name in names)
                try:
                    tokenizer = RobertaTokenizer.from_files(dict(content))
                except ValueError as error:
                    raise ValueError(f"{folder}: {error}") from error
                return cls("roberta", tokenizer.digest, tokenizer.text_ids, vocabulary_files=content)
        raise ValueError(
            f"{folder}: no RoBERTa vocabulary there; need vocab.json + merges.txt, "
            "or encoder.json + vocab.bpe + dict.txt"
        )

    @classmethod
    def of_words(cls, words: Sequence[str]) -> TokenizerSpec:
        """A closed list of words (hero_model.text.WordTokenizer)."""
        tokenizer = WordTokenizer(words)
        return cls("words", tokenizer.digest, tokenizer.text_ids, words=tuple(words))

    @classmethod
    def read(cls, path: str) -> TokenizerSpec:
        """From a folder with RoBERTa's vocabulary, or a text file with one word a line.

        Raises:
            ValueError: neither is there.
        """
        if path.endswith(".txt") and files.exists(path):
            return cls.of_words(files.read_bytes(path).decode("utf-8").split())
        return cls.roberta(path)

    @classmethod
    def of_store(cls, root: str, described: Mapping[str, Any]) -> TokenizerSpec:
        """The vocabulary a store carries beside its shards.

        Args:
            root: the store.
            described: what its manifest says of its tokenizer (`describe`).

        Raises:
            ValueError: it carries none, or one that is not its own.
        """
        folder = files.join(root, FOLDER)
        names = files.listdir(folder)
        if not names:
            raise ValueError(f"{root} carries no vocabulary, only token ids: name its vocabulary with --tokenizer PATH")
        spec = cls.read(files.join(folder, WORDS_FILE) if WORDS_FILE in names else folder)
        if spec.digest != described["digest"]:
            raise ValueError(f"{folder} is not the vocabulary the store was built with: it was changed or damaged")
        return spec

    def write(self, root: str) -> None:
        """Put the vocabulary beside a store's shards; nothing where only special ids are known."""
        contents = dict(self.vocabulary_files)
        if self.words:
            contents[WORDS_FILE] = ("\n".join(self.words) + "\n").encode()
        for name, content in contents.items():
            files.write_bytes(files.join(root, FOLDER, name), content)

    def check_fits(self, described: dict[str, Any], where: str) -> None:
        """Refuse to tokenise for a store whose texts went through another vocabulary.

        Args:
            described: what the store's manifest says of its tokenizer (`describe`).
            where: the store, for the message.

        Raises:
            ValueError: it is another vocabulary; a store of ready-made ids has special ids to compare, nothing more.
        """
        same = (
            self.digest == described["digest"]
            if described["digest"]
            else asdict(self.text_ids) == described["text_ids"]
        )
        if not same:
            raise ValueError(f"the texts of {where} went through another vocabulary than this one: give theirs")

    @classmethod
    def ids_only(cls, text_ids: TextIds) -> TokenizerSpec:
        """No vocabulary: for sources whose texts are already token ids (the released databases)."""
        return cls("ids", "", text_ids)

    def load(self) -> Tokenizer:
        """The tokenizer itself, built once per process.

        Raises:
            ValueError: this spec has special ids only, so it cannot tokenise.
        """
        return _load(self)

    def describe(self) -> dict[str, Any]:
        """JSON-ready facts for the manifest; equal for equal vocabularies, wherever they were read from."""
        return {"kind": self.kind, "digest": self.digest, "text_ids": asdict(self.text_ids)}


@lru_cache(maxsize=4)
def _load(spec: TokenizerSpec) -> Tokenizer:
    if spec.kind == "roberta":
        return RobertaTokenizer.from_files(dict(spec.vocabulary_files))
    if spec.kind == "words":
        return WordTokenizer(spec.words)
    raise ValueError("these texts need tokenising, but only special ids are known: name a vocabulary folder")


def tokenise(spec: TokenizerSpec, texts: Sequence[str], variant: Variant) -> list[list[int]]:
    """Token ids of each text, without special tokens.

    Raises:
        ValueError: a text is not valid Unicode (lone surrogates), or the spec cannot tokenise.
    """
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"undecodable text (lone surrogate at character {error.start})") from error
    return spec.load().encode(texts, variant) if texts else []
