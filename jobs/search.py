"""Answer sentences with moments of the videos of a store.

python -m jobs.search --run finetune_tvr --store PATH "a man opens the door"
python -m jobs.search --run finetune_tvr --store PATH "a man opens the door" --clip moments
python -m jobs.search --run finetune_tvr --store PATH --questions FILE --json answers.json

The first call of a checkpoint on a store encodes all its videos and keeps the result under HERO_HOME/indexes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jobs.cli import Parser, add_checkpoint, add_json, checkpoint_of, program_of, run_search, write_json

if TYPE_CHECKING:
    from hero_platform.infer.searcher import Answer, Searcher
    from hero_platform.store.reader import FeatureStore

PROGRAM = program_of("jobs.search")
BATCH = 64  # questions that are searched at once


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    built = Parser(prog=PROGRAM, description=__doc__)
    built.add_argument("question", nargs="?", metavar="SENTENCE", help="what to look for")
    built.add_argument("--questions", metavar="FILE", help="one sentence a line, instead of SENTENCE")
    add_checkpoint(built)
    add_store(built)
    built.add_argument("--top", type=int, default=10, metavar="N", help="moments of each question (10)")
    built.add_argument("--clip", metavar="DIR", help="cut the moments into files there")
    add_json(built)
    return built


def add_store(built: argparse.ArgumentParser) -> None:
    """The flags of what is searched, which `jobs.serve` has too."""
    built.add_argument("--store", required=True, metavar="PATH", help="the feature store whose videos are searched")
    built.add_argument("--tokenizer", metavar="PATH", help="the vocabulary, for a store that carries none")
    built.add_argument("--media", metavar="DIR", help="where the films lie, if not where the store was built from")
    built.add_argument("--threads", type=int, default=1, metavar="N", help="threads of each process that computes (1)")
    built.add_argument("--workers", type=int, default=0, metavar="N", help="build the index on N Ray workers (0: here)")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, search, print; returns the exit code."""
    own = parser().parse_args(argv)
    return run_search(PROGRAM, lambda: _search(own))


def _search(own: argparse.Namespace) -> int:
    began = time.perf_counter()
    from hero_platform.infer.films import films_of
    from hero_platform.infer.search import threads
    from hero_platform.infer.searcher import MOST, as_json
    from hero_platform.store.reader import FeatureStore

    questions = _questions(own)
    if not 1 <= own.top <= MOST or own.workers < 0 or own.threads < 1:
        raise ValueError(
            f"--top {own.top} --workers {own.workers} --threads {own.threads}: give 1 to {MOST} moments, "
            "at least 0 workers and 1 thread"
        )
    store = FeatureStore.open(own.store)
    media = films_of(store, own.media) if own.clip or own.media else None
    if own.clip and media is None:
        raise ValueError(f"{own.store} knows no films to cut moments from: name their folder with --media DIR")
    with threads(own.threads):
        searcher = _open(own, store)
        ready = time.perf_counter()
        found = [
            moments
            for first in range(0, len(questions), BATCH)
            for moments in searcher.find(questions[first : first + BATCH], own.top)
        ]
    search_s = time.perf_counter() - ready
    answers = [searcher.answers(moments) for moments in found]
    entries: list[dict[str, Any]] = []
    lacking: list[str] = []
    for question, listed in zip(questions, answers, strict=True):
        print("\n".join(_lines(question, listed)))
        entry: dict[str, Any] = {"question": question, "moments": [as_json(answer) for answer in listed]}
        if own.clip:
            assert media is not None
            lacking += _cut(media, entry["moments"], own.clip)
        entries.append(entry)
    built = "after building the index" if searcher.was_built else "index found ready"
    print(
        f"{len(questions)} question{'s' * (len(questions) != 1)} in {len(searcher.index):,} videos: {search_s:.2f} s "
        f"(start-up {ready - began:.1f} s, {built})"
    )
    facts = {"checkpoint": searcher.checkpoint, "store": store.digest, "videos": len(searcher.index)}
    times = {"start_up_s": round(ready - began, 3), "search_s": round(search_s, 4), "index_built": searcher.was_built}
    write_json(own.json, {**facts, **times, "answers": entries})
    if lacking:
        raise ValueError(f"{len(lacking)} moments were not cut; of the first: {lacking[0]}")
    return 0


def _open(own: argparse.Namespace, store: FeatureStore) -> Searcher:
    """Read the model; map the index, or build it."""
    from hero_platform.infer.searcher import Searcher

    searcher = Searcher.open(
        checkpoint_of(own), store, vocabulary=own.tokenizer, workers=own.workers, threads=own.threads, show=True
    )
    warn(PROGRAM, searcher)
    return searcher


def warn(program: str, searcher: Searcher) -> None:
    """Say what is not searched, which `jobs.serve` does too."""
    if searcher.unread:
        print(f"{program}: {searcher.unread}", file=sys.stderr)


def _questions(own: argparse.Namespace) -> list[str]:
    """What is asked.

    Raises:
        ValueError: nothing, or both ways.
    """
    from hero_platform import files

    if (own.question is None) == (own.questions is None):
        raise ValueError("give one sentence, or a file of them with --questions FILE")
    if own.questions is None:
        lines = [own.question]
    else:
        try:
            lines = files.read_bytes(own.questions).decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{own.questions} is not UTF-8 text: {error}") from error
    asked = [line.strip() for line in lines if line.strip()]
    if not asked:
        raise ValueError("the question is empty" if own.questions is None else f"{own.questions} holds no question")
    return asked


def _lines(question: str, answers: Sequence[Answer]) -> list[str]:
    """A question and its table."""
    width = max((len(answer.video) for answer in answers), default=0)
    lines = [_printable(question), f"  {'video':{width}}  start - end (s)     score  what is said there"]
    for answer in answers:
        said = _printable(" / ".join(line.text.strip() for line in answer.subtitles))
        times = f"{answer.start_s:6.1f} - {answer.end_s:6.1f}"
        lines.append(f"  {_printable(answer.video):{width}}  {times}  {answer.score:9.4g}  {said}".rstrip())
    return [*lines, ""]


def _printable(text: str) -> str:
    """Text for a terminal: subtitles and names of films are other people's, and may hold commands to it."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def _cut(media: Any, moments: list[dict[str, Any]], folder: str) -> list[str]:
    """Cut the moments of a question into files, and say of each where it is; returns why some could not be."""
    from pathlib import Path

    from hero_platform.infer.films import cut

    lacking = []
    for moment in moments:
        moment["clip"] = None
        try:
            moment["clip"] = str(cut(media, moment["video"], moment["start_s"], moment["end_s"], Path(folder)))
            print(f"wrote {moment['clip']}")
        except ValueError as error:
            lacking.append(str(error))
    return lacking


if __name__ == "__main__":
    raise SystemExit(main())
