"""Search in Python: `load` a checkpoint, encode videos once, ask with texts (README, "In a notebook").

What a search finds is what an evaluation finds (`hero_platform.infer.retrieve`), up to rounding: both share the scores
of the query head and `decoding`. This one looks for few texts in many videos, so it reads every state once, as it lies
in memory or in a mapped file.

Legend: B videos, F frames of all videos, Q texts, K videos of a text that are searched for spans, L frames of the
longest of these, D hidden width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hero_model.config import EncoderConfig, HeroConfig, TextIds
from hero_model.decoding import Decoding, best_first, best_spans
from hero_model.embedder import Embedder, Timing
from hero_model.metrics.retrieval import Ranked
from hero_model.multitask import MultiTaskHero
from hero_model.nn.heads import SCORE_EPS
from hero_model.packed.batch import Layout, VideoRows
from hero_model.packed.pack import LAST_TOKEN_POSITION, Texts, offsets_of, spans
from hero_model.tasks import TASKS, MomentRetrieval, VideoRetrieval
from hero_model.tasks.alignment import Alignment
from hero_model.text import Tokenizer, read_vocabulary

UNIT_VIDEOS = 32  # videos that are encoded at once
OVERLAP = 0.5  # of two moments in one video that overlap more, the better one is shown
_BLOCK = 1 << 24  # cosines that are held at once


class Moment(NamedTuple):
    """One answer."""

    video: str  # its id
    start_s: float
    end_s: float
    score: float  # exp(alpha * cosine) * start probability * end probability; of a whole video the cosine
    place: int  # of the video in the index


@dataclass(frozen=True)
class VideoIndex:
    """Videos, encoded. Fastest where they are in order of length."""

    ids: Sequence[str]  # B
    interval_s: np.ndarray  # [B] float64 seconds between frames
    num_frames: np.ndarray  # [B] int64
    states_FD: Tensor  # float32, on the CPU; may be a mapped file
    inverse_norms_F: Tensor  # float32, of the states: 1 / max(norm, SCORE_EPS)

    def __len__(self) -> int:
        return len(self.num_frames)

    @classmethod
    def of(cls, ids: Sequence[str], timing: Timing, states_FD: Tensor) -> VideoIndex:
        """An index in memory."""
        return cls(ids, timing.interval_s, timing.num_frames, states_FD, inverse_norms(states_FD))

    def cosines(self, query_QD: Tensor) -> Tensor:
        """Cosine of each text with the best frame of each video, as `QueryHead.video_scores`: `[Q, B]`."""
        query_DQ = torch.nn.functional.normalize(query_QD, dim=-1, eps=SCORE_EPS).T
        offsets = offsets_of(self.num_frames)
        scores_BQ = np.empty((len(self), len(query_QD)), dtype=np.float32)
        for start, stop in _blocks(offsets, _BLOCK // max(1, len(query_QD))):
            rows = slice(int(offsets[start]), int(offsets[stop]))
            cosines_FQ = (self.states_FD[rows] @ query_DQ).mul_(self.inverse_norms_F[rows, None])
            np.maximum.reduceat(
                cosines_FQ.numpy(), offsets[start:stop] - offsets[start], axis=0, out=scores_BQ[start:stop]
            )
        return torch.from_numpy(scores_BQ).T.contiguous()

    def frames_of(self, videos: np.ndarray) -> tuple[Tensor, Layout]:
        """States of the frames of these videos `[K]`, one behind another, and where each begins."""
        lengths = self.num_frames[videos]
        rows = spans(offsets_of(self.num_frames)[videos], lengths)
        return self.states_FD[torch.from_numpy(rows)], Layout.of(lengths)


def inverse_norms(states_FD: Tensor) -> Tensor:
    """`[F]` float32."""
    return states_FD.norm(dim=-1).clamp_min(SCORE_EPS).reciprocal()


@dataclass(frozen=True)
class Retriever:
    """A trained model and the vocabulary of its texts: what `hero_model.load` gives."""

    embedder: Embedder
    tokenizer: Tokenizer

    @property
    def whole_videos(self) -> bool:
        """Whether the model was trained to find videos and not moments in them."""
        return isinstance(self.embedder.task, VideoRetrieval)

    def encode_videos(self, videos: VideoRows) -> VideoIndex:
        """Encode videos as a feature store gives them (`FeatureStore.rows`); all of them are in memory meanwhile.

        Raises:
            ValueError: there are none, or their features are not of the model's width.
        """
        width, own = videos.frames.shape[1], self.embedder.module.hero.cfg.frame_dim
        if not videos.num_videos or width != own:
            raise ValueError(f"{videos.num_videos} videos of width {width}: the model reads one or more of width {own}")
        units = [_some(videos, first, first + UNIT_VIDEOS) for first in range(0, videos.num_videos, UNIT_VIDEOS)]
        timings, states = zip(*(self.embedder.videos(unit) for unit in units), strict=True)
        timing = Timing(*map(np.concatenate, zip(*timings, strict=True)))
        return VideoIndex.of(videos.ids, timing, torch.cat(states).cpu())

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """A vector of each text, `[Q, D]` float32 on the CPU. Raises TypeError: one string, not a list of them."""
        if isinstance(texts, str):
            raise TypeError(f"texts are a list of sentences, not one string: [{texts!r}]")
        tokens = [ids[:LAST_TOKEN_POSITION] for ids in self.tokenizer.encode(texts, "query")]
        flat = np.array([token for ids in tokens for token in ids], dtype=np.int64)
        return self.embedder.texts(Texts(flat, offsets_of(np.array([len(ids) for ids in tokens], np.int64)))).cpu()

    def retrieve(
        self, texts: Sequence[str] | Tensor, index: VideoIndex, *, top: int = 10, how: Decoding | None = None
    ) -> list[list[Moment]]:
        """The best moments of each text in the whole index, best first; similar ones of a video are left out.

        Args:
            texts: sentences, or vectors of `encode_texts`.
            index: what is searched.
            top: most moments of a text.
            how: lengths of moments, and how many videos are searched for them; None: as the task was trained.
        """
        if not len(texts) or not len(index):
            return [[] for _ in range(len(texts))]
        how = how or Decoding.of(self.embedder.task)
        query_QD = texts if isinstance(texts, Tensor) else self.encode_texts(texts)
        with torch.inference_mode():
            cosines_QB = index.cosines(query_QD)
            best_QK = best_first(cosines_QB, top if self.whole_videos else how.num_videos)
            pairs = zip(query_QD, cosines_QB, best_QK, strict=True)
            if self.whole_videos:
                return [_whole(index, cosines_B, best_K) for _, cosines_B, best_K in pairs]
            return [self._moments(index, *pair, top, how) for pair in pairs]

    def probabilities(self, query_D: Tensor, index: VideoIndex, videos: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Where a moment about a text starts and ends in each of these videos: probabilities of its frames."""
        with torch.inference_mode():
            start_KL, end_KL = self._spans(query_D, index, np.asarray(videos, dtype=np.int64))
        lengths = index.num_frames[np.asarray(videos, dtype=np.int64)].tolist()
        return [(start_KL[row, :length], end_KL[row, :length]) for row, length in enumerate(lengths)]

    def _moments(
        self, index: VideoIndex, query_D: Tensor, cosines_B: Tensor, best_K: Tensor, top: int, how: Decoding
    ) -> list[Moment]:
        """The best spans of one text inside its best videos."""
        videos = best_K.sort().values  # the earlier video wins among equals
        start_KL, end_KL = self._spans(query_D, index, videos.numpy())
        scores_KN, cells_KN = best_spans(start_KL, end_KL, how)
        scores_KN = scores_KN * (how.alpha * cosines_B[videos]).exp()[:, None]  # -inf stays: weights are positive
        kept = best_first(scores_KN.reshape(1, -1), how.num_spans)[0]
        kept = kept[scores_KN.flatten()[kept] > -torch.inf]
        places = videos[kept // scores_KN.shape[1]].numpy()
        seconds = how.seconds(cells_KN.flatten()[kept].numpy(), index.interval_s[places])
        scores = scores_KN.flatten()[kept].double().numpy()
        ranked = Ranked(places[None], seconds[None], scores[None]).suppressed(OVERLAP, keep=top)
        found = [(int(place), start_s, end_s, score) for place, start_s, end_s, score in ranked.rows(0)]
        return [Moment(index.ids[place], start_s, end_s, score, place) for place, start_s, end_s, score in found]

    def _spans(self, query_D: Tensor, index: VideoIndex, videos: np.ndarray) -> tuple[Tensor, Tensor]:
        """Start and end probabilities of the frames of videos `[K]`: `[K, L]` each, 0 behind the last frame."""
        frames_PD, layout = index.frames_of(videos)
        device = self.embedder.device
        start_P, end_P = self.embedder.head.span_logits_all(
            query_D[None].to(device), frames_PD.to(device), layout.to(device)
        )
        lengths = index.num_frames[videos]
        cells = np.repeat(np.arange(len(videos)) * lengths.max(), lengths) + layout.positions.numpy()
        logits_2KL = torch.full((2, len(videos) * int(lengths.max())), -torch.inf)
        logits_2KL[:, torch.from_numpy(cells)] = torch.cat([start_P, end_P]).float().cpu()
        start_KL, end_KL = logits_2KL.reshape(2, len(videos), -1).softmax(-1)
        return start_KL, end_KL


def load(folder: str | Path, vocabulary: str | Path | None = None, *, device: str = "cpu") -> Retriever:
    """The model of a checkpoint for search.

    Args:
        folder: a checkpoint, such as `outputs/runs/tvr/checkpoints/step_00005000`; every byte that is used is verified.
        vocabulary: a folder with the vocabulary of its texts; None: the one that the store it was trained on carries.
        device: where it computes.

    Raises:
        ValueError: it is no checkpoint, damaged, of a model that cannot search, or its vocabulary is another one.
    """
    from safetensors.torch import load as read_tensors

    kept = {name: _checked(Path(folder), name) for name in ("config.json", "model.safetensors")}
    config = json.loads(kept["config.json"])
    if vocabulary is None:
        stores = config.get("stores") or [{"path": ""}]
        vocabulary = Path(stores[0]["path"]) / "tokenizer"
        if not vocabulary.is_dir():
            raise ValueError(f"{vocabulary} is gone, where {folder} had its vocabulary: name a folder that has it")
    return retriever(config, read_tensors(kept["model.safetensors"]), read_vocabulary(vocabulary), device=device)


def retriever(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], tokenizer: Tokenizer, *, device: str = "cpu"
) -> Retriever:
    """A model for search from what a checkpoint holds.

    Args:
        config: its `config.json`.
        weights: its tensors by name; those of heads that do not search are not needed.
        tokenizer: of its texts.
        device: where it computes.

    Raises:
        ValueError: the model cannot search, lacks weights, or the vocabulary is not its own.
    """
    text = TextIds(**config["text"])
    if tokenizer.text_ids != text:
        raise ValueError(
            f"the vocabulary has {tokenizer.text_ids.vocab_size} words and run {config['name']} was trained with "
            f"{text.vocab_size}: give its own"
        )
    task = search_task(config)
    module = MultiTaskHero(_model_config(config["model"]), [task])
    own = module.state_dict()
    if missing := sorted(own.keys() - weights.keys()):
        raise ValueError(f"run {config['name']} has no weights for search ({missing[0]} is missing): fine-tune it")
    module.load_state_dict({name: weights[name] for name in own})
    where = torch.device(device)
    half = config["precision"] == "bf16"
    return Retriever(Embedder(module.eval().to(where), task, text, where, half=half), tokenizer)


