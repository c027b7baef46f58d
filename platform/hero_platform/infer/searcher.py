"""A run, a store and its index as one thing that answers sentences with moments, subtitles and probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from hero_model.decoding import Decoding
from hero_model.retriever import Moment, Retriever, VideoIndex, retriever
from hero_platform.infer.index import Wanted, build_index, open_index
from hero_platform.sources.base import Subtitle
from hero_platform.store.media import check_learnt, encoders_of_run
from hero_platform.store.reader import FeatureStore
from hero_platform.store.tokens import TokenizerSpec
from hero_platform.train import snapshot

MOST = 100  # answers of a question


class Answer(NamedTuple):
    """One moment for people."""

    video: str
    start_s: float
    end_s: float
    score: float
    subtitles: list[Subtitle]  # that are heard in it


class Timeline(NamedTuple):
    """Where in a video a moment about a question starts and ends."""

    interval_s: float  # between frames
    start: list[float]  # probability of each frame
    end: list[float]


@dataclass(frozen=True)
class Searcher:
    """Answers questions about the videos of a store. Threads may share one."""

    retriever: Retriever
    index: VideoIndex
    store: FeatureStore
    checkpoint: str
    was_built: bool = False  # whether its index was, when it was opened

    @classmethod
    def open(
        cls,
        checkpoint: str,
        store: FeatureStore,
        *,
        vocabulary: str | None = None,
        workers: int = 0,
        threads: int = 1,
        show: bool = False,
    ) -> Searcher:
        """Read the model and map the index, which is built where there is none.

        Args:
            checkpoint: its folder.
            store: whose videos are searched.
            vocabulary: for a store that carries none.
            workers: Ray workers that build the index; 0: this process.
            threads: of each worker.
            show: progress on a terminal.

        Raises:
            ValueError: the checkpoint cannot search, or cannot read this store; the store's vocabulary is missing.
            SearchFailed: a worker died or failed.
        """
        weights, config = snapshot.load_weights(checkpoint)
        described = store.manifest.tokenizer
        spec = TokenizerSpec.read(vocabulary) if vocabulary else TokenizerSpec.of_store(store.root, described)
        spec.check_fits(described, store.root)
        if store.frame_dim != config["model"]["frame_dim"]:
            raise ValueError(
                f"{store.root} has features of width {store.frame_dim}; run {config['name']} was trained with width "
                f"{config['model']['frame_dim']}"
            )
        check_learnt(f"run {config['name']}", encoders_of_run(config), store.root, store.encoders)
        model = retriever(config, weights, spec.load())
        wanted = Wanted(store, checkpoint, snapshot.weights_digest(checkpoint), model)
        index = open_index(wanted)
        if found := index:
            return cls(model, found, store, checkpoint)
        return cls(model, build_index(wanted, workers=workers, threads=threads, show=show), store, checkpoint, True)

    @property
    def unread(self) -> str:
        """What of these videos no question finds, as a sentence; empty: nothing."""
        task, frames, told = self.retriever.embedder.task, self.store.index.num_frames, []
        if longer := int((frames > task.max_frames).sum()):
            told.append(
                f"{longer:,} of {len(self.index):,} videos have more than the {task.max_frames} frames that this model "
                "reads: what comes after those is not found; cut films into shorter clips (--clip-seconds)"
            )
        least = 1 if self.retriever.whole_videos else Decoding.of(task).shortest + 1
        if shorter := int((frames < least).sum()):
            told.append(
                f"{shorter:,} of {len(self.index):,} videos have fewer than {least} frames, the least of a moment: "
                "they are not found; take more frames of a film (--interval)"
            )
        return "; ".join(told)

    def find(self, questions: Sequence[str] | torch.Tensor, top: int = 10) -> list[list[Moment]]:
        """The best moments of each question (or of its vector), best first."""
        return self.retriever.retrieve(questions, self.index, top=top, how=Decoding.of(self.retriever.embedder.task))

    def answers(self, moments: Sequence[Moment]) -> list[Answer]:
        """Moments with the subtitles that are heard in them."""
        return [Answer(m.video, m.start_s, m.end_s, m.score, self.subtitles(m)) for m in moments]

    def subtitles(self, moment: Moment) -> list[Subtitle]:
        """Subtitles that overlap a moment."""
        said = self.store.subtitles(self.store.index.row_of[moment.video])
        return [line for line in said if line.end_s > moment.start_s and line.start_s < moment.end_s]

    def timelines(self, vector_D: torch.Tensor, moments: Sequence[Moment]) -> dict[str, Timeline]:
        """Of each video that is among these moments, by id; none where whole videos are found."""
        places = list(dict.fromkeys(moment.place for moment in moments))
        if self.retriever.whole_videos or not places:
            return {}
        found = self.retriever.probabilities(vector_D, self.index, places)
        return {
            str(self.index.ids[place]): Timeline(
                float(self.index.interval_s[place]), *(np.round(part.numpy(), 5).tolist() for part in parts)
            )
            for place, parts in zip(places, found, strict=True)
        }


def as_json(answer: Answer) -> dict[str, Any]:
    """An answer for files and the API."""
    return answer._asdict() | {"subtitles": [line._asdict() for line in answer.subtitles]}
