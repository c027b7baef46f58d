"""Answers as the API gives them, for several questions at once, in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from hero_platform.infer.searcher import Searcher, as_json


def answers(searcher: Searcher, asked: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    """`schema.Answers` of each `(question, top)`, but for the films of its moments."""
    began = time.perf_counter()
    vectors_QD = searcher.retriever.encode_texts([question for question, _ in asked])
    found = searcher.find(vectors_QD, max(top for _, top in asked))
    results = []
    for (question, top), vector_D, moments in zip(asked, vectors_QD, found, strict=True):
        kept = moments[:top]
        timelines = searcher.timelines(vector_D, kept)
        results.append(
            {
                "question": question,
                "moments": [as_json(answer) for answer in searcher.answers(kept)],
                "timelines": {video: timeline._asdict() for video, timeline in timelines.items()},
                "checkpoint": searcher.checkpoint,
            }
        )
    spent_ms = 1000 * (time.perf_counter() - began)
    return [{**result, "search_ms": round(spent_ms, 2)} for result in results]


def status(searcher: Searcher) -> dict[str, Any]:
    """`schema.Status` but for `films`."""
    return {
        "checkpoint": searcher.checkpoint,
        "store": searcher.store.digest,
        "videos": len(searcher.index),
        "frames": int(searcher.index.num_frames.sum()),
    }


class Here:
    """An engine without Ray: one question after the other in a thread."""

    def __init__(self, searcher: Searcher) -> None:
        self._searcher = searcher
        self._one = asyncio.Lock()

    async def search(self, question: str, top: int) -> dict[str, Any]:
        """Answer a question."""
        async with self._one:
            return (await asyncio.to_thread(answers, self._searcher, [(question, top)]))[0]

    async def status(self) -> dict[str, Any]:
        """Say what is searched."""
        return status(self._searcher)
