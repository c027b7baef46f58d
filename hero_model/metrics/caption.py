"""Caption metrics: BLEU-1 to 4, ROUGE-L and CIDEr-D, as the public COCO caption evaluation defines them (hero.md 4.6).

All take captions that are tokenised already: words separated by blanks. Clips are keyed by id; a clip has one
hypothesis and any number of references.

- BLEU (Papineni et al., 2002): clipped n-gram matches over all clips; of a clip's references the one closest in length
  counts for brevity, the shorter of equals. The constants that keep divisions finite are part of the definition.
- ROUGE-L (Lin, 2004): longest common subsequence; best precision and best recall over the references, beta 1.2.
- CIDEr-D (Vedantam et al., 2015): cosine of clipped tf-idf n-gram vectors, n = 1 to 4, with a Gaussian penalty of sigma
  6 on the difference in length; document frequencies come from the references of the clips at hand. As in the public
  code, the length that the penalty compares is the number of bigrams.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

Words = Sequence[str]
Ngrams = Counter[tuple[str, ...]]

ORDERS = 4
BETA = 1.2
SIGMA = 6.0
_TINY, _SMALL = 1e-15, 1e-9  # added to numerators and denominators by the public BLEU


class Scores(NamedTuple):
    """One metric: over all clips, and of each clip in the order of the hypotheses."""

    corpus: float
    clips: list[float]


def score(hypotheses: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, Scores]:
    """Compute every metric here.

    Args:
        hypotheses: Tokenised caption of each clip.
        references: Tokenised reference captions of each clip.

    Returns:
        `bleu1` to `bleu4`, `rouge_l` and `cider_d`; BLEU and ROUGE-L in [0, 1], CIDEr-D in [0, 10].

    Raises:
        ValueError: The hypotheses do not cover exactly the reference clips, or a clip has no reference.
    """
    check_cover(hypotheses, references)
    pairs = [(text.split(), [own.split() for own in references[clip]]) for clip, text in hypotheses.items()]
    metrics = {f"bleu{order}": scores for order, scores in enumerate(bleu(pairs), start=1)}
    return metrics | {"rouge_l": rouge_l(pairs), "cider_d": cider_d(pairs)}


def check_cover(hypotheses: Mapping[str, object], references: Mapping[str, Sequence[object]]) -> None:
    """Refuse hypotheses for other clips than those of the references.

    Raises:
        ValueError: A clip is missing, unknown or without a reference.
    """
    for problem, clips in (
        ("no caption was predicted for", references.keys() - hypotheses.keys()),
        ("there is no reference for the predicted clips", hypotheses.keys() - references.keys()),
        ("the reference has no caption of", {clip for clip, captions in references.items() if not captions}),
    ):
        if clips:
            raise ValueError(f"{problem} {', '.join(sorted(clips)[:5])} ({len(clips)} in all)")
    if not references:
        raise ValueError("the reference holds no clip")


def bleu(pairs: Sequence[tuple[Words, Sequence[Words]]]) -> list[Scores]:
    """BLEU of orders 1 to 4 over (hypothesis, references)."""
    counts = [_matches(hypothesis, references) for hypothesis, references in pairs]
    lengths = [
        (len(words), min((abs(len(own) - len(words)), len(own)) for own in references)[1])
        for words, references in pairs
    ]
    clips = [_bleu(*part) for part in zip(counts, lengths, strict=True)]
    total = [(sum(c[n][0] for c in counts), sum(c[n][1] for c in counts)) for n in range(ORDERS)]
    corpus = _bleu(total, (sum(own for own, _ in lengths), sum(best for _, best in lengths)))
    return [Scores(corpus[n], [clip[n] for clip in clips]) for n in range(ORDERS)]


def rouge_l(pairs: Sequence[tuple[Words, Sequence[Words]]]) -> Scores:
    """ROUGE-L over (hypothesis, references); the corpus value is the mean."""
    clips = [_rouge_l(hypothesis, references) for hypothesis, references in pairs]
    return Scores(math.fsum(clips) / len(clips), clips)


def cider_d(pairs: Sequence[tuple[Words, Sequence[Words]]]) -> Scores:
    """CIDEr-D over (hypothesis, references); the corpus value is the mean."""
    counted = [(_ngrams(hypothesis), [_ngrams(own) for own in references]) for hypothesis, references in pairs]
    seen: Ngrams = Counter(ngram for _, references in counted for ngram in set().union(*references))
    log_clips = math.log(len(pairs))
    clips = []
    for hypothesis, references in counted:
        own = _vectors(hypothesis, seen, log_clips)
        total = math.fsum(_similarity(own, _vectors(reference, seen, log_clips)) for reference in references)
        clips.append(10.0 * total / len(references))
    return Scores(math.fsum(clips) / len(clips), clips)


def _ngrams(words: Words) -> Ngrams:
    """Counts of all n-grams, n = 1 to 4."""
    return Counter(tuple(words[i : i + order]) for order in range(1, ORDERS + 1) for i in range(len(words) - order + 1))


def _matches(hypothesis: Words, references: Sequence[Words]) -> list[tuple[int, int]]:
    """Per order: n-grams of the hypothesis found in a reference (as often as in one of them), and all it has."""
    most: Ngrams = Counter()
    for reference in references:
        most |= _ngrams(reference)
    found = _ngrams(hypothesis) & most
    return [
        (
            sum(count for ngram, count in found.items() if len(ngram) == order),
            max(0, len(hypothesis) - order + 1),
        )
        for order in range(1, ORDERS + 1)
    ]


def _bleu(counts: Sequence[tuple[int, int]], lengths: tuple[int, int]) -> list[float]:
    """BLEU of each order from (matches, guesses) per order and the lengths of hypothesis and closest reference."""
    ratio = (lengths[0] + _TINY) / (lengths[1] + _SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    values, product = [], 1.0
    for order, (matches, guesses) in enumerate(counts, start=1):
        product *= (matches + _TINY) / (guesses + _SMALL)
        values.append(product ** (1 / order) * brevity)
    return values


def _rouge_l(hypothesis: Words, references: Sequence[Words]) -> float:
    """F-measure of the best precision and the best recall."""
    if not hypothesis:
        return 0.0
    common = [(_common_subsequence(hypothesis, reference), len(reference)) for reference in references]
    precision = max(length / len(hypothesis) for length, _ in common)
    recall = max(length / max(own, 1) for length, own in common)
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common_subsequence(first: Words, second: Words) -> int:
    """Length of the longest common subsequence."""
    longest = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for place, other in enumerate(second, start=1):
            above = longest[place]
            longest[place] = diagonal + 1 if word == other else max(above, longest[place - 1])
            diagonal = above
    return longest[-1]


class _Vectors(NamedTuple):
    """The tf-idf vectors of a caption, one per order, with their norms."""

    weights: list[dict[tuple[str, ...], float]]
    norms: list[float]
    num_bigrams: int


def _vectors(ngrams: Ngrams, seen: Ngrams, log_clips: float) -> _Vectors:
    weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(ORDERS)]
    for ngram, count in ngrams.items():
        weights[len(ngram) - 1][ngram] = count * (log_clips - math.log(max(1, seen[ngram])))
    norms = [math.sqrt(math.fsum(weight**2 for weight in own.values())) for own in weights]
    return _Vectors(weights, norms, sum(count for ngram, count in ngrams.items() if len(ngram) == 2))


def _similarity(own: _Vectors, reference: _Vectors) -> float:
    """Mean over orders of the clipped cosine, times the length penalty."""
    cosines = []
    for order in range(ORDERS):
        ours, theirs = own.weights[order], reference.weights[order]
        inner = math.fsum(
            min(weight, theirs.get(ngram, 0.0)) * theirs.get(ngram, 0.0) for ngram, weight in ours.items()
        )
        norms = own.norms[order] * reference.norms[order]
        cosines.append(inner / norms if norms else inner)
    penalty = math.exp(-((own.num_bigrams - reference.num_bigrams) ** 2) / (2 * SIGMA**2))
    return penalty * math.fsum(cosines) / ORDERS
