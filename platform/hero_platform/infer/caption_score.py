"""Scores captions against references: tokeniser, METEOR and the metrics of `hero_model.metrics.caption` (hero.md 4.6).

The PTB tokenizer and METEOR 1.5 are Java programs, whose jars the optional package pycocoevalcap holds. Without Java or
the package, METEOR is left out and a plain tokeniser stands in for PTB's; the report says so in one line.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hero_model.metrics.base import bootstrap_interval
from hero_model.metrics.caption import Scores, check_cover, score

MEANS = ("rouge_l", "cider_d")  # metrics of a split that are means over its clips: BLEU and METEOR pool counts
_WITHOUT = "METEOR is left out and words are split by a plain rule instead of the PTB tokenizer"
_PUNCTUATION = frozenset("'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;".split())
_TOKENIZER = "tokenizer/stanford-corenlp-3.4.1.jar"
_METEOR = "meteor/meteor-1.5.jar"
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_WORDS = re.compile(
    r"\b(?:dr|mr|mrs|ms)\.|\w+(?=n't\b)|n't\b|'(?:s|m|d|ll|re|ve)\b|\w+(?:[-.&/]\w+)*|[()\[\]{}]|[^\w\s.?!,:;'\"`-]"
)


@dataclass(frozen=True)
class CaptionScores:
    """Values in percent, by name; `clips` holds those of each clip, in the order of `clip_ids`."""

    values: dict[str, float]  # bleu1 .. bleu4, rouge_l, cider_d, and meteor where Java is
    clips: dict[str, list[float]]
    clip_ids: list[str]
    note: str  # what was left out and why; empty if nothing


def score_captions(predicted: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> CaptionScores:
    """Score one caption per clip.

    Characters outside ASCII become blanks first, as officially.

    Args:
        predicted: Caption of each clip.
        references: Reference captions of each clip.

    Raises:
        ValueError: The predictions do not cover exactly the reference clips.
    """
    check_cover(predicted, references)
    clip_ids = list(predicted)
    owners = [clip for clip in clip_ids for _ in references[clip]]
    given = [_ascii(text) for text in (*predicted.values(), *(text for clip in clip_ids for text in references[clip]))]
    jars, note = _jars()
    tokenised: list[str] = []
    if jars is not None:
        try:
            tokenised = _ptb_tokens(given, jars)
        except (OSError, RuntimeError) as error:  # such as a java that only says where to get one
            jars, note = None, f"{_WITHOUT}: {error}"
    if jars is None:
        tokenised = [_plain_tokens(text) for text in given]
    hypotheses = dict(zip(clip_ids, tokenised[: len(clip_ids)], strict=True))
    by_clip: dict[str, list[str]] = {clip: [] for clip in clip_ids}
    for clip, text in zip(owners, tokenised[len(clip_ids) :], strict=True):
        by_clip[clip].append(text)
    metrics = score(hypotheses, by_clip)
    if jars is not None:
        try:
            metrics["meteor"] = _meteor([(hypotheses[clip], by_clip[clip]) for clip in clip_ids], jars)
        except (OSError, RuntimeError) as error:
            note = f"METEOR is left out: {error}"
    return CaptionScores(
        values={name: 100.0 * scores.corpus for name, scores in metrics.items()},
        clips={name: [100.0 * value for value in scores.clips] for name, scores in metrics.items()},
        clip_ids=clip_ids,
        note=note,
    )


def mean_intervals(scores: CaptionScores, videos: Sequence[object]) -> dict[str, list[float]]:
    """95% bootstrap intervals of the metrics that are means over clips, those of one video drawn together.

    Args:
        scores: of a split.
        videos: the video of each of `scores.clip_ids`.
    """
    numbers = {video: number for number, video in enumerate(dict.fromkeys(videos))}
    groups = np.array([numbers[video] for video in videos])
    return {name: list(bootstrap_interval(np.array(scores.clips[name]), groups)) for name in MEANS}


def _ascii(text: str) -> str:
    return " ".join("".join(char if char.isascii() else " " for char in text).split())


def _plain_tokens(text: str) -> str:
    """Lower-cased words without punctuation, contractions apart: PTB's rules for ordinary captions."""
    return " ".join(_BRACKETS.get(word, word) for word in _WORDS.findall(text.lower()))


def _jars() -> tuple[Path | None, str]:
    """The folder of the jars, or why there is none."""
    package = importlib.util.find_spec("pycocoevalcap")
    if package is None or not package.submodule_search_locations:
        return None, f"{_WITHOUT}: pycocoevalcap is not installed (pip install 'hero-platform[captions]')"
    if shutil.which("java") is None:
        return None, f"{_WITHOUT}: there is no java on the PATH"
    return Path(next(iter(package.submodule_search_locations))), ""


def _ptb_tokens(texts: Sequence[str], jars: Path) -> list[str]:
    """Tokens of Stanford's PTB tokenizer in lower case, without punctuation."""
    command = ["java", "-cp", str(jars / _TOKENIZER), "edu.stanford.nlp.process.PTBTokenizer"]
    done = subprocess.run(
        [*command, "-preserveLines", "-lowerCase"], input="\n".join(texts) + "\n", capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    if done.returncode or len(lines) != len(texts):
        raise RuntimeError(
            f"the PTB tokenizer gave {len(lines)} lines for {len(texts)} captions: {_reason(done.stderr)}"
        )
    return [" ".join(word for word in line.split() if word not in _PUNCTUATION) for line in lines]


def _meteor(pairs: Sequence[tuple[str, Sequence[str]]], jars: Path) -> Scores:
    """METEOR 1.5 for English, over (hypothesis, references)."""
    command = ["java", "-Xmx2G", "-jar", str(jars / _METEOR), "-", "-", "-stdio", "-l", "en", "-norm"]
    folder, pipe = (jars / _METEOR).parent, subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, cwd=folder, stdin=pipe, stdout=pipe, stderr=errors, text=True) as process,
    ):
        assert process.stdin is not None and process.stdout is not None

        def ask(*fields: str) -> str:
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(" ||| ".join(fields) + "\n")
                process.stdin.flush()
            except BrokenPipeError:
                return ""
            return process.stdout.readline().strip()

        counts = [ask("SCORE", *references, hypothesis) for hypothesis, references in pairs]
        values = [ask("EVAL", *counts), *(process.stdout.readline().strip() for _ in pairs)]
        process.communicate()
        errors.seek(0)
        problem = errors.read()
    if not all(values):
        raise RuntimeError(f"METEOR gave no score: {_reason(problem)}")
    *clips, corpus = map(float, values)
    return Scores(corpus, clips)


def _reason(errors: str) -> str:
    lines = errors.strip().splitlines()
    return lines[-1] if lines else "it said nothing"