def search_task(config: Mapping[str, Any]) -> MomentRetrieval | VideoRetrieval:
    """How a run's model searches: the first task it trained of those that can, else as its VSM packed videos.

    Raises:
        ValueError: it trained neither.
    """
    tasks = [TASKS[entry["task"]["kind"]](**entry["task"]) for entry in config["mixture"]]
    for task in tasks:
        if isinstance(task, MomentRetrieval | VideoRetrieval):
            return task
    for task in tasks:
        if isinstance(task, Alignment):
            return MomentRetrieval.like(task)
    kinds = ", ".join(dict.fromkeys(task.kind for task in tasks))
    raise ValueError(f"run {config['name']} trained {kinds}: it cannot search; fine-tune moment_retrieval from it")


def _model_config(values: Mapping[str, Any]) -> HeroConfig:
    """Sizes from JSON."""
    sizes: dict[str, Any] = {
        name: EncoderConfig(**value) if isinstance(value, dict) else value for name, value in values.items()
    }
    return HeroConfig(**sizes)


def _checked(folder: Path, name: str) -> bytes:
    """A file of a checkpoint, compared with the digest beside it."""
    try:
        expected = json.loads((folder / "checksums.json").read_bytes())["files"][name]["sha256"]
        data = (folder / name).read_bytes()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is no whole checkpoint: {error}") from error
    if hashlib.sha256(data).hexdigest() != expected:
        raise ValueError(f"{folder / name} is damaged: its SHA-256 does not match checksums.json")
    return data


def _some(videos: VideoRows, first: int, stop: int) -> VideoRows:
    """Videos `first .. stop - 1`, as views."""
    frames, segments = videos.frame_offsets[first : stop + 1], videos.segment_offsets[first : stop + 1]
    tokens = videos.token_offsets[segments[0] : segments[-1] + 1]
    owned = videos.segment_frame_offsets[segments[0] : segments[-1] + 1]
    return VideoRows(
        ids=videos.ids[first:stop],
        keys=videos.keys[first:stop],
        interval_s=videos.interval_s[first:stop],
        frames=videos.frames[frames[0] : frames[-1]],
        frame_offsets=frames - frames[0],
        segment_offsets=segments - segments[0],
        tokens=videos.tokens[tokens[0] : tokens[-1]],
        token_offsets=tokens - tokens[0],
        segment_frames=videos.segment_frames[owned[0] : owned[-1]],
        segment_frame_offsets=owned - owned[0],
    )


def _blocks(offsets: np.ndarray, most: int) -> list[tuple[int, int]]:
    """Videos that follow each other, of `most` frames together or one alone: `(first, behind the last)`."""
    blocks, start = [], 0
    while start < len(offsets) - 1:
        stop = int(np.searchsorted(offsets, offsets[start] + most, side="right")) - 1
        stop = max(stop, start + 1)
        blocks.append((start, stop))
        start = stop
    return blocks


def _whole(index: VideoIndex, cosines_B: Tensor, best_K: Tensor) -> list[Moment]:
    """Whole videos as answers."""
    ends = index.num_frames * index.interval_s
    return [Moment(index.ids[k], 0.0, float(ends[k]), float(cosines_B[k]), k) for k in best_K.tolist()]
